"""Runs, adapters of PEFT, bases and exports answer prompts as they were trained to read them."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_llama, make_tokenizer, write_jsonl
from peft import LoraConfig, get_peft_model

import multilora
from multilora.data.render import Renderer
from multilora.errors import InputError
from multilora.inference.chat import Chat
from multilora.inference.options import GenerationOptions
from multilora.inference.prompt_file import json_prompt, read_prompts, task_section
from multilora.inference.prompts import Prompts
from multilora.runs.generate import load_text_models

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def chat_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def run(recipe):
    recipe["training"]["learning_rate"] = 0.3  # so that its answers differ from the base's
    return multilora.train(recipe)


def expected_text(model, tokenizer, ids, tokens):
    output = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=2, pad_token_id=0)
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


def test_a_run_reads_prompts_as_in_training(run, tokenizer):
    prompts = ["is 3 even?", "say item3 twice"]
    answers = run.generate(prompts, max_new_tokens=6)
    model = run.load_model().eval()
    renderer = Renderer(tokenizer)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = renderer.prefix_ids(prompt)
        assert answer.text == str(answer) == expected_text(model, tokenizer, ids, 6)
        assert (answer.prompt, answer.prompt_tokens, answer.model) == (prompt, len(ids), str(run.path))
    assert multilora.generate(run.path, prompts, max_new_tokens=6) == answers


def test_comparison_with_the_base(run, model_folder, tmp_path):
    alone = multilora.generate(model_folder, ["say item3 twice"], template="instruction", max_new_tokens=6)
    before, after = run.generate(["say item3 twice"], compare=True, max_new_tokens=6)
    assert before.text == alone[0].text != after.text
    assert before.model == "base"
    multilora.export_lora(run, tmp_path / "lora")
    both = multilora.generate(tmp_path / "lora", ["say item3 twice"], template="instruction", compare=True,
                              max_new_tokens=6)  # fmt: skip
    assert [answer.text for answer in both] == [before.text, after.text]
    multilora.export_merged(run, tmp_path / "merged")
    merged = multilora.generate(tmp_path / "merged", ["say item3 twice"], template="instruction", max_new_tokens=6)
    assert merged[0].text == after.text
    with pytest.raises(InputError, match="no base to compare it with"):
        multilora.generate(tmp_path / "merged", ["a"], compare=True)


def test_the_base_of_an_adapter_with_biases_is_loaded(model_folder, tmp_path):
    """With the adapter disabled, it would keep trained biases."""
    torch.manual_seed(0)
    base = make_llama(attention_bias=True)
    base.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], bias="all"))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data += torch.randn_like(parameter)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    plain = multilora.generate(tmp_path / "base", ["yes"], max_new_tokens=8)[0].text
    before, after = multilora.generate(tmp_path / "adapter", ["yes"], compare=True, max_new_tokens=8)
    assert before.text == plain != after.text


def test_an_adapter_of_another_base(model_folder, tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = "nowhere/else"
    model.save_pretrained(tmp_path / "adapter")
    (answer,) = multilora.generate(tmp_path / "adapter", ["yes"], base=str(model_folder), max_new_tokens=4)
    assert answer.text == multilora.generate(model_folder, ["yes"], max_new_tokens=4)[0].text
    with pytest.raises(InputError, match="whose base is known"):
        multilora.generate(model_folder, ["yes"], base="nano")


def test_an_adapter_keeps_the_chat_template_of_its_training(chat_tokenizer, model_folder, tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(model_folder)
    model.save_pretrained(tmp_path / "adapter")
    assert load_text_models(tmp_path / "adapter")[0].prompts.template == "raw"
    chat_tokenizer.save_pretrained(tmp_path / "adapter")
    assert load_text_models(tmp_path / "adapter")[0].prompts.template == "chat"


def test_prompts(tokenizer, chat_tokenizer):
    def text(prompt, *options):
        prompts = Prompts(*options)
        return prompts.tokenizer.decode(prompts.ids(prompt))

    assert text("one", tokenizer, "raw") == "<s>one"
    assert text("<s>one", tokenizer, "raw") == "<s>one"
    assert text("one", tokenizer, "question") == "<s>Question: one\nAnswer:"
    assert text("one", chat_tokenizer) == "<s><user>one</s><assistant>"
    assert text("one", chat_tokenizer, "chat", "two") == "<s><system>two</s><user>one</s><assistant>"
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert text(turns, chat_tokenizer) == "<s><user>one</s><assistant>two</s><user>three</s><assistant>"
    plain = Prompts(tokenizer, "instruction")
    chat = Renderer(tokenizer, "instruction").chat_pieces([*turns, {"role": "assistant", "content": "four"}])
    assert plain.ids(turns) == [token for piece in chat[:-1] for token in piece.ids]  # as in training
    for wrong, message in (
        (turns[:2], "ends with a turn of 'assistant'"),
        ([], "ends with a turn of None"),
    ):
        with pytest.raises(InputError, match=message):
            plain.ids(wrong)
    with pytest.raises(InputError, match="needs a template"):
        Prompts(tokenizer, "raw").ids(turns)
    with pytest.raises(InputError, match="needs a template"):
        Prompts(tokenizer, "raw", "be brief")
    with pytest.raises(InputError, match="expected one of auto, chat"):
        Prompts(tokenizer, "jinja")


def test_options(run):
    def texts(**options):
        return [answer.text for answer in run.generate(["yes", "no", "one"], max_new_tokens=8, **options)]

    drawn = texts(temperature=2.0, seed=1)
    assert drawn == texts(temperature=2.0, seed=1) != texts(temperature=2.0, seed=2)
    assert texts(temperature=2.0, top_k=1) == texts()
    first = texts()[0]
    assert texts(stop=first[2])[0] == first.split(first[2])[0]
    for options, message in (
        ({"top_p": 0.5}, "no effect with temperature 0"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"temperature": -1}, "temperature is -1; use 0"),
    ):
        with pytest.raises(InputError, match=message):
            texts(**options)
    with pytest.raises(InputError, match="expected a list such as"):
        run.generate("yes")


def test_a_prompt_and_its_answer_fit_the_model(run):
    (answer,) = run.generate(["one " * 100], max_new_tokens=1000)
    assert answer.prompt_tokens + answer.tokens <= 256
    with pytest.raises(InputError, match="256 positions"):
        run.generate(["one " * 300])


def test_a_chat_remembers_its_turns(run):
    chat = Chat(run.text_models(compare=True), GenerationOptions(max_new_tokens=4))
    first = chat.ask("say item1 twice")
    assert [history[-1]["content"] for history in chat.histories] == [answer.text for answer in first]
    second = chat.ask("say item2 twice")
    assert [answer.prompt[:3] for answer in second] == [history[:3] for history in chat.histories]
    chat.reset()
    assert [answer.text for answer in chat.ask("say item1 twice")] == [answer.text for answer in first]


def test_an_interrupted_answer_stays_in_the_chat(run):
    chat = Chat(run.text_models(), GenerationOptions(max_new_tokens=50))
    parts = []

    def interrupt(part):
        parts.append(part)
        if len(parts) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("say item1 twice", interrupt)
    answer = {"role": "assistant", "content": "".join(parts)}
    assert chat.histories == [[{"role": "user", "content": "say item1 twice"}, answer]]


def test_prompts_of_a_task(recipe, tmp_path):
    loaded = multilora.Recipe.load(recipe)
    section = task_section(loaded, "echo")
    assert json_prompt('{"word": "item1"}', section) == "say item1 twice"
    file = write_jsonl(tmp_path / "p.jsonl", [{"word": "a"}, {"word": "b"}])
    assert read_prompts(file, section) == ["say a twice", "say b twice"]
    with pytest.raises(InputError, match=r"'word' is undefined; the record has 'wort'"):
        json_prompt('{"wort": "item1"}', section)
    with pytest.raises(InputError, match="is not a JSON object with the fields of task 'echo'"):
        json_prompt("item1", section)
    with pytest.raises(InputError, match=r"no task 'ecko' \(did you mean 'echo'\?\)"):
        task_section(loaded, "ecko")


def test_files_of_prompts(tmp_path):
    text = tmp_path / "p.txt"
    text.write_bytes("\ufeffone\r\n\n two\u2028still two\n".encode())
    assert read_prompts(text) == ["one", " two\u2028still two"]
    chat = [{"role": "user", "content": "a"}]
    records = tmp_path / "p.jsonl"
    records.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"prompt": "b"}) + "\n")
    assert read_prompts(records) == [chat, "b"]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.jsonl").write_text('{"text": "b"}\n')
    for name, message in (
        ("empty.txt", "no prompts in it"),
        ("other.jsonl", "the record has 'text'"),
        ("nowhere.txt", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_prompts(tmp_path / name)
