"""The engine answers lm-eval's requests as lm-eval's own `HFLM` does."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REAL_DATA, REPOSITORY, make_llama, make_tokenizer, write_jsonl

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from processes import run_in_two_processes

from multilora.harness.engine_model import MultiLoraLM
from multilora.harness.run import harness_scores
from multilora.harness.tasks import local_task
from multilora.recipe.schema import TaskSection

pytest_plugins = ["official_files"]

# Folders of real bases, which are tested too: a small one, and Gemma 3 270M, if this variable names its folder.
SMALL = REPOSITORY.parent / "shared/models/small-base"
GEMMA = Path(os.environ.get("MULTILORA_GEMMA", "/nonexistent"))
BASES = [SMALL, pytest.param(GEMMA, marks=pytest.mark.slow, id="gemma")]
WORDS = ["the", "answer", "to", "question", "is", "yes", "or", "no", "and", "one", "two", "three", "four", "five"]


def text(words: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="module", params=["tiny", *BASES], ids=lambda item: getattr(item, "name", item))
def base(request, tiny):
    if request.param == "tiny":
        return tiny
    if not (request.param / "config.json").is_file():
        pytest.skip("set MULTILORA_GEMMA to the folder of Gemma 3 270M" if request.param == GEMMA else "not there")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.param)
    return AutoModelForCausalLM.from_pretrained(request.param, dtype=torch.float32).eval(), tokenizer


def both(base: tuple[Any, Any], **options: Any) -> tuple[Any, Any]:
    """`HFLM` and the engine with the same model.

    `HFLM` normalises in float64: torch's float32 log_softmax is off by 5e-5 a token for Gemma's 262,144 logits.
    """
    model, tokenizer = base
    batch_size = 3 if len(tokenizer) < 2**16 else 1  # it keeps the logits of all tokens
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float64", **options)
    return theirs, MultiLoraLM(model=model, tokenizer=tokenizer, **options)


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=item, idx=0) for item in arguments]


def greedy_continuation(base: tuple[Any, Any], context: str) -> str:
    """Text that the model itself continues with; empty if it does not become the same tokens again."""
    lm = HFLM(pretrained=base[0], tokenizer=base[1])
    (answer,) = lm.generate_until(instances("generate_until", [(context, {"until": [], "max_gen_toks": 3})]))
    return answer


def pairs(base: tuple[Any, Any]) -> list[tuple[str, str]]:
    shared = text(40, 1)
    bos = base[1].bos_token or ""
    return [
        *((shared + "\nAnswer:", f" {choice}") for choice in ("A", "B", "C", "D")),
        *((text(12, seed), " " + text(1 + seed, seed + 50)) for seed in range(4)),
        (shared + "\nAnswer:", greedy_continuation(base, shared + "\nAnswer:")),
        ("", text(5, 7)),
        ("the answer is   ", "yes"),
        (bos + text(4, 8), " yes"),
        (text(600, 9), " " + text(20, 10)),
        (text(600, 9), " no"),
    ]


@pytest.mark.parametrize(
    "options", [{}, {"max_length": 64}, {"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 5}]
)
def test_log_likelihoods(base, options):
    theirs, ours = both(base, **{"max_length": 256, **options})
    requests = instances("loglikelihood", [pair for pair in pairs(base) if pair[1]])
    expected, answers = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (theirs, ours))
    for (log_likelihood, greedy), (expected_value, expected_greedy) in zip(answers, expected, strict=True):
        assert log_likelihood == pytest.approx(expected_value, abs=1e-4, rel=1e-5)
        assert greedy == expected_greedy
    assert len({greedy for _, greedy in answers}) == 2


@pytest.mark.parametrize("max_length", [16, 256])
def test_rolling_log_likelihoods(base, max_length):
    theirs, ours = both(base, max_length=max_length)
    requests = instances("loglikelihood_rolling", [(text(count, count),) for count in (1, 3, 70, 200)] + [("",)])
    expected, answers = (lm.loglikelihood_rolling(requests, disable_tqdm=True) for lm in (theirs, ours))
    assert answers == pytest.approx(expected, abs=1e-4, rel=1e-5)
    assert answers[-1] == 0 or base[1]("")["input_ids"]


def test_generations(base):
    theirs, ours = both(base, max_length=128)
    stops = theirs.generate_until(instances("generate_until", [(text(9, 1), {"until": [], "max_gen_toks": 12})]))[0]
    arguments = [
        (text(words, seed), {"until": until, "max_gen_toks": limit, "do_sample": False, "temperature": 0.0})
        for seed, (words, limit) in enumerate([(9, 12), (30, 12), (300, 12), (9, 40)])
        for until in ([], ["\n\n"], [stops[3:6] or "x", "</s>"], "e")
    ]
    requests = instances("generate_until", arguments)
    assert ours.generate_until(requests, disable_tqdm=True) == theirs.generate_until(requests, disable_tqdm=True)


def test_default_of_max_length(base):
    theirs, ours = both(base)
    for name in ("max_length", "max_gen_toks", "prefix_token_id", "eot_token_id", "tokenizer_name"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_chat_template(tiny):
    model, tokenizer = tiny
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    theirs, ours = both((model, tokenizer))
    chat = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "yes"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat) == "[user] is it?\n[assistant] yes\n"


def toy_tasks(folder: Path) -> Any:
    """lm-eval's index of a choice task, a task of rolling log-likelihoods, and a group."""
    rows = [
        {"q": f"Is {n} one?", "a": n % 2, "options": [text(1 + (n + k) % 5, 9 * n + k) for k in range(4)]}
        | {"text": text(30 + n, n)}
        for n in range(12)
    ]
    file = str(write_jsonl(folder / "rows.jsonl", rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}, "test_split": "test"}
    metrics = [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score")]
    choice = {
        "task": "toy_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}\nAnswer:",
        "doc_to_target": "a",
        "doc_to_choice": ["yes, it is", "no"],
        "metric_list": metrics,
    }
    long_choice = {**choice, "task": "toy_long_choice", "doc_to_choice": "options"}
    rolling = {
        "task": "toy_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    group = {"group": "toys", "task": ["toy_choice"], "aggregate_metric_list": [{"metric": "acc"}]}
    for config in (choice, long_choice, rolling, group):
        name = config.get("task") if isinstance(config["task"], str) else config["group"]
        extra = data if isinstance(config["task"], str) else {}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**config, **extra}), encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


