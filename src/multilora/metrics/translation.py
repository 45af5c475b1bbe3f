"""BLEU, chrF and ROUGE-L from their reference implementations, sacrebleu and rouge-score (`multilora[metrics]`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from multilora.errors import InputError
from multilora.example import Example, references_of

INSTALL = "pip install 'multilora[metrics]'"


def bleu(examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu with its default tokenizer (Post 2018, arXiv 1804.08771), divided by 100."""
    score: float = _sacrebleu().corpus_bleu(list(predictions), _reference_streams(examples)).score
    return min(score / 100, 1.0)  # a perfect match is 100.00000000000004


def chrf(examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """Corpus chrF of sacrebleu (Popović 2015), divided by 100."""
    score: float = _sacrebleu().corpus_chrf(list(predictions), _reference_streams(examples)).score
    return min(score / 100, 1.0)


def rouge_l(references: Sequence[str], prediction: str) -> float:
    """ROUGE-L F-measure of rouge-score with stemming, the best over references (Lin 2004)."""
    score: float = _rouge_scorer().score_multi(list(references), prediction)["rougeL"].fmeasure
    return score


def _reference_streams(examples: Sequence[Example]) -> list[list[str | None]]:
    """The references in sacrebleu's format: list k has the k-th reference of every example, or None."""
    references = [references_of(example) for example in examples]
    width = max(len(texts) for texts in references)
    return [[texts[k] if k < len(texts) else None for texts in references] for k in range(width)]


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise InputError(f"BLEU and chrF need sacrebleu; {INSTALL}") from None
    return sacrebleu


@functools.cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError(f"ROUGE needs rouge-score; {INSTALL}") from None
    return RougeScorer(["rougeL"], use_stemmer=True)
