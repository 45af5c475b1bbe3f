"""A trained model beside its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from multilora.inference.prompts import Prompts
from multilora.inference.text_model import TextModel
from multilora.initialise import base_weights_in, read_weights
from multilora.modeling import best_device, to_device
from multilora.saved_adapter import SavedAdapter

BASE_LABEL = "base"


def with_base(
    trained: TextModel, saved: SavedAdapter | None, load_base: Callable[[], Any], prompts: Prompts | None = None
) -> list[TextModel]:
    """Return the base and the trained model.

    The base is the trained model with its adapter disabled where that is the same; else it is loaded.

    Args:
        trained: the adapted model, or a fully trained one
        saved: its adapter; None if it has none
        load_base: loads the base
        prompts: of a base that is loaded; by default those of the trained model
    """
    if saved is not None and saved.base_is_unchanged and not base_weights_in(read_weights(saved), trained.model):
        return [replace(trained, label=BASE_LABEL, without_adapter=True), trained]
    base = to_device(load_base(), best_device())
    return [replace(trained, label=BASE_LABEL, model=base, prompts=prompts or trained.prompts), trained]
