"""Build the nano base from a seed: text, tokenizer and pretrained weights."""

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
"""Size limit of the weights file, which is packaged with the library."""

DEFAULT_STEPS = 5_000

_CARD = """# nano

A tiny LLaMA base model ({parameters:,} parameters, bfloat16) with its own byte-level BPE tokenizer
({vocab} tokens, no chat template). It is the offline default of `multilora` for demonstrations and tests
and is not useful for anything else.

Built with `multilora nano build` from seed {seed}: pretrained from scratch on text that the library
generates from that seed, about word lists, stories, made-up people and sums. The text does not contain the
instruction form of the four nano task families. It does contain the people that the eval splits ask about.

| | |
|---|---|
| steps | {steps} |
| tokens seen | {tokens_seen:,} |
| final training loss (nats per token) | {final_loss} |
| tokens per second | {tokens_per_second:,} on {threads} CPU thread(s) |

On the same machine with the same thread count and package versions, the same seed gives the same bits.
"""


@dataclass(frozen=True)
class BuildSettings:
    """Sizes and settings of a build; learning rate and batch size are per optimizer step.

    `init_std` is larger than usual: with 0.02, a model this narrow starts with nearly uniform attention and stays on
    the loss plateau for a long time before it learns to copy.
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


def train_tokenizer(seed: int, settings: BuildSettings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the generated text; every digit is a separate token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(seed), settings.tokenizer_documents), trainer)
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=settings.positions,
        clean_up_tokenization_spaces=False,
    )


def make_model(seed: int, vocab: int, settings: BuildSettings) -> LlamaForCausalLM:
    """Return an untrained model; the seed determines its weights."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=settings.hidden,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=True,
        initializer_range=settings.init_std,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _learning_rate(step: int, steps: int, settings: BuildSettings) -> float:
    """Return the learning rate of a step: linear warmup, then cosine decay to 5 % of the peak."""
    warmup = min(settings.warmup, max(1, steps // 10))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def _step_range(steps: int, progress: bool) -> Iterable[int]:
    """Iterate over the steps, with a progress bar on stderr if `progress` is set."""
    if not progress:
        return range(steps)
    console = Console(stderr=True)
    return track(range(steps), "pretraining", console=console, update_period=1.0)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    steps: int,
    settings: BuildSettings,
    progress: bool,
) -> dict[str, Any]:
    """Train in place for `steps` steps; return the loss (nats per token) and throughput.

    Weights are float32 with bfloat16 autocast, which halves the time on CPUs with bfloat16 instructions.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
    )
    chunk = 64
    data = torch.empty(0)
    losses: list[float] = []
    model.train()
    start = time.perf_counter()
    for step in _step_range(steps, progress):
        if step % chunk == 0:
            # Generate text in chunks, so that the corpus is never in memory as a whole.
            count = min(chunk, steps - step) * settings.batch_rows
            data = rows(tokenizer, seed + 1_000_003 * (step // chunk + 1), count, settings.row_length)
        first = (step % chunk) * settings.batch_rows
        batch = data[first : first + settings.batch_rows]
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps, settings)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    tokens = steps * settings.batch_rows * settings.row_length
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


def _replace(target: Path, source: Path) -> None:
    """Move `source` to `target`; delete the previous folder only after the move."""
    old = source.with_name(source.name + ".old")
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    steps: int = DEFAULT_STEPS,
    progress: bool = True,
    settings: BuildSettings | None = None,
) -> dict[str, Any]:
    """Build the nano base in `out_dir` and return the content of its `build.json`.

    The model is written to a temporary folder next to `out_dir` and then moved, so an interrupted build leaves an
    existing model unchanged.

    Raises:
        ValueError: `steps` is below 1, or the weights file is larger than `MAX_FILE_BYTES`.
        FileExistsError: `out_dir` is not empty and does not contain a nano model.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    settings = settings or BuildSettings()
    target = Path(out_dir)
    if target.exists() and any(target.iterdir()) and not (target / "build.json").exists():
        raise FileExistsError(f"{target} is not empty and is no nano model; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed, settings)
    model = make_model(seed, len(tokenizer), settings)
    run = pretrain(model, tokenizer, seed=seed, steps=steps, settings=settings, progress=progress)
    info: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocab": len(tokenizer),
        **run,
        "threads": torch.get_num_threads(),
        "recipe": asdict(settings),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".nano-") as scratch:
        folder = Path(scratch) / "model"
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "build.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        _write_card(folder, info)
        size = (folder / "model.safetensors").stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(
                f"the weights file has {size} bytes, expected at most {MAX_FILE_BYTES}; use a smaller model"
            )
        _replace(target, folder)
    return info
