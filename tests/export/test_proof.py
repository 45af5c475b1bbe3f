"""The proof of an export: read by stock libraries in another process, compared on the prompts of every task."""

from __future__ import annotations

import dataclasses
import math
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import make_llama
from safetensors.torch import load_file, save_file

import multilora
from multilora import export_lora
from multilora.errors import RunError
from multilora.export.lora.export_lora import write_lora
from multilora.export.proof import outputs as proof_outputs
from multilora.export.proof import prove as proof_module
from multilora.export.proof.compare import compare
from multilora.export.proof.outputs import Output, outputs_of
from multilora.export.proof.prompts import Prompt, random_prompts, run_prompts
from multilora.export.proof.prove import prove, reference_outputs
from multilora.export.proof.result import TABLE_COLUMNS, factor_proof, table_rows
from multilora.export.sources.source import open_source

LEARN = ["training.max_steps=10", "training.learning_rate=0.05"]
VOCABULARY = 50


@pytest.fixture
def run(recipe):
    return multilora.train(recipe, LEARN)


def random_output(**changes) -> Output:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(Output(logits, [5, 6, 7], [1.0, 2e-4, 3.0], 2.0, 4), **changes)


def compared(output: Output, reference: Output, tolerance: float = 1e-3):
    prompt = Prompt("task 'a', example 0", list(range(4)), "a", 2, (2, 3))
    return compare([output], [reference], [prompt], tolerance, "Why", "a reader")


def test_an_export_is_read_by_another_process(run, tmp_path, new_process):
    proof = write_lora(open_source(run), tmp_path / "out").proof
    assert proof.reader == f"transformers {version('transformers')}, PEFT {version('peft')}"
    assert [row.task for row in proof.rows] == ["even", "echo"]
    assert proof.total.prompts == proof.total.texts == proof.total.equal_texts == 6
    assert proof.difference <= proof.tolerance
    for row in [*proof.rows, proof.total]:
        assert row.exported_loss == pytest.approx(row.loss, abs=1e-5)


def test_other_and_damaged_files_are_found(run, tmp_path):
    folder = export_lora(run, tmp_path / "out")
    prompts = run_prompts(run)
    reference = reference_outputs(run.load_model(), prompts)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: 1.5 * value for name, value in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"by [\d.]+ in a logit \(task '\w+', example \d, position \d+.*--to merged"):
        prove(folder, "lora", run.recipe.model, prompts, reference)
    file.write_bytes(b"no weights")
    with pytest.raises(RunError, match=r"cannot load the exported adapter \(.*nothing was written"):
        prove(folder, "lora", run.recipe.model, prompts, reference)


def test_a_script_that_imports_this_package_proves_nothing(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    source = Path(proof_outputs.__file__).read_text()
    script.write_text(source.replace("    answer(Path(sys.argv[1]))", "    import multilora"))
    monkeypatch.setattr(proof_outputs, "__file__", str(script))
    assert "proves nothing" in original_run_script(tmp_path)


original_run_script = proof_module._run_script


def test_a_killed_process_is_named(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(proof_outputs, "__file__", str(script))
    assert "ended by signal 9; is there enough memory" in original_run_script(tmp_path)


def test_the_loss_is_that_of_the_model():
    model = make_llama()
    ids = torch.arange(3, 27)
    labels = torch.where(torch.arange(24) >= 9, ids, -100)
    prompt = Prompt("a", ids.tolist(), "a", 9, tuple(range(9, 24)))
    (output,) = outputs_of(model, [prompt])
    with torch.no_grad():
        expected = model(ids[None], labels=labels[None]).loss
    assert output.loss / output.trained_tokens == pytest.approx(float(expected), rel=1e-5)


def test_greedy_text_is_that_of_generate_and_its_margins_are_leads():
    model = make_llama()
    (output,) = outputs_of(model, random_prompts(320, 256)[:1])
    ids = torch.tensor([random_prompts(320, 256)[0].ids[:16]])
    for token, margin in zip(output.tokens, output.margins, strict=True):
        with torch.no_grad():
            best = model(ids).logits[0, -1].topk(2)
        assert best.indices[0] == token
        assert margin == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-4)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert len(output.tokens) == proof_outputs.NEW_TOKENS or output.tokens[-1] == model.generation_config.eos_token_id


@pytest.mark.parametrize("positions", [8, 20, 32, None])
def test_greedy_text_ends_within_the_positions_of_the_model(positions):
    for prompt in random_prompts(320, positions):
        assert prompt.start == 0 or positions is None or prompt.start + proof_outputs.NEW_TOKENS <= positions


def test_equal_outputs_are_equal():
    proof = compared(random_output(), random_output())
    assert (proof.difference, proof.total.equal_texts, proof.total.near_ties) == (0, 1, 0)
    assert proof.total.loss == proof.total.exported_loss == 0.5
    (row,) = table_rows(proof)
    assert row == ["a", "1", "0.0e+00", "1 of 1", "0.5000", "0.5000", "+0.0e+00"]
    assert len(row) == len(TABLE_COLUMNS)


def test_a_reward_model_has_one_logit():
    reward = random_output(logits=torch.tensor([[2.0]]))
    assert compared(reward, reward).tolerance == pytest.approx(2e-3)


def test_a_near_tie_is_counted():
    proof = compared(random_output(tokens=[5, 9, 9]), random_output())
    assert (proof.total.texts, proof.total.equal_texts, proof.total.near_ties) == (1, 0, 1)
    assert table_rows(proof)[0][3] == "0 of 1, 1 tie"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"logits": random_output().logits + 0.01},
            r"by 0.01 in a logit \(task 'a', example 0, position \d, output \d+",
        ),
        ({"logits": torch.full((4, VOCABULARY), math.nan)}, "by inf in a logit"),
        ({"tokens": [9, 6, 7]}, "greedy texts part at token 0 .* leads by 1, expected at most"),
        ({"tokens": [5, 6, 9]}, "greedy texts part at token 2"),
        ({"tokens": [5, 6]}, "greedy texts part at token 2 .* leads by inf"),
        ({"tokens": [5, 6, 7, 8]}, "greedy texts part at token 3"),
        ({"loss": 2.1}, "by 0.025 in the loss per token"),
        ({"loss": math.nan}, "by nan in the loss per token"),
    ],
)
def test_what_exceeds_the_tolerance_is_an_error(changes, message):
    with pytest.raises(RunError, match=rf"the export differs from the original: .*{message}.*Why; nothing was written"):
        compared(random_output(**changes), random_output())


def test_factors_that_were_read_back():
    assert "any value of 7 factors" in str(factor_proof(7, 0.0, 1e-6, "gguf 0.1"))
    with pytest.raises(RunError, match="by nan in a factor"):
        factor_proof(7, math.nan, 1e-6, "gguf 0.1")
