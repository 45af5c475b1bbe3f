"""The next commands after an export, as a table: what an adapter contains -> command or warning."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys

import pytest
from conftest import make_llama, randomise
from peft import get_peft_model

from multilora import MultiLoraConfig, export_lora
from multilora.export.servers.commands import as_lines, next_commands
from multilora.export.servers.facts import AdapterFacts, adapter_facts
from multilora.export.servers.table import CONSUMERS, CONTENTS, VLLM_RANKS, Place, vllm_rank

PLACE = Place("out/lora", "owner/base", "lora", "runs/first")
PLAIN = AdapterFacts("llama", rank=24)
READERS = {"PEFT", "vLLM", "SGLang", "llama.cpp", "MLX", "OpenVINO GenAI", "ONNX Runtime GenAI"}


def by_name(facts: AdapterFacts, place: Place = PLACE, kind="lora"):
    return {item.consumer: item for item in next_commands(kind, place, facts)}


def refusing(**contents) -> set[str]:
    commands = by_name(AdapterFacts(**{"model_type": "llama", "rank": 8, **contents}))
    return {name for name, item in commands.items() if not item.commands} - {"transformers serve"}


def test_a_plain_adapter_is_for_every_reader():
    commands = by_name(PLAIN)
    assert {name for name, item in commands.items() if item.commands and not item.warning} == READERS
    assert set(commands) - READERS == {"transformers serve"}


@pytest.mark.parametrize(("kind", "reader"), [("lora", "PEFT"), ("merged", "transformers")])
def test_a_classifier_is_only_for_python(kind, reader):
    place = dataclasses.replace(PLACE, auto_class="AutoModelForSequenceClassification")
    (item,) = next_commands(kind, place, PLAIN)
    assert item.consumer == reader
    assert "AutoModelForSequenceClassification.from_pretrained" in "\n".join(item.commands)


@pytest.mark.parametrize(
    ("rank", "flag"),
    [(1, None), (16, None), (17, 32), (24, 32), (32, 32), (96, 128), (257, 320), (321, 512), (512, 512)],
)
def test_vllm_gets_the_smallest_rank_that_it_accepts(rank, flag):
    (command,) = by_name(AdapterFacts("llama", rank))["vLLM"].commands
    expected = f" --max-lora-rank {flag}" if flag else ""
    assert command == f"vllm serve owner/base --enable-lora{expected} --lora-modules lora=out/lora"
    assert vllm_rank(rank) in VLLM_RANKS
    assert vllm_rank(rank) >= rank


@pytest.mark.parametrize(
    ("contents", "readers"),
    [
        ({}, set()),
        ({"rank": 513}, {"vLLM"}),
        ({"equal_ranks": False}, {"SGLang"}),
        ({"part_of_qkv": True}, {"SGLang"}),
        ({"stacked_experts": True}, {"vLLM"}),
        ({"bias": True}, {"vLLM", "llama.cpp", "MLX"}),
        ({"tokens": True}, {"vLLM", "llama.cpp", "MLX"}),
        ({"saved": ("lm_head",)}, {"vLLM", "llama.cpp", "MLX"}),
        ({"saved": ("score",)}, {"llama.cpp", "MLX"}),
        ({"head": True}, {"OpenVINO GenAI"}),
        ({"head": True, "tied": True}, {"OpenVINO GenAI", "llama.cpp", "MLX"}),
        ({"model_type": "gpt2"}, {"vLLM", "llama.cpp", "MLX"}),
        ({"embeddings": True}, {"llama.cpp"}),
    ],
)
def test_what_a_reader_does_not_read_is_a_warning(contents, readers):
    assert refusing(**contents) == readers
    for name in readers:
        warning = by_name(AdapterFacts(**{"model_type": "llama", "rank": 8, **contents}))[name].warning
        assert "does not read" in warning
        assert ("--per-expert" if contents == {"stacked_experts": True} else "--to merged") in warning


def test_what_was_not_tried_is_said():
    command = by_name(AdapterFacts("llama", 8, head=True))["vLLM"]
    assert command.commands
    assert command.warning.startswith("not tried with an update of lm_head")


def test_entries_name_known_contents():
    named = {name for consumer in CONSUMERS for name in (*consumer.refuses, *consumer.untried)}
    assert named == set(CONTENTS)


@pytest.mark.parametrize("kind", ["lora", "merged", "gguf", "mlx"])
def test_lines_fit_a_terminal_and_are_the_commands(kind):
    facts = AdapterFacts("gpt2", 600, head=True, bias=True) if kind == "lora" else None
    for item in next_commands(kind, PLACE, facts):
        lines = as_lines([item])
        assert max(map(len, lines)) <= 80
        width = len(item.consumer) + 2
        shown = "\n".join(line[width:] for line in lines if not line[width:].startswith("#"))
        assert shown.replace("\\\n", "").split() == " ".join(item.commands).split()


def test_names_with_spaces_are_quoted():
    place = Place("my out/a lora", "my base", "a lora", "my run")
    assert shlex.split(by_name(PLAIN, place)["llama.cpp"].commands[0])[2:] == [
        "my run", "--to", "gguf", "--out", "a lora.gguf"
    ]  # fmt: skip
    assert by_name(PLAIN, place)["PEFT"].commands[-1] == 'model = PeftModel.from_pretrained(base, "my out/a lora")'


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        ({}, {"target_modules": "all-linear"}, {}),
        ({}, {"target_modules": ["q_proj", "lm_head"]}, {"head": True, "part_of_qkv": True}),
        ({"tie_word_embeddings": True}, {"target_modules": ["lm_head"]}, {"head": True, "tied": True}),
        ({}, {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}, {"saved": ("lm_head",)}),
        ({"attention_bias": True}, {"target_modules": ["o_proj"], "bias": "multilora_only"}, {"bias": True}),
        ({}, {"target_modules": ["o_proj"], "trainable_token_indices": [3]}, {"tokens": True}),
        ({}, {"target_modules": ["o_proj", "up_proj"], "rank_pattern": {"o_proj": 2}}, {}),
    ],
)
def test_contents_are_read_from_the_files(tmp_path, base, options, expected):
    model = make_llama(**base)
    model.save_pretrained(tmp_path / "base")
    model = get_peft_model(model, MultiLoraConfig(r=4, num_branches=2, **options))
    randomise(model)
    folder = export_lora(model, tmp_path / "out")
    assert adapter_facts(folder, tmp_path / "base") == AdapterFacts(**{"model_type": "llama", "rank": 8, **expected})
    assert adapter_facts(folder).model_type is None


def test_the_table_imports_no_torch():
    modules = "multilora.export.servers.commands, multilora.export.servers.facts"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
