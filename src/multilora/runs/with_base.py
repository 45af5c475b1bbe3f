"""A trained model beside its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from multilora.inference.text_model import TextModel
from multilora.modeling import best_device, to_device
from multilora.saved_adapter import SavedAdapter

BASE_LABEL = "base"


def with_base(trained: TextModel, saved: SavedAdapter | None, load_base: Callable[[], Any]) -> list[TextModel]:
    """Return the base and the trained model.

    The base is the trained model with its adapter disabled where that is the same; else it is loaded.

    Args:
        trained: the adapted model, or a fully trained one
        saved: its adapter; None if it has none
        load_base: loads the base
    """
    if saved is not None and saved.base_is_unchanged:
        return [replace(trained, label=BASE_LABEL, without_adapter=True), trained]
    return [replace(trained, label=BASE_LABEL, model=to_device(load_base(), best_device())), trained]
