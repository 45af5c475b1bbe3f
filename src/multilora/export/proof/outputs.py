"""What a model says to the prompts of a proof: logits, greedy text, loss.

This file is also a script, which `multilora.export.proof.prove` runs in a process of its own. The script reads an
export with transformers and PEFT alone, so nothing here may import multilora:

    python -P proof_outputs.py FOLDER    reads FOLDER/request.json, writes FOLDER/outputs.json and outputs.safetensors
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

POSITIONS = 16  # with logits, of each prompt; those of all positions of all prompts would need gigabytes
NEW_TOKENS = 16  # of greedy text
REQUEST_FILE, OUTPUTS_FILE, LOGITS_FILE = "request.json", "outputs.json", "outputs.safetensors"


@dataclass(frozen=True)
class Output:
    """What a model says to one prompt.

    logits: [positions, vocabulary] in float32, at the positions of `positions_of`; for a model without a vocabulary
        head, its first output
    tokens: the greedy continuation; empty if the prompt has no start to continue, or the model cannot generate
    margins: for each of these tokens, how far its logit is above that of the second best
    loss: summed over the trained tokens of the prompt, in nats; 0 without trained tokens
    trained_tokens: their number
    """

    logits: Tensor
    tokens: list[int]
    margins: list[float]
    loss: float
    trained_tokens: int


@torch.no_grad()
def outputs_of(model: Any, prompts: Sequence[Any]) -> list[Output]:
    """Run a model on prompts, one at a time.

    Args:
        model: a transformers model or a `PeftModel`; its mode (training or not) is kept
        prompts: of `multilora.export.proof.prompts`
    """
    was_training = model.training
    model.eval()
    try:
        return [_output(model, prompt.ids, prompt.start, prompt.trained) for prompt in prompts]
    finally:
        model.train(was_training)


def _output(model: Any, ids: list[int], start: int, trained: Sequence[int]) -> Output:
    tokens = torch.tensor([ids], device=model.device)
    decoder = {"decoder_input_ids": tokens} if getattr(model.config, "is_encoder_decoder", False) else {}
    output = model(input_ids=tokens, return_dict=True, **decoder)
    values = output.logits if "logits" in output else output[0]
    loss = 0.0
    if trained:
        before = torch.tensor([index - 1 for index in trained])
        targets = tokens[0, torch.tensor(trained)]
        loss = float(torch.nn.functional.cross_entropy(values[0, before].float(), targets, reduction="sum"))
    if values.shape[1] == len(ids):  # else one vector of scores per sequence
        values = values[:, positions_of(len(ids))]
    logits = values.reshape(-1, values.shape[-1]).float().cpu()
    greedy = _greedy(model, tokens[:, :start]) if start and model.can_generate() else ([], [])
    return Output(logits, *greedy, loss, len(trained))


def positions_of(length: int) -> list[int]:
    """Return the positions of a prompt whose logits are compared: evenly spaced, with the first and the last."""
    count = min(POSITIONS, length)
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]


def _greedy(model: Any, ids: Tensor) -> tuple[list[int], list[float]]:
    """Return the greedy continuation and the margin of each of its tokens."""
    result = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,  # nothing is padded, and without one transformers warns
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = [step[0].float().topk(2).values for step in result.scores]
    tokens = result.sequences[0, -len(best) :].tolist()
    return tokens, [float(first - second) for first, second in best]


@contextmanager
def float32(model: Any) -> Iterator[None]:
    """Compute in float32 within the block: cast weights and buffers in place, and back at the end.

    Nothing is lost, because every value of a 16-bit type is one of float32.
    """
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = [tensor.dtype for tensor in tensors]
    for tensor in tensors:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)


def is_quantized(model: Any) -> bool:
    """Whether the weights are quantized; such a model computes in its own precision."""
    return bool(getattr(model, "is_quantized", False))


def load_export(request: Mapping[str, Any]) -> Any:
    """Load an export as its users do.

    Args:
        request: from `multilora.export.proof.prove`
    """
    import transformers

    auto_class = getattr(transformers, request["auto_class"])
    options: dict[str, Any] = {
        "attn_implementation": request["attention"],
        "trust_remote_code": request["trust_remote_code"],
    }
    if request["kind"] == "merged":
        return auto_class.from_pretrained(request["folder"], dtype="auto", **options)
    from peft import PeftModel

    dtype = getattr(torch, request["dtype"])
    if request["quantization"] != "none":
        is_4bit = request["quantization"] == "4bit"
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if is_4bit else {}
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=is_4bit, load_in_8bit=not is_4bit, **settings
        )
        options["device_map"] = {"": request["device"]}
    base = auto_class.from_pretrained(request["base"], revision=request["revision"] or "main", dtype=dtype, **options)
    return PeftModel.from_pretrained(base, request["folder"])


def save_outputs(outputs: Sequence[Output], folder: Path) -> None:
    """Write outputs into a folder."""
    save_file({str(index): item.logits.contiguous() for index, item in enumerate(outputs)}, str(folder / LOGITS_FILE))
    values = [
        {"tokens": o.tokens, "margins": o.margins, "loss": o.loss, "trained_tokens": o.trained_tokens} for o in outputs
    ]
    (folder / OUTPUTS_FILE).write_text(json.dumps(values), encoding="utf-8")


def read_outputs(folder: Path) -> list[Output]:
    """Read what `save_outputs` wrote."""
    logits = load_file(str(folder / LOGITS_FILE))
    values = json.loads((folder / OUTPUTS_FILE).read_text(encoding="utf-8"))
    return [Output(logits[str(index)], **value) for index, value in enumerate(values)]


def answer(exchange: Path) -> None:
    """Load the export of a request, and write what it says to the prompts.

    Args:
        exchange: folder with the request, and for the outputs
    """
    request = json.loads((exchange / REQUEST_FILE).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    model = load_export(request)
    with nullcontext() if is_quantized(model) else float32(model):
        save_outputs(outputs_of(model, [SimpleNamespace(**prompt) for prompt in request["prompts"]]), exchange)


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
    if "multilora" in sys.modules:
        raise SystemExit("multilora was imported, so this proves nothing about other libraries")
