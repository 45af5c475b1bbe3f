"""What an exported adapter contains, read from its files: it decides which programs can use it.

The exports of this package have no rsLoRA, no DoRA, an alpha that is the rank, and a list of target modules.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_UPDATE = re.compile(r"\.(lora_(?:embedding_)?[AB])(\.weight)?$")


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter contains.

    model_type: of the base, such as `llama`; None if its config is not at hand
    rank: the largest rank
    equal_ranks: whether all modules have the same rank
    bias: whether biases were trained
    saved: modules that are stored whole: `modules_to_save`, and embeddings of a resized vocabulary
    tokens: whether rows of the embeddings were trained (`trainable_token_indices`)
    stacked_experts: whether a tensor is the update of a stack of experts
    embeddings, head: whether they have an update
    tied: whether head and embeddings share their weight in the base; False if its config is not at hand
    part_of_qkv: whether only some of q_proj, k_proj and v_proj have an update
    """

    model_type: str | None
    rank: int
    equal_ranks: bool = True
    bias: bool = False
    saved: tuple[str, ...] = ()
    tokens: bool = False
    stacked_experts: bool = False
    embeddings: bool = False
    head: bool = False
    tied: bool = False
    part_of_qkv: bool = False

    @property
    def conv1d(self) -> bool:
        """Whether the base has transformers' Conv1D, whose weights are transposed."""
        return self.model_type in CONV1D_MODELS


def adapter_facts(folder: Path, base: Path | None = None) -> AdapterFacts:
    """Read what an adapter contains; no tensor is loaded.

    Args:
        folder: of an exported LoRA
        base: folder of the base

    Raises:
        OSError: a file is missing.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    shapes: dict[str, list[int]] = {}
    with safe_open(str(folder / "adapter_model.safetensors"), framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            shapes[name] = file.get_slice(name).get_shape()
    updates = {_UPDATE.sub("", name) for name in shapes if _UPDATE.search(name)}
    ranks = {shape[0] for name, shape in shapes.items() if re.search(r"lora_(embedding_)?A", name)}
    others = [name for name in shapes if not _UPDATE.search(name) and "trainable_tokens" not in name]
    last = {name.rsplit(".", 1)[-1] for name in updates}
    saved = {name.rsplit(".", 2)[-2] for name in others if name.endswith(".weight")} - {"base_layer"}
    base_config = _base_config(base)
    return AdapterFacts(
        model_type=base_config.get("model_type"),
        rank=max(ranks, default=0),
        equal_ranks=len(ranks) < 2,
        bias=config.get("bias", "none") != "none",
        saved=tuple(sorted(saved | set(config.get("modules_to_save") or ()))),
        tokens=bool(config.get("trainable_token_indices")),
        stacked_experts=bool(config.get("target_parameters")),
        embeddings=any("lora_embedding_" in name for name in shapes),
        head="lm_head" in last,
        tied=bool(base_config.get("tie_word_embeddings")),
        part_of_qkv=0 < len(last & {"q_proj", "k_proj", "v_proj"}) < 3,
    )


def _base_config(base: Path | None) -> dict[str, Any]:
    if base is None or not (base / "config.json").is_file():
        return {}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or {}
    return {
        "model_type": config.get("model_type"),
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings")),
    }