def two_processes(rank: int, folder: Path) -> None:
    """Score the toy tasks in a process of two."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    lm = MultiLoraLM(model=make_llama(max_position_embeddings=512), tokenizer=make_tokenizer())
    scores = harness_scores(lm, ["toy_choice", "toy_text"], manager=manager, bootstrap_iters=0)
    (folder / f"{rank}.json").write_text(json.dumps(scores), encoding="utf-8")


@pytest.mark.slow
def test_two_processes_share_the_work_once(tiny, tmp_path):
    """The engine shares out the requests, and lm-eval, which could too, does not; the first process has the result."""
    manager = toy_tasks(tmp_path)
    run_in_two_processes(two_processes, tmp_path)
    scores, nothing = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    assert nothing is None
    lm = MultiLoraLM(model=tiny[0], tokenizer=tiny[1])
    alone = harness_scores(lm, ["toy_choice", "toy_text"], manager=manager, bootstrap_iters=0)
    assert alone is not None
    assert scores["tasks"]["toy_choice"] == alone["tasks"]["toy_choice"]
    perplexity, expected = (result["tasks"]["toy_text"]["metrics"]["word_perplexity"] for result in (scores, alone))
    assert perplexity["value"] == pytest.approx(expected["value"], rel=1e-5)


def assert_same_scores(theirs, ours, tasks, **options) -> dict[str, Any]:
    expected, scores = (harness_scores(lm, tasks(), samples=True, **options) for lm in (theirs, ours))
    assert expected is not None
    assert scores is not None
    for kind in ("tasks", "groups"):
        assert scores[kind].keys() == expected[kind].keys()
        for name, entry in scores[kind].items():
            reference = expected[kind][name]
            assert {**entry, "metrics": {}} == {**reference, "metrics": {}}
            assert entry["metrics"].keys() == reference["metrics"].keys()
            for metric, values in entry["metrics"].items():
                for key in ("value", "stderr"):
                    expected_value = reference["metrics"][metric][key]
                    tolerant = None if expected_value is None else pytest.approx(expected_value, rel=1e-5, abs=1e-9)
                    assert values[key] == tolerant, f"{name} {metric} {key}"
    prompts = [
        {name: [sample["arguments"] for sample in entries] for name, entries in result["samples"].items()}
        for result in (scores, expected)
    ]
    assert prompts[0] == prompts[1]
    for name, entries in scores["samples"].items():
        for sample, reference in zip(entries, expected["samples"][name], strict=True):
            assert_same_answers(sample, reference)
    return scores


def assert_same_answers(sample, reference) -> None:
    """The same log-likelihoods, pick and greedy tokens; the same text."""
    if isinstance(sample["resps"][0][0], str):
        assert sample["resps"] == reference["resps"]
        assert sample["filtered_resps"] == reference["filtered_resps"]
        return
    if not isinstance(sample["resps"][0][0], list):  # of a complete text
        return
    (values, greedy), (expected, expected_greedy) = (
        zip(*(answer for (answer,) in item["resps"]), strict=True) for item in (sample, reference)
    )
    assert list(values) == pytest.approx(list(expected), abs=1e-4, rel=1e-6)
    assert greedy == expected_greedy
    first, second = sorted(expected, reverse=True)[:2]
    if first - second > 1e-3:
        assert values.index(max(values)) == expected.index(max(expected))


@pytest.mark.parametrize("shots", [0, 5])
def test_scores_of_the_built_in_tasks(tiny, paths, manager, shots):
    # lm-eval's `record` imports a module that transformers 5 does not have.
    leave_out = {"gsm8k"} if importlib.util.find_spec("transformers.data.metrics") else {"gsm8k", "superglue/record"}
    sections = [TaskSection(name=name, path=path) for name, path in paths.items() if name not in leave_out]
    scores = assert_same_scores(
        *both(tiny),
        lambda: [local_task(section, manager) for section in sections],
        shots=shots,
        manager=manager,
        bootstrap_iters=100,
    )
    assert len(scores["tasks"]) == len(sections)
    assert {"acc", "acc_norm"} == scores["tasks"]["arc_easy"]["metrics"].keys()
    assert scores["tasks"]["mmlu_anatomy"]["n"] == 7
    assert scores["tasks"]["mmlu_anatomy"]["shots"] == shots
    assert scores["tasks"]["boolq"]["metrics"]["acc"]["stderr"] > 0


def test_generated_answers_of_gsm8k(tiny, paths, manager):
    section = TaskSection(name="gsm8k", path=paths["gsm8k"])
    model, tokenizer = make_llama(max_position_embeddings=1024), tiny[1]
    scores = assert_same_scores(
        *both((model, tokenizer)), lambda: [local_task(section, manager)], shots=5, limit=3, manager=manager
    )
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} == scores["tasks"]["gsm8k"]["metrics"].keys()


def test_other_metrics_of_lm_eval(base, tmp_path):
    """Every normalisation of choices of several tokens, and perplexity of texts."""
    manager = toy_tasks(tmp_path)
    names = ["toys", "toy_long_choice", "toy_text"]
    scores = assert_same_scores(*both(base), lambda: names, manager=manager, bootstrap_iters=100)
    assert scores["groups"]["toys"]["members"] == ["toy_choice"]
    metrics = scores["tasks"]["toy_long_choice"]["metrics"]
    assert {"acc", "acc_norm", "acc_bytes", "acc_mutual_info"} <= metrics.keys()
    assert scores["tasks"]["toy_text"]["metrics"]["word_perplexity"]["value"] > 1


REAL = {
    "mmlu/anatomy": ("mmlu", None),
    "superglue/boolq": ("superglue/BoolQ/fewglue_train32.jsonl", "superglue/BoolQ/val.jsonl"),
    "superglue/multirc": ("superglue/MultiRC", None),
    "superglue/wsc": ("superglue/WSC", None),
    "superglue/copa": ("superglue/COPA", None),
    "gsm8k": ("gsm8k", None),
    "gsm8k_cot": ("gsm8k", None),
    "gsm8k_cot_zeroshot": ("gsm8k", None),
}


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")
@pytest.mark.parametrize("name", REAL)
def test_scores_on_real_data(base, manager, name):
    path, eval_path = (item and str(REAL_DATA / item) for item in REAL[name])
    built_in, _, form = name.partition("_")
    section = TaskSection(name=built_in, path=path, eval_path=eval_path, harness_task=name if form else None)
    shots = {"mmlu/anatomy": 5, "gsm8k": 1, "superglue/multirc": 0}.get(name, None if form else 2)
    limit = 2 if built_in == "gsm8k" else 6
    theirs, ours = both(base)
    if theirs.max_length <= theirs.max_gen_toks and built_in == "gsm8k":
        pytest.skip("generates more than the model's positions")
    scores = assert_same_scores(
        theirs, ours, lambda: [local_task(section, manager)], shots=shots, limit=limit, manager=manager
    )
    if form:
        assert scores["tasks"][name]["shots"] == (0 if form == "cot_zeroshot" else 8)
