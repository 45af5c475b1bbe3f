"""Questions with the answers of the base and of the trained model side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from multilora.evaluation.samples import Sample, read_samples
from multilora.report.page import Answer, Example

# Per task: of those that became right, those that became wrong, and others.
SHOWN = 2
LONGEST = 3000  # characters of a text

Pair = tuple[Sample, Sample]


def read_pairs(before: Path, after: Path) -> dict[str, list[Pair]]:
    """Task -> the examples that both models have answered.

    Raises:
        DataError: a file is missing or damaged.
    """
    first = {(sample.task, sample.index, sample.prompt_hash): sample for sample in read_samples(before)}
    tasks: dict[str, list[Pair]] = {}
    for sample in read_samples(after):
        other = first.get((sample.task, sample.index, sample.prompt_hash))
        if other is not None:
            tasks.setdefault(sample.task, []).append((other, sample))
    return tasks


def shown_pairs(pairs: Sequence[Pair]) -> list[tuple[str, Pair]]:
    """A few examples of every kind, with the kind in words; always the same ones."""
    shown: list[tuple[str, Pair]] = []
    for kind in ("became right", "became wrong", "unchanged"):
        of_kind = (pair for pair in pairs if _kind(pair) == kind)
        shown += [(kind, pair) for pair in islice(of_kind, SHOWN)]
    return shown


def _kind(pair: Pair) -> str:
    if pair[0].is_wrong == pair[1].is_wrong or pair[1].item_score is None:
        return "unchanged"
    return "became right" if pair[0].is_wrong else "became wrong"


def examples(
    shown: Iterable[tuple[str, Pair]], token_losses: Mapping[tuple[str, int], Mapping[str, list[tuple[str, float]]]]
) -> list[Example]:
    """The blocks of a page.

    Args:
        shown: from `shown_pairs`
        token_losses: (task, index) -> `before` and `after` -> tokens of the correct answer with their losses
    """
    blocks = []
    for kind, (before, after) in shown:
        reference = " or ".join(dict.fromkeys(after.references)) or "none is given"
        losses = token_losses.get((after.task, after.index), {})
        answers = [_answer(who, sample, losses.get(who, [])) for who, sample in (("before", before), ("after", after))]
        blocks.append(Example(kind, _cut(after.prompt), _cut(reference), answers))
    return blocks


def _answer(who: str, sample: Sample, tokens: list[tuple[str, float]]) -> Answer:
    text = sample.prediction or "(no answer)"
    parts = [] if sample.item_score is None else [f"score {sample.item_score:g}"]
    if sample.reference_nats is not None and sample.reference_tokens:
        loss = sample.reference_nats / sample.reference_tokens
        parts.append(f"loss of the correct answer {loss:.2f} nats per token")
    return Answer(who, _cut(text), ", ".join(parts), tokens)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"
