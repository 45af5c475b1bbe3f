"""What every PEFT method can do in a run: `python tests/training/method_table.py > docs/methods.md`."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from conftest import REPOSITORY, make_llama, make_tokenizer, numbered, write_jsonl
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, TrainerCallback

import multilora
from multilora.errors import AdapterError
from multilora.methods import config_classes, unsupported_methods

DOCUMENT = REPOSITORY / "docs" / "methods.md"
PINNED_PEFT = next(
    line.partition("==")[2]
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("peft==")
)
STEPS = ("trains", "evaluates", "merges", "analyses", "exports to LoRA")
# Options that have no default, or whose default does not fit a model of width 32.
OPTIONS: dict[str, dict[str, Any]] = {
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 1},
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 100},
    "miss": {"r": 8},
    "psoft": {"r": 4},
    "road": {"group_size": 16},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": list(range(3, 320))},
    "vblora": {"vector_length": 16, "num_vectors": 32},
    "waveft": {"n_frequency": 100},
}
NEEDS = {"adamss": "sklearn"}  # packages that multilora does not install
TOLERANCE = 1e-4  # of logits in float32

PROMPTS = torch.arange(3, 35).reshape(2, 16)


@dataclass
class Row:
    """One line of the table."""

    method: str
    works: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        options = OPTIONS.get(self.method, {})
        shown = ", ".join(f"{key}: {_short(value)}" for key, value in options.items())
        cells = [{True: "yes", False: "no"}.get(self.works.get(step), "–") for step in STEPS]
        return f"| {' | '.join([f'`{self.method}`', *cells, f'`{shown}`' if shown else '', '; '.join(self.notes)])} |"


def _short(value: Any) -> str:
    return f"[{value[0]}, ..., {value[-1]}]" if isinstance(value, list) else str(value)


def logits_of(model: Any, **inputs: Any) -> torch.Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits.clone()
    model.train(training)
    return logits


class _Trained(TrainerCallback):
    """Records the logits of the trained model, before it is saved."""

    logits: torch.Tensor

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.logits = logits_of(model, input_ids=PROMPTS)


def recipe_for(method: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Write a base and two small tasks to a folder; returns a recipe with them."""
    base = folder / "base"
    if not base.is_dir():
        make_llama().save_pretrained(base)
        make_tokenizer().save_pretrained(base)
        write_jsonl(folder / "choice.jsonl", numbered({"question": "is it even", "answer": "yes"}, 20))
        write_jsonl(folder / "text.jsonl", numbered({"question": "say one", "answer": "one two"}, 20))
    tasks = [
        {"name": name, "path": str(folder / f"{name}.jsonl"), "prompt": "{{ question }}?", "response": "{{ answer }}"}
        for name in ("choice", "text")
    ]
    return {
        "model": {"name_or_path": str(base), "dtype": "float32"},
        "adapter": {"method": method, **options},
        "tasks": [tasks[0] | {"choices": ["yes", "no"]}, tasks[1]],
        "data": {"max_length": 64, "packing": False},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.05, "logging_steps": 1},
        "evaluation": {"max_new_tokens": 4, "max_examples": 4},
        "output_dir": str(folder / "run"),
    }


def dependence_on_other_tokens(model: Any) -> float:
    """The largest change of a logit when padding, or another example in a packed row, is put before an example."""
    first, second = PROMPTS[:1, :7], PROMPTS[1:, :9]
    alone = logits_of(model, input_ids=second)
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    packed = logits_of(model, input_ids=torch.cat([first, second], 1), position_ids=positions, use_cache=False)
    mask = torch.cat([torch.zeros(1, 5), torch.ones(1, 9)], 1).long()
    padded = logits_of(
        model,
        input_ids=torch.cat([torch.zeros(1, 5).long(), second], 1),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
    )
    return max(float((logits[:, -9:] - alone).abs().max()) for logits in (packed, padded))


