"""Generate responses to many prompts: greedy or sampled, batched, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from multilora.data.collate import pad_token_id
from multilora.errors import InputError, RunError
from multilora.evaluation.generation.decoding import Choose, Decoder, Forward
from multilora.evaluation.generation.fallback import cache_bytes_per_token, plain_generate
from multilora.evaluation.generation.sampling import chooser, draws
from multilora.evaluation.generation.stops import OnText, Row, Stops, StreamedStops
from multilora.evaluation.requests import Generation
from multilora.evaluation.share_out import is_sharded
from multilora.progress import Advance

# On a CPU, keys and values take at most as much memory as the model's weights, or this many bytes. With a model of 6
# layers in float32, times are flat from 8192 tokens per batch, and from 512 per pass over prompts.
CPU_CACHE_BYTES = 2**24
CPU_BATCH_TOKENS = 16384
CPU_PREFILL_TOKENS = 512
GPU_PREFILL_TOKENS = 8192
# Part of the free memory for keys and values. The rest is for activations and for copies while rows come and go.
GPU_CACHE_SHARE = 0.4
GPU_MOST_BATCH_TOKENS = 2**19


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Collection[int],
    stop_strings: Sequence[str] = (),
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    batch_tokens: int | None = None,
    on_text: OnText | None = None,
    advance: Advance,
) -> list[Generation]:
    """Generate a response to every prompt.

    How prompts are batched does not affect the results, except for rounding: in low precision, nearly equal logits may
    be ordered differently.

    With several processes that each have a complete model, the prompts are shared out, and every process returns all
    results. If the model is sharded over the processes (FSDP2, ZeRO-3, tensor parallelism), they work through all
    prompts together, since each takes part in every forward pass; the tokens are those that the first process chose.

    Args:
        model: a causal language model; its mode (training or not) is left as it is
        tokenizer: of the model
        prompts: token ids, none empty
        stop_ids: tokens that end a response
        stop_strings: texts that end a response and are not part of it
        max_new_tokens: maximum tokens per response, for all prompts or for each
        temperature: 0 for greedy decoding
        top_p: sample from the most likely tokens that together have this probability; 1 for all
        top_k: sample from this many most likely tokens; 0 for all
        repetition_penalty: more than 1 makes tokens of the prompt and of the response so far less likely, 1 leaves them
            (https://arxiv.org/abs/1909.05858)
        seed: the random numbers for a prompt depend on this and on its index only
        batch_tokens: maximum size of a batch: prompts x (tokens of the longest + tokens it may still generate); None
            to choose by device
        on_text: called with the index of a prompt, the next part of its response as soon as that is certain, and
            whether it is the last part
        advance: called with the number of finished prompts

    Raises:
        InputError: a prompt is empty, or an option is out of range.
        RunError: the device has too little memory for one prompt, or another process failed.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(prompts, limits, temperature, top_p, top_k, repetition_penalty, batch_tokens)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    sharded = is_sharded(model)
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    share = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    if world > 1 and not sharded:
        share = share[dist.get_rank() :: world]
    rows = []
    for index in share:
        random_numbers = draws(seed, index, limits[index]) if temperature > 0 else []
        rows.append(Row(index, list(prompts[index]), len(prompts[index]), limits[index], random_numbers))
    choose = chooser(temperature, top_p, top_k, repetition_penalty, agree=sharded and world > 1)
    if on_text is None:
        stops = Stops(tokenizer, stop_ids, stop_strings)
    else:
        stops = StreamedStops(tokenizer, stop_ids, stop_strings, on_text)
    done = 0

    def finished(count: int) -> None:  # the shares are equal, so this process's progress is that of all
        nonlocal done
        before, done = done, done + count
        advance(done * len(prompts) // len(share) - before * len(prompts) // len(share))

    with _eval_mode(model):
        if world == 1 or sharded:
            _run(model, tokenizer, rows, choose, stops, batch_tokens, finished, sharded)
        else:
            rows = _all_rows(
                lambda: _run(model, tokenizer, rows, choose, stops, batch_tokens, finished, sharded), rows, world
            )
            if not share:
                advance(len(prompts))
    results = {row.index: row.result for row in rows}
    return [result for index in range(len(prompts)) if (result := results[index]) is not None]


def _check(
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
    batch_tokens: int | None,
) -> None:
    if len(limits) != len(prompts):
        raise InputError(f"max_new_tokens has {len(limits)} numbers for {len(prompts)} prompts; give one for each")
    empty = [index for index, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise InputError(f"prompt {empty[0]} has no tokens; start prompts with the tokenizer's BOS token")
    expected = {
        "max_new_tokens": (min(limits, default=1), min(limits, default=1) >= 1, "at least 1"),
        "temperature": (temperature, temperature >= 0, "0 (greedy) or more"),
        "top_p": (top_p, 0 < top_p <= 1, "more than 0 and at most 1"),
        "top_k": (top_k, top_k >= 0, "0 (all tokens) or more"),
        "repetition_penalty": (repetition_penalty, repetition_penalty > 0, "1 (none) or more"),
        "batch_tokens": (batch_tokens, batch_tokens is None or batch_tokens >= 1, "at least 1, or None"),
    }
    problems = [f"{name} is {value}; use {range_}" for name, (value, valid, range_) in expected.items() if not valid]
    if problems:
        raise InputError("; ".join(problems))


def _run(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    choose: Choose,
    stops: Stops,
    batch_tokens: int | None,
    finished: Callable[[int], None],
    sharded: bool,
) -> None:
    """Set the result of every row."""
    if not rows:
        return
    pad = pad_token_id(tokenizer)
    forward = Forward(model, pad)
    gpu = forward.device.type == "cuda"
    size = cache_bytes_per_token(model, forward, rows[0].ids)
    if sharded and dist.is_initialized():  # all processes must go on in the same way
        decision = [size]
        dist.broadcast_object_list(decision, 0)
        size = decision[0]
    if batch_tokens is None:
        batch_tokens = _gpu_batch_tokens(size, sharded) if gpu and size else _cpu_batch_tokens(model, size)
    if size is None:
        plain_generate(
            model, rows, choose, stops, pad=pad, batch_tokens=batch_tokens, finished=finished, sharded=sharded
        )
        return
    prefill_tokens = GPU_PREFILL_TOKENS if gpu else CPU_PREFILL_TOKENS
    Decoder(
        forward,
        choose,
        stops,
        batch_tokens=batch_tokens,
        prefill_tokens=prefill_tokens,
        finished=finished,
        halve=not sharded,
    ).run(rows)


def _cpu_batch_tokens(model: Any, bytes_per_token: int | None) -> int:
    if not bytes_per_token:
        return CPU_BATCH_TOKENS
    weights: int = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return min(CPU_BATCH_TOKENS, max(1, max(weights, CPU_CACHE_BYTES) // bytes_per_token))


def _gpu_batch_tokens(bytes_per_token: int, sharded: bool) -> int:
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    tokens = max(1, min(int(GPU_CACHE_SHARE * free) // bytes_per_token, GPU_MOST_BATCH_TOKENS))
    if sharded and dist.is_initialized():
        smallest = torch.tensor(tokens, device="cuda")
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        tokens = int(smallest)
    return tokens


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _all_rows(work: Callable[[], None], rows: Sequence[Row], world: int) -> list[Row]:
    """Do this process's work; return the rows of all processes.

    An error here or in another process is raised in all of them, so that none waits for the others forever.
    """
    failure: Exception | None = None
    try:
        work()
    except Exception as error:
        failure = error
    answers: list[Any] = [None] * world
    dist.all_gather_object(answers, (None if failure is None else f"{type(failure).__name__}: {failure}", list(rows)))
    if failure is not None:
        raise failure
    for rank, (problem, _) in enumerate(answers):
        if problem is not None:
            raise RunError(f"process {rank} failed while generating: {problem}")
    return [row for _, process_rows in answers for row in process_rows]
