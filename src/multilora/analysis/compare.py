"""Analyse one or several updates in one pass, with one layer of each in memory, and compare them pairwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from multilora.analysis.intruders import THRESHOLD, TOP, IntruderMeasures, intruder_dimensions
from multilora.analysis.sources import UpdateSource
from multilora.analysis.spectrum import MatrixSpectrum, Spectrum, spectrum_of_update
from multilora.analysis.subspace import MatrixSimilarity, similarity
from multilora.analysis.update import Decomposition, Update
from multilora.errors import AdapterError, InputError
from multilora.progress import progress


@dataclass(frozen=True)
class Options:
    """What is computed.

    intruders: also find intruder dimensions, which takes two dense decompositions per matrix
    top, threshold: see `multilora.analysis.intruders`
    randomised: number of singular values of a dense update to compute at random, None for an exact decomposition
    """

    intruders: bool = False
    top: int = TOP
    threshold: float = THRESHOLD
    randomised: int | None = None

    def __post_init__(self) -> None:
        if self.top < 1 or not 0 <= self.threshold <= 1 or (self.randomised is not None and self.randomised < 1):
            raise InputError(
                f"top is {self.top}, threshold {self.threshold} and randomised {self.randomised}; expected at least 1, "
                "0 to 1, and at least 1"
            )


@dataclass(frozen=True)
class Similarity:
    """The similarity of two updates, matrix by matrix.

    first, second: their labels
    matrices: those that both change
    """

    first: str
    second: str
    matrices: list[MatrixSimilarity]

    def by_kind(self) -> dict[str, list[MatrixSimilarity]]:
        """Group the matrices by module type, in order of appearance."""
        groups: dict[str, list[MatrixSimilarity]] = {}
        for matrix in self.matrices:
            groups.setdefault(matrix.kind, []).append(matrix)
        return groups

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        matrices = [{**asdict(item), "kind": item.kind, "layer": item.layer} for item in self.matrices]
        return {"first": self.first, "second": self.second, "matrices": matrices}


@dataclass(frozen=True)
class Analysis:
    """What the updates of several models are, and how similar.

    spectra: label -> spectrum
    similarities: of the compared pairs
    notes: what is missing, and why
    """

    spectra: dict[str, Spectrum]
    similarities: list[Similarity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def methods(self) -> dict[str, str]:
        """Label -> method."""
        return {label: spectrum.method for label, spectrum in self.spectra.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "spectra": {label: spectrum.as_dict() for label, spectrum in self.spectra.items()},
            "similarities": [item.as_dict() for item in self.similarities],
            "notes": self.notes,
        }


def analyze_updates(
    sources: Sequence[UpdateSource], pairs: Sequence[tuple[str, str]] = (), options: Options | None = None
) -> Analysis:
    """Compute the spectra of several updates, and the similarity of pairs.

    Args:
        sources: with different labels, of models with the same base
        pairs: labels of those to compare
        options: what is computed

    Raises:
        InputError: two sources have the same label, or matrices of different shapes.
        AdapterError: an update cannot be computed, or the base is missing for what was asked.
    """
    options = options or Options()
    labels = [source.label for source in sources]
    if len(set(labels)) < len(labels):
        raise InputError(f"{', '.join(labels)}: a model is given twice; give each once")
    spectra: dict[str, list[MatrixSpectrum]] = {label: [] for label in labels}
    similar: dict[tuple[str, str], list[MatrixSimilarity]] = {pair: [] for pair in pairs}
    names = list(dict.fromkeys(name for source in sources for name in source.names))
    known = {source.label: set(source.names) for source in sources}
    with progress("analysing", len(names)) as advance:
        for name in names:
            found: dict[str, dict[str, Decomposition]] = {}
            for source in sources:
                if name not in known[source.label]:
                    continue
                found[source.label] = {}
                for update in source.read(name):
                    values = update.decompose(vectors=bool(pairs), randomised=options.randomised)
                    spectra[source.label].append(spectrum_of_update(update, values, _intruders(update, options)))
                    found[source.label][update.name] = values
            for pair in pairs:
                first, second = (found.get(label, {}) for label in pair)
                similar[pair] += _similarities(pair, first, second)
            advance()
    methods = {source.label: source.method for source in sources}
    spectrums = {label: Spectrum(methods[label], matrices) for label, matrices in spectra.items()}
    similarities = [Similarity(*pair, matrices) for pair, matrices in similar.items()]
    return Analysis(spectrums, similarities, list(_notes(sources, similarities)))


def _intruders(update: Update, options: Options) -> IntruderMeasures | None:
    if not options.intruders:
        return None
    if update.weight is None:
        raise AdapterError(
            f"{update.name}: intruder dimensions need the weights of the base, which are not on this machine or not in "
            "safetensors files; give a base with --base"
        )
    return intruder_dimensions(update.weight, update.matrix(), top=options.top, threshold=options.threshold)


def _similarities(
    pair: tuple[str, str], first: dict[str, Decomposition], second: dict[str, Decomposition]
) -> Iterable[MatrixSimilarity]:
    for name in first:
        if name not in second:
            continue
        shapes = [
            (len(item.left), len(item.right))
            for item in (first[name], second[name])
            if item.left is not None and item.right is not None
        ]
        if len(set(shapes)) > 1:
            raise InputError(
                f"{name} is {list(shapes[0])} in {pair[0]} and {list(shapes[1])} in {pair[1]}; compare models with the "
                "same base"
            )
        result = similarity(name, first[name], second[name])
        if result is not None:
            yield result


def _notes(sources: Sequence[UpdateSource], similarities: Sequence[Similarity]) -> Iterable[str]:
    for source in sources:
        if getattr(source, "weights", source) is None:
            yield f"{source.label}: without its base on this machine, norms relative to the base are not known"
    for item in similarities:
        if not item.matrices:
            yield f"{item.first} and {item.second} change no matrix both, so they are not compared"
