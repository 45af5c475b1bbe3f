"""The files of a base: its safetensors shards, and what is copied next to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multilora.errors import InputError
from multilora.export.merged.names import NotByShardsError
from multilora.export.merged.tensor_files import Layout, Slot, read_layout
from multilora.files import write_json

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
_TOKENIZER = ("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*chat_template*", "*.jinja")
_FOLDERS = ("additional_chat_templates",)
# Of weights in other formats, of adapters, and of training.
_LEFT_OUT = ("*.index.json", CONFIG, "adapter_config.json", "trainer_state.json", "*_results.json", "README*")


@dataclass(frozen=True)
class BaseFiles:
    """The checkpoint of a base.

    folder: with the files
    shards: file name -> its layout
    index: content of the index file; None for a single file
    """

    folder: Path
    shards: dict[str, Layout]
    index: dict[str, Any] | None

    @property
    def slots(self) -> dict[str, Slot]:
        """All tensors by key."""
        return {key: slot for layout in self.shards.values() for key, slot in layout.slots.items()}

    @property
    def size(self) -> int:
        """Of the shards, in bytes."""
        return sum(layout.size for layout in self.shards.values())

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return _read_json(self.folder / CONFIG)


def base_files(source: str, revision: str | None = None) -> BaseFiles:
    """Find the shards of a model and read their headers.

    Args:
        source: a folder, or a name on the hub
        revision: on the hub

    Raises:
        InputError: a shard is missing or damaged.
        NotByShardsError: the weights are in another format, or quantized.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        patterns = [SINGLE, INDEX, "model-*.safetensors", *_COPIED, *(f"{name}/*" for name in _FOLDERS)]
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    index = None
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        index = _read_json(folder / INDEX)
        names = _shard_names(folder / INDEX, index)
    else:
        raise NotByShardsError(f"{folder} has no {SINGLE}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(names)} files of weights are missing ({', '.join(missing[:3])}); "
            "restore them, or download the model again"
        )
    files = BaseFiles(folder, {name: read_layout(folder / name) for name in names}, index)
    if index is not None:
        lost = sorted(set(index["weight_map"]) - set(files.slots))
        if lost:
            raise InputError(
                f"{folder / INDEX}: lists {len(lost)} tensors that no file has ({', '.join(lost[:3])}); restore the "
                "files, or download the model again"
            )
    if quantization_of(files.config()):
        raise NotByShardsError("the files of the base are quantized")
    return files


def _shard_names(path: Path, index: dict[str, Any]) -> list[str]:
    """The files that an index lists; their names must not lead out of the folder, where files are written too."""
    try:
        names = sorted(set(index["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: has no usable weight_map ({error}); restore it, or download the model again"
        ) from error
    if outside or not names:
        raise InputError(f"{path}: lists {outside[:3]}, expected names of safetensors files in the same folder")
    return names


def quantization_of(config: dict[str, Any]) -> Any:
    """The quantization in the config of a model, None without one."""
    return config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")


def copy_files(source: Path, target: Path, *, tokenizer: bool = False) -> None:
    """Copy the files of a model that are neither weights nor its config.

    Args:
        source: folder of the model
        target: folder of the export
        tokenizer: only those of the tokenizer, which replace others
    """
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name in _FOLDERS:
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        elif path.is_file() and _matches(path, _TOKENIZER if tokenizer else _COPIED) and not _matches(path, _LEFT_OUT):
            shutil.copyfile(path, target / path.name)


def write_config(target: Path, config: dict[str, Any], changes: dict[str, Any], *, untied: bool) -> None:
    """Write the config of a merged model.

    Args:
        target: folder of the export
        config: of the base
        changes: values that differ from the base's, at the top or in the config of the text model
        untied: whether the head and the embeddings are no longer tied
    """
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    text = config.get("text_config")
    if isinstance(text, dict):
        text = config["text_config"] = {key: value for key, value in text.items() if key != "quantization_config"}
    for key, value in changes.items():
        place = text if isinstance(text, dict) and key in text and key not in config else config
        place[key] = value
    if untied:
        config["tie_word_embeddings"] = False
        if isinstance(text, dict):
            text["tie_word_embeddings"] = False
    write_json(target / CONFIG, config)


def _matches(path: Path, patterns: Collection[str]) -> bool:
    return any(path.match(pattern) for pattern in patterns)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return dict(value)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore it, or download the model again") from error
