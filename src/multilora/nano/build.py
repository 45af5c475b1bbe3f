"""Make the nano base from a seed: its text, its tokenizer and its pretrained weights."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from rich.console import Console
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from multilora.nano.corpus import documents, rows

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
MAX_FILE_BYTES = 5_000_000
"""Largest weights file that a build may make: it is packaged with the library."""

DEFAULT_STEPS = 5_000

_CARD = """# nano

A tiny LLaMA base model ({parameters:,} parameters, bfloat16) with its own byte-level BPE tokenizer
({vocab} tokens, no chat template). It is the offline default of `multilora` for demonstrations and tests
and is of no use for anything else.

Made with `multilora nano build` from seed {seed}: pretrained from nothing on text that the library
generates from that seed, about word lists, stories, made-up people and sums. It has not seen the instruction
form of the four nano task families; people asked about in their eval splits are in the text.

| | |
|---|---|
| steps | {steps} |
| tokens seen | {tokens_seen:,} |
| final training loss (nats per token) | {final_loss} |
| tokens per second | {tokens_per_second:,} on {threads} CPU thread(s) |

On the same machine with the same thread count and package versions, the same seed gives the same bits.
"""


@dataclass(frozen=True)
class Recipe:
    """Sizes and settings of a build; learning rate and batch size are per optimiser step.

    `init_std` is wider than usual: at 0.02 a model this narrow attends to everything alike and stays for long on
    the plateau before it learns to copy.
    """

    vocab: int = 1280
    tokenizer_documents: int = 20_000
    hidden: int = 128
    mlp: int = 384
    layers: int = 4
    heads: int = 4
    positions: int = 512
    init_std: float = 0.08
    row_length: int = 192
    batch_rows: int = 12
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.02


def train_tokenizer(seed: int, recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the generated text that keeps digits apart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(seed), recipe.tokenizer_documents), trainer)
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
    )


def make_model(seed: int, vocab: int, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained model; the same weights for the same seed."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        initializer_range=recipe.init_std,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to a twentieth."""
    warmup = min(recipe.warmup, max(1, steps // 10))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _bar(steps: int, shown: bool) -> Iterable[int]:
    """The step numbers, with a progress bar on stderr if it is to be shown."""
    if not shown:
        return range(steps)
    console = Console(stderr=True)
    return track(range(steps), "pretraining", console=console, update_period=1.0)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    steps: int,
    recipe: Recipe,
    progress: bool,
) -> dict[str, Any]:
    """Train in place for `steps` steps; loss (nats per token) and throughput of the run.

    Weights are float32, the arithmetic is bfloat16 by autocast: with bfloat16 units that takes half the time.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    chunk = 64
    data = torch.empty(0)
    losses: list[float] = []
    model.train()
    began = time.perf_counter()
    for step in _bar(steps, progress):
        if step % chunk == 0:
            # Text is written as it is needed: the whole corpus as one tensor would be all held at once.
            count = min(chunk, steps - step) * recipe.batch_rows
            data = rows(tokenizer, seed + 1_000_003 * (step // chunk + 1), count, recipe.row_length)
        first = (step % chunk) * recipe.batch_rows
        batch = data[first : first + recipe.batch_rows]
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - began
    tokens = steps * recipe.batch_rows * recipe.row_length
    tail = losses[-50:]
    return {
        "tokens_seen": tokens,
        "final_loss": round(sum(tail) / len(tail), 4),
        "losses": {str(step): round(losses[step], 4) for step in range(0, steps, max(1, steps // 20))},
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
    }


def _write_card(folder: Path, info: dict[str, Any]) -> None:
    (folder / "README.md").write_text(_CARD.format(**info), encoding="utf-8")


def _move_in_place(made: Path, target: Path) -> None:
    """Put `made` at `target`; what was there is deleted only once the new folder stands."""
    old = made.with_name(made.name + ".old")
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    steps: int = DEFAULT_STEPS,
    progress: bool = True,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Make the nano base and put it in `out_dir`; returns what is written to its `build.json`.

    The folder is written under another name next to `out_dir` and then moved, so that a build that breaks off
    leaves an earlier model as it was. A folder that is there and is no nano model is not replaced.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    recipe = recipe or Recipe()
    target = Path(out_dir)
    if target.exists() and any(target.iterdir()) and not (target / "build.json").exists():
        raise FileExistsError(f"{target} is not empty and holds no nano model")
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed, recipe)
    model = make_model(seed, len(tokenizer), recipe)
    run = pretrain(model, tokenizer, seed=seed, steps=steps, recipe=recipe, progress=progress)
    info: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocab": len(tokenizer),
        **run,
        "threads": torch.get_num_threads(),
        "recipe": asdict(recipe),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".nano-") as scratch:
        made = Path(scratch) / "model"
        model.to(torch.bfloat16).save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "build.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        _write_card(made, info)
        size = (made / "model.safetensors").stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"the weights take {size} bytes, more than {MAX_FILE_BYTES}")
        _move_in_place(made, target)
    return info
