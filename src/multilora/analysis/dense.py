"""Spectra of the dense update, for adapters that are not a sum of the base weights and their own update."""

from __future__ import annotations

from multilora.analysis.spectrum import Spectrum, difference_spectrum
from multilora.errors import AdapterError
from multilora.runs.directory import Run


def dense_spectrum(run: Run) -> Spectrum:
    """Compute the singular values of merged - base for every linear layer except the output head, in float32.

    This is what training has changed, whatever the method; it needs two copies of the model in memory.

    Raises:
        AdapterError: the adapter cannot be merged into the weights.
    """
    base = run.load_base(quantized=False).float()
    model = run.load_model(quantized=False).float()
    try:
        merged = model.merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(
            f"the update of method {run.recipe.adapter.method!r} is not a change of the weights "
            f"({' '.join(str(error).split())}), so it has no spectrum"
        ) from error
    return difference_spectrum(base, merged, run.recipe.adapter.method)
