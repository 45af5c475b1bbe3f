"""The size of a vocabulary: a tokenizer fits its model, and a base is resized to an adapter with added tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from multilora.errors import AdapterError, InputError
from multilora.initialise import PREFIX

# What PEFT inserts into the names of the base's weights that it saves with an adapter.
_WRAPPERS = {"base_layer", "token_adapter", "modules_to_save", "original_module"}


def check_vocabulary(tokenizer: Any, config: Any, source: str | None = None) -> None:
    """Check that every token has an embedding.

    Args:
        tokenizer: of the model
        config: of the model
        source: of an adapter, if the tokenizer is saved with it

    Raises:
        InputError: the tokenizer has ids outside of the embedding matrix.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    outside = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not outside:
        return
    shown = ", ".join(repr(token) for token in sorted(outside, key=lambda token: outside[token])[:5])
    advice = (
        "Use the model's own tokenizer, or resize the model (resize_token_embeddings) and save both together"
        if source is None
        else "Save the adapter again with save_embedding_layers=True, or remove its tokenizer files"
    )
    raise InputError(
        f"{source or 'model.name_or_path'}: the tokenizer has token ids up to {max(outside.values())}, and the model "
        f"embeds only {rows} tokens (0 to {rows - 1}); without an embedding: {shown}"
        f"{', ...' if len(outside) > 5 else ''}. {advice}"
    )


def resize_for_adapter(model: Any, state: Mapping[str, Tensor], source: str) -> None:
    """Give a base as many tokens as an adapter that was trained after `resize_token_embeddings`.

    The rows of added tokens are random until the adapter, which has them, is loaded.

    Args:
        model: the base
        state: the checkpoint of the adapter
        source: of the adapter, for the message

    Raises:
        AdapterError: tokens were added, and the adapter lacks their rows of the embedding or of the output head.
    """
    try:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # a model without tokens
        return
    if not isinstance(embedding, nn.Embedding):
        return
    is_tied = head is None or head.weight is embedding.weight
    # Each of these needs its own rows; of tied layers, PEFT may save only one.
    needed = [{embedding, head} - {None}] if is_tied else [{embedding}, {head}]
    names = [[name for name, module in model.named_modules() if module in layers] for layers in needed]
    saved = {_base_name(key): len(tensor) for key, tensor in state.items() if key.endswith(".weight")}
    rows, before = {saved[name] for group in names for name in group if name in saved}, len(embedding.weight)
    if not rows - {before}:
        return
    after = max(rows)
    missing = [group[0] for group in names if not saved.keys() & set(group)]
    if missing and after > before:
        raise AdapterError(
            f"{source}: was trained with a vocabulary of {after} tokens, and its base has {before}; it has no weights "
            f"of {', '.join(missing)} for the tokens that were added. Merge it into the model that it was trained on, "
            "and save that"
        )
    model.resize_token_embeddings(after, mean_resizing=False)


def _base_name(key: str) -> str:
    """The module of the base whose weight an entry of a checkpoint is."""
    parts = key.removeprefix(PREFIX).removesuffix(".weight").split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)
