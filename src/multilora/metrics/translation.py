"""BLEU, chrF and ROUGE-L from their reference implementations, sacrebleu and rouge-score (`multilora[metrics]`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from multilora.errors import InputError
from multilora.example import Example, references_of
from multilora.metrics.sums import Floats, Indices, SumMetric

INSTALL = "pip install 'multilora[metrics]'"


def _bleu_sums(examples: Sequence[Example], predictions: Sequence[str], units: Indices, count: int) -> Floats:
    """The n-gram matches and n-grams of sizes 1 to 4, and the lengths of answer and reference, [count, 10]."""
    scorer = _sacrebleu().BLEU(effective_order=True)  # without it, sacrebleu warns about single sentences
    sums = np.zeros((count, 10))
    for example, prediction, unit in zip(examples, predictions, units, strict=True):
        score = scorer.sentence_score(prediction, references_of(example))
        sums[unit] += [*score.counts, *score.totals, score.sys_len, score.ref_len]
    return sums


def _bleu_of_sums(sums: Floats) -> Floats:
    compute = _sacrebleu().BLEU.compute_bleu
    values = [
        compute(row[:4], row[4:8], row[8], row[9], smooth_method="exp").score / 100
        for row in sums.astype(int).reshape(-1, 10).tolist()
    ]
    # A perfect match is 100.00000000000004.
    return np.minimum(values, 1.0).reshape(sums.shape[:-1])


# Corpus BLEU of sacrebleu with its default tokenizer (Post 2018, arXiv 1804.08771), divided by 100.
bleu = SumMetric(_bleu_sums, _bleu_of_sums, 10)


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
