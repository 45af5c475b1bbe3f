"""An adapter on disk: where it is, what its config says, and the options with which its training continues.

Weights are not read here; see `multilora.initialise`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multilora.errors import AdapterError
from multilora.methods import FULL, config_classes, option_names

logger = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
RECIPE_FILE = "recipe.yaml"

# Set by PEFT or multilora, not by the recipe.
_INTERNAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
# Options that mean the same in LoRA and MultiLoRA.
_SHARED_WITH_LORA = (
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "trainable_token_indices",
    "bias",
    "lora_dropout",
)
# Options of LoRA's initialisations.
_INITIALISATIONS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config")
# Options of LoRA that do not change what its update is. All others are variants, which branches cannot express.
_PLAIN_LORA = {
    *_SHARED_WITH_LORA,
    *_INTERNAL,
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "init_lora_weights",
    "megatron_core",
    "qalora_group_size",
    *_INITIALISATIONS,
}
# Initialisations of LoRA that leave the base unchanged.
UNCHANGED_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class SavedAdapter:
    """A PEFT adapter on disk.

    Args:
        path: as in the recipe
        folder: contains the config and the weights
        method: its PEFT method, as in `adapter.method`
        config: the content of `adapter_config.json`
    """

    path: str
    folder: Path
    method: str
    config: dict[str, Any]

    @property
    def base(self) -> str | None:
        """The base model that was recorded when the adapter was saved."""
        value = self.config.get("base_model_name_or_path")
        return value if isinstance(value, str) and value else None

    @property
    def base_is_unchanged(self) -> bool:
        """Whether the model with the adapter disabled is known to be the base: no trained biases, a plain start."""
        start = self.config.get("init_lora_weights", True)
        return (
            self.method in ("lora", "multilora")
            and self.config.get("bias", "none") == "none"
            and start in UNCHANGED_BASE
        )


def adapter_folder(path: Path) -> Path | None:
    """The folder of the adapter at a path: the path itself, or `adapter/` in a run directory; None without one."""
    if (path / CONFIG_FILE).is_file():
        return path
    inner = path / "adapter"
    return inner if (path / RECIPE_FILE).is_file() and (inner / CONFIG_FILE).is_file() else None


def read_saved_adapter(path: str) -> SavedAdapter:
    """Read the config of an adapter.

    Args:
        path: a run directory or an adapter folder

    Raises:
        AdapterError: there is no adapter, or it is incomplete.
    """
    place = Path(path).expanduser()
    folder = adapter_folder(place)
    if folder is None:
        raise AdapterError(f"{path}: {_why_no_adapter(place)}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        method = str(config["peft_type"]).lower()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{folder / CONFIG_FILE}: is not the config of a PEFT adapter ({type(error).__name__}: {error}); save the "
            "adapter again with save_pretrained"
        ) from None
    if method not in config_classes():
        raise AdapterError(
            f"{folder / CONFIG_FILE}: the installed PEFT has no method {config['peft_type']!r}; update PEFT, or give "
            "another adapter"
        )
    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise AdapterError(f"{folder}: no {WEIGHTS_FILES[0]} here; save the adapter again with save_pretrained")
    return SavedAdapter(path, folder, method, config)


def _why_no_adapter(path: Path) -> str:
    if not path.is_dir():
        return "is a file, expected a folder" if path.is_file() else "no such folder; check the path"
    if (path / RECIPE_FILE).is_file():
        if (path / "model").is_dir():
            return f"this run trained all weights; set model.name_or_path to {path / 'model'} instead"
        return (
            "this run has no adapter/, so its training did not finish; resume it with `multilora train RECIPE "
            "--resume`, or give one of its folders checkpoints/checkpoint-<step>"
        )
    if (path / "config.json").is_file():
        return f"is a model, not an adapter (no {CONFIG_FILE}); set model.name_or_path to it instead"
    return f"no {CONFIG_FILE} here; expected a run directory, or a folder saved by PEFT's save_pretrained"


def continued_options(method: str, options: Mapping[str, Any], saved: SavedAdapter) -> dict[str, Any]:
    """The options of a method with which the training of a saved adapter continues.

    Args:
        method: of the recipe
        options: of the recipe; those that are not set are taken from the adapter
        saved: an adapter of the same method or, for `multilora`, a LoRA

    Raises:
        AdapterError: the method cannot continue from this adapter, or the options contradict it.
    """
    problems = list(_unusable(method, saved))
    if problems:
        raise AdapterError(f"{saved.path}: {'; '.join(problems)}")
    saved_options = _saved_options(method, saved)
    conflicts = [
        f"{key} is {options[key]!r} in the recipe and {saved_options[key]!r} in the adapter"
        for key in options
        if key in saved_options and not _agree(key, options, saved_options)
    ]
    if conflicts:
        raise AdapterError(
            f"{saved.path}: {'; '.join(conflicts)}; leave the options of the adapter out of the recipe, or set them to "
            "its values"
        )
    merged = {**saved_options, **options}
    patterns = saved.config.get("rank_pattern") or merged.get("rank_pattern")
    if saved.method != method and not patterns:  # with patterns, ranks are checked module by module
        defaults = config_classes()[method]
        r, num_branches = (merged.get(key, getattr(defaults, key)) for key in ("r", "num_branches"))
        if isinstance(r, int) and isinstance(num_branches, int):  # else the config reports it
            from multilora.peft_method.from_lora import check_total_rank  # imports torch

            try:
                check_total_rank(saved.config.get("r", 8), r, num_branches)
            except AdapterError as error:
                raise AdapterError(f"{saved.path}: {error}") from None
    return merged


def _unusable(method: str, saved: SavedAdapter) -> Iterator[str]:
    if method == FULL:
        yield "method `full` has no adapter to continue from; merge the adapter into the base, or use its method"
        return
    if saved.method != method and (method, saved.method) != ("multilora", "lora"):
        advice = f"set adapter.method to {saved.method}"
        if saved.method == "multilora" and method == "lora":
            advice += ", or export it with `multilora export RUN --to lora`"
        yield f"is an adapter of method `{saved.method}`, which `{method}` cannot continue; {advice}"
        return
    if saved.method != "lora":
        return
    initialisation = saved.config.get("init_lora_weights")
    if initialisation not in UNCHANGED_BASE:
        yield (
            f"init_lora_weights is {initialisation!r}, which changes the base; save it as a plain LoRA (PEFT's "
            "save_pretrained with path_initial_model_for_weight_conversion), or merge it into the base"
        )
    if method == "multilora":
        settings = lora_variant(saved)
        if settings:
            yield (
                f"is a variant of LoRA ({settings}), which MultiLoRA's branches cannot express; use method `lora`, or "
                "merge it into the base"
            )


def lora_variant(saved: SavedAdapter) -> str:
    """The settings that make a LoRA a variant, whose update is not B A: `use_dora: True`; empty for a plain LoRA."""
    names = sorted(key for key, value in saved.config.items() if key not in _PLAIN_LORA and value)
    return ", ".join(f"{key}: {saved.config[key]!r}" for key in names)


def _saved_options(method: str, saved: SavedAdapter) -> dict[str, Any]:
    known = _SHARED_WITH_LORA if saved.method != method else option_names(method)
    unknown = sorted(key for key, value in saved.config.items() if value and key not in option_names(saved.method))
    if unknown:
        logger.warning(
            "%s: the installed PEFT does not know the options %s of this adapter and ignores them",
            saved.path,
            ", ".join(unknown),
        )
    options = {key: value for key, value in saved.config.items() if key in known and key not in _INTERNAL}
    if saved.method != method:
        options = {key: value for key, value in options.items() if value is not None}
        if options.get("bias") == "lora_only":
            options["bias"] = "multilora_only"
    elif method == "lora":
        # The initialisation is overwritten; some need data.
        options = {key: value for key, value in options.items() if key not in _INITIALISATIONS}
        options["init_lora_weights"] = True
    return options


def _agree(key: str, options: Mapping[str, Any], saved_options: Mapping[str, Any]) -> bool:
    """Whether an option of the recipe is that of the adapter, or may differ from it."""
    # Which modules are meant is only known with the model; see `multilora.initialise`.
    if key == "target_modules" or key.endswith("dropout"):
        return True
    value, saved_value = options[key], saved_options[key]
    if key == "lora_alpha" and not saved_options.get("rank_pattern"):  # None means r in MultiLoRA
        value, saved_value = (saved_options.get("r") if item is None else item for item in (value, saved_value))
    if isinstance(value, list) and isinstance(saved_value, list):
        return sorted(map(str, value)) == sorted(map(str, saved_value))
    empty: tuple[Any, ...] = (None, [], {})
    return bool(value == saved_value) or (value in empty and saved_value in empty)