def examine(method: str, folder: Path) -> Row:
    """Train, reload, evaluate, merge, analyze and export one method.

    Raises:
        AssertionError: a step has a wrong result. Steps that are refused are recorded in the row.
        Exception: a step fails with anything but a clear error.
    """
    row = Row(method)
    if method in unsupported_methods():
        row.works["trains"] = False
        row.notes.append(unsupported_methods()[method])
        return row
    if method in NEEDS and importlib.util.find_spec(NEEDS[method]) is None:
        row.notes.append(f"not tested; needs {NEEDS[method]}")
        return row
    trained = _Trained()
    run = multilora.train(recipe_for(method, folder, **OPTIONS.get(method, {})), callbacks=[trained])
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses)), losses
    assert not torch.allclose(trained.logits, logits_of(make_llama(), input_ids=PROMPTS), atol=TOLERANCE)
    model = run.load_model()
    assert_same(logits_of(model, input_ids=PROMPTS), trained.logits, "the reloaded model is not the trained one")
    row.works["trains"] = True

    scores = multilora.evaluate(run)
    for task, after in scores.after.items():
        assert math.isfinite(after.loss), (task, after)
        assert after.loss != scores.before[task].loss, (task, after)
    assert dependence_on_other_tokens(model) < TOLERANCE
    prompt: dict[str, Any] = {
        "input_ids": PROMPTS[:1, :5],
        "attention_mask": torch.ones(1, 5).long(),
        "max_new_tokens": 8,
        "do_sample": False,
    }
    assert torch.equal(model.generate(**prompt, use_cache=True), model.generate(**prompt, use_cache=False))
    row.works["evaluates"] = True

    merged = None
    with _refused(row, "merges"):
        merged = AutoModelForCausalLM.from_pretrained(multilora.export_merged(run, folder / "merged")).eval()
        assert_same(logits_of(merged, input_ids=PROMPTS), trained.logits, "the merged model is not the trained one")
    with _refused(row, "analyses"):
        spectrum = multilora.analyze(run)
        assert spectrum.mean()["norm"] > 0
        if merged is not None:
            _assert_spectrum_of_difference(spectrum, merged)
    with _refused(row, "exports to LoRA", note=False):
        exported = AutoPeftModelForCausalLM.from_pretrained(multilora.export_lora(run, folder / "lora")).eval()
        assert_same(logits_of(exported, input_ids=PROMPTS), trained.logits, "the LoRA is not the trained adapter")
    return row


def assert_same(logits: torch.Tensor, expected: torch.Tensor, problem: str) -> None:
    difference = float((logits - expected).abs().max())
    assert difference < TOLERANCE, f"{problem}: logits differ by {difference}"


def _assert_spectrum_of_difference(spectrum: Any, merged: Any) -> None:
    before, after = dict(make_llama().named_parameters()), dict(merged.named_parameters())
    for matrix in spectrum.matrices:
        name = f"{matrix.name}.weight"
        dense = torch.linalg.svdvals((after[name].double() - before[name].double()).detach())
        values = torch.zeros_like(dense)
        values[: len(matrix.singular_values)] = torch.tensor(matrix.singular_values, dtype=torch.float64)
        torch.testing.assert_close(values, dense, rtol=1e-3, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


@contextlib.contextmanager
def _refused(row: Row, step: str, note: bool = True) -> Any:
    """Record whether a step works; only an `AdapterError` counts as a refusal."""
    try:
        yield
        row.works[step] = True
    except AdapterError as error:
        row.works[step] = False
        if note:
            cause = error.__cause__
            if isinstance(cause, AttributeError):  # it lacks the methods that merge
                reason = "PEFT cannot merge it"
            else:
                reason = str(cause or error).partition(f"method {row.method!r} adapts")[1:]
                reason = f"adapts{reason[1]}" if reason[0] else str(cause or error)
            row.notes.append(f"{step}: {re.split('[.;] ', reason)[0].rstrip('.')}")


def document(rows: list[Row]) -> str:
    """The content of docs/methods.md."""
    return f"""# PEFT methods

<!-- Generated with peft {PINNED_PEFT} by `python tests/training/method_table.py > docs/methods.md` -->

`adapter.method` in a recipe names a PEFT method; the other keys of `adapter:` are the fields of its config. The table
is the result of a test (`make test-slow`), which runs every method of peft {PINNED_PEFT} on a tiny LLaMA in float32:

- **trains**: the loss is finite, the model changes, and the reloaded model has the logits of the trained one
- **evaluates**: scores are finite and change, an example's logits do not depend on padding or on other examples in its
  row, and generation with a cache equals generation without
- **merges**: the model written by `export --to merged` has the logits of the trained one
- **analyses**: the singular values are those of the merged weights minus the base weights
- **exports to LoRA**: stock PEFT loads the export as a LoRA with the same logits. Methods that are not low-rank factors
  can only be merged

A method that does not train or evaluate is refused when the recipe is loaded; a step marked "no" raises a clear error.
Single options can be refused too, such as `layer_replication` of `lora`. Most methods adapt all linear layers unless
`target_modules` is set; `adaption_prompt`, `ia3`, `ln_tuning`, `shadow` and `trainable_tokens` use PEFT's choice for
the model. "options" are those that the test sets; most are needed only because its model is so small.

| method | {" | ".join(STEPS)} | options | notes |
|---|{"---|" * (len(STEPS) + 2)}
{chr(10).join(map(str, rows))}
"""


def main() -> None:
    import logging

    logging.disable(logging.WARNING)
    rows = []
    for method in sorted(config_classes()):
        print(method, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(examine(method, Path(folder)))
    print(document(rows), end="")


if __name__ == "__main__":
    main()
