"""Few-shot prompts: their text, which examples are in them, and what happens if they do not fit."""

from __future__ import annotations

import csv

import pytest
from conftest import make_llama, make_tokenizer, write_jsonl

from multilora.data.render import Renderer
from multilora.errors import DataError, RecipeError
from multilora.evaluation.evaluation_set import EvaluationSet, shots_of
from multilora.evaluation.questions import questions_of
from multilora.evaluation.score import evaluation_sets, score_tasks
from multilora.example import chat_example, choice_example, free_example, to_dataset
from multilora.recipe import EvaluationSection, Recipe, TaskSection
from multilora.tasks.base import Task
from multilora.tasks.make import make_task

HEAD = "The following are multiple choice questions (with answers) about anatomy."


class FixedTask(Task):
    """A task with given training examples."""

    kind = "choice"

    def __init__(self, train=(), **section):
        super().__init__(TaskSection(name="t", **section))
        self.train = train

    def load(self, split):
        return to_dataset(list(self.train))


def choice(number):
    return choice_example(f"is {number} even?", ["yes", "no"], number % 2)


@pytest.fixture
def mmlu(tmp_path):
    """A folder with two subjects, and the letters of the five examples in `dev` of each."""
    letters = {"anatomy": "BADCB", "virology": "AACCD"}
    for split in ("dev", "val", "test"):
        (tmp_path / split).mkdir()
        for subject, answers in letters.items():
            with (tmp_path / split / f"{subject}_{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([f"{split} {i}?", "w", "x", "y", "z", a] for i, a in enumerate(answers))
    return str(tmp_path)


def test_text_of_a_prompt(tokenizer):
    """Each template repeats its frame; MMLU's line about the subject and `Answer:` appear once where they belong."""
    task = FixedTask()
    items = EvaluationSet(task, [choice(3)], {"": [choice(1), choice(2)]})
    chat = make_tokenizer()
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    expected = {
        "question": "Question: is 1 even?\nAnswer: no\n\nQuestion: is 2 even?\nAnswer: yes\n\n"
        "Question: is 3 even?\nAnswer:",
        "instruction": "### Instruction:\nis 1 even?\n\n### Response:\nno\n\n"
        "### Instruction:\nis 2 even?\n\n### Response:\nyes\n\n### Instruction:\nis 3 even?\n\n### Response:\n",
        "chat": "[user] is 1 even?\nno\n\nis 2 even?\nyes\n\nis 3 even?</s>[assistant] ",
    }
    for template, text in expected.items():
        renderer = Renderer(chat, template)
        assert renderer.prefix_text(items.prompt_of(renderer, items.examples[0], 2)) == text
        assert items.prompt_of(renderer, items.examples[0], 0) == "is 3 even?"


def test_shots_of_mmlu_are_those_of_dev_in_order(mmlu, tokenizer):
    task = make_task(TaskSection(name="mmlu", path=mmlu))
    examples = task.load("eval").to_list()
    items = EvaluationSet(task, examples, shots_of(task, examples, 2))
    renderer = Renderer(tokenizer, "question")
    question = "{} {}?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    text = renderer.prefix_text(items.prompt_of(renderer, examples[0], 2))
    assert text == (
        f"Question: {HEAD}\n\n{question.format('dev', 0)} B\n\nQuestion: {question.format('dev', 1)} A\n\n"
        f"Question: {question.format('test', 0)}"
    )
    assert [shot["response"] for shot in items.shots["virology"]] == ["A", "A"]
    with pytest.raises(DataError, match="task 'mmlu', anatomy: 5 examples can be shots, expected 6; lower"):
        shots_of(task, examples, 6)


def test_answer_is_not_asked_for_twice(mmlu, tokenizer):
    (example, *_) = make_task(TaskSection(name="mmlu", path=mmlu)).load("eval")
    assert example["prompt"].endswith("\nAnswer:")
    assert Renderer(tokenizer, "question").prefix_text(example["prompt"]).count("Answer:") == 1


def test_drawn_shots_are_never_evaluated():
    task = FixedTask([choice(number) for number in range(8)])
    evaluated = [choice(number) for number in range(5)]
    shots = shots_of(task, evaluated, 3)[""]
    assert sorted(shot["prompt"] for shot in shots) == [f"is {number} even?" for number in (5, 6, 7)]
    assert shots_of(task, evaluated, 3)[""] == shots
    with pytest.raises(DataError, match="3 examples can be shots, expected 4"):
        shots_of(task, evaluated, 4)
    chats = [chat_example('[{"role": "user", "content": "x"}]')]
    assert shots_of(task, chats, 3) == {}


def test_too_few_shots_are_found_before_any_model_is_loaded(recipe):
    recipe["evaluation"]["shots"] = 100
    with pytest.raises(RecipeError, match=r"task 'even': \d+ examples can be shots, expected 100") as error:
        evaluation_sets(Recipe.load(recipe), 5)
    assert "task 'echo'" in str(error.value)


@pytest.mark.parametrize("kind", ["choice", "generate"])
def test_a_score_with_shots_is_that_of_the_complete_prompt(kind, tokenizer):
    task = FixedTask()
    task.kind = kind
    make = choice if kind == "choice" else lambda number: free_example(f"say {number}", "no", "no")
    shots = [choice(20), choice(21)]
    items = EvaluationSet(task, [make(number) for number in range(6)], {"": shots})
    model, renderer, section = make_llama(), Renderer(tokenizer), EvaluationSection(max_new_tokens=4)
    complete = [{**e, "prompt": items.prompt_of(renderer, e, 2)} for e in items.examples]
    sets = {"shots": items, "complete": EvaluationSet(task, complete)}
    score, expected = score_tasks(model, renderer, sets, section, "scoring").values()
    assert (score.value, score.fewer_shots) == (expected.value, 0)
    assert score.loss == pytest.approx(expected.loss, abs=1e-5)
    assert (score.shots, score.protocol, expected.protocol) == (2, "ours, 2-shot", "ours, 0-shot")


def test_shots_that_do_not_fit_are_left_out_and_counted(tokenizer):
    """The last ones first; nothing of the question is lost."""
    task = FixedTask()
    long = choice_example("one two three " * 40, ["yes", "no"], 0)
    items = EvaluationSet(task, [choice(1), long], {"": [choice(20), choice(21), choice(22)]})
    renderer = Renderer(tokenizer)
    complete = questions_of(renderer, items, 10_000, answers=True)
    length = len(complete[1].reference[0].context)  # too short for the long question and its end
    short, cut = questions_of(renderer, items, length, answers=True)
    assert (short.fewer_shots, cut.fewer_shots, cut.truncated) == (False, True, False)
    assert cut.reference[0].context == renderer.prefix_ids(items.prompt_of(renderer, long, 2))
    score = score_tasks(make_llama(), renderer, {"t": items}, EvaluationSection(), "scoring", length=length)["t"]
    assert (score.n, score.fewer_shots, score.truncated) == (2, 1, 0)


def test_the_prompt_of_a_generated_answer_does_not_depend_on_the_reference(tokenizer):
    task = FixedTask()
    task.kind = "generate"
    prompts = []
    for response in ("x", "one two three " * 20):
        items = EvaluationSet(task, [free_example("say", response, "y")], {"": [choice(20), choice(21)]})
        (question,) = questions_of(Renderer(tokenizer), items, 130, answers=True, new_tokens=8)
        prompts.append(question.prompt)
    assert prompts[0] == prompts[1]


def test_parts_of_mmlu(mmlu, tokenizer):
    recipe = Recipe.load({"model": "nano", "tasks": [{"name": "mmlu", "path": mmlu}]})
    sets = evaluation_sets(recipe, 100)
    score = score_tasks(make_llama(), Renderer(tokenizer), sets, EvaluationSection(), "scoring")["mmlu"]
    assert score.parts.keys() == {"group", "subject"}
    assert {name: part["n"] for name, part in score.parts["subject"].items()} == {"anatomy": 5, "virology": 5}
    assert score.parts["group"] == {
        "stem": score.parts["subject"]["anatomy"],
        "other": score.parts["subject"]["virology"],
    }
    values = [part["value"] for part in score.parts["subject"].values()]
    assert score.value == pytest.approx(sum(values) / 2) == score.metrics["accuracy_over_subjects"]


def test_choices_of_each_record(tmp_path):
    """Choices in the fields of a record, as in PIQA, and in a list field."""
    records = [{"goal": f"g{n}", "sol1": f"a{n}", "sol2": f"b{n}", "label": n % 2, "all": ["x", "y"]} for n in range(9)]
    path = str(write_jsonl(tmp_path / "piqa.jsonl", records))
    for choices, response in (
        (["{{ sol1 }}", "{{ sol2 }}"], "{{ [sol1, sol2][label] }}"),
        ("all", "{{ all[label] }}"),
    ):
        section = TaskSection(name="piqa", path=path, prompt="{{ goal }}", choices=choices, response=response)
        recipe = Recipe.load({"model": "nano", "tasks": [section.model_dump(exclude_none=True)]})
        example = evaluation_sets(recipe, 1)["piqa"].examples[0]
        number = int(example["prompt"][1:])
        expected = [f"a{number}", f"b{number}"] if isinstance(choices, list) else ["x", "y"]
        assert (example["choices"], example["correct"]) == (expected, [number % 2])
    same = [{**record, "sol2": record["sol1"]} for record in records]
    section = section.model_copy(update={"path": str(write_jsonl(tmp_path / "same.jsonl", same))})
    section = section.model_copy(update={"choices": ["{{ sol1 }}", "{{ sol2 }}"], "response": "{{ sol1 }}"})
    with pytest.raises(DataError, match=r"line 1: the choice 'a0' appears twice"):
        make_task(section).load("train")
