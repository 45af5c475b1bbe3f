"""MultiLoRA (arXiv 2311.11501): multi-task fine-tuning of language models, with evaluation, analysis and export.

Names are imported on first use, so `import multilora` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from multilora.analysis.analyze import analyze
    from multilora.data.plan import Plan
    from multilora.errors import (
        AdapterError,
        DataError,
        InputError,
        MultiLoraError,
        RecipeError,
        RecordError,
        RunDirectoryError,
        RunError,
        StoppedError,
    )
    from multilora.export.edit.combine import combine_adapters
    from multilora.export.edit.prune_adapter import prune_adapter
    from multilora.export.formats.gguf import export_gguf
    from multilora.export.formats.mlx import export_mlx
    from multilora.export.lora.export_lora import convert_to_lora, export_lora
    from multilora.export.merged.export_merged import export_merged
    from multilora.peft_method import MultiLoraConfig, MultiLoraLayer, MultiLoraModel
    from multilora.recipe import Recipe
    from multilora.runs.directory import Run
    from multilora.runs.evaluate import Evaluation, evaluate
    from multilora.runs.generate import generate
    from multilora.runs.train import plan, train
    from multilora.training.trainer import MultiTaskTrainer

_MODULES = {
    "AdapterError": "multilora.errors",
    "DataError": "multilora.errors",
    "InputError": "multilora.errors",
    "MultiLoraError": "multilora.errors",
    "RecipeError": "multilora.errors",
    "RecordError": "multilora.errors",
    "RunDirectoryError": "multilora.errors",
    "RunError": "multilora.errors",
    "StoppedError": "multilora.errors",
    "Evaluation": "multilora.runs.evaluate",
    "MultiLoraConfig": "multilora.peft_method",
    "MultiLoraLayer": "multilora.peft_method",
    "MultiLoraModel": "multilora.peft_method",
    "MultiTaskTrainer": "multilora.training.trainer",
    "Plan": "multilora.data.plan",
    "Recipe": "multilora.recipe",
    "Run": "multilora.runs.directory",
    "analyze": "multilora.analysis.analyze",
    "combine_adapters": "multilora.export.edit.combine",
    "convert_to_lora": "multilora.export.lora.export_lora",
    "evaluate": "multilora.runs.evaluate",
    "export_gguf": "multilora.export.formats.gguf",
    "export_lora": "multilora.export.lora.export_lora",
    "export_merged": "multilora.export.merged.export_merged",
    "export_mlx": "multilora.export.formats.mlx",
    "generate": "multilora.runs.generate",
    "plan": "multilora.runs.train",
    "prune_adapter": "multilora.export.edit.prune_adapter",
    "train": "multilora.runs.train",
}

__all__ = [
    "AdapterError",
    "DataError",
    "Evaluation",
    "InputError",
    "MultiLoraConfig",
    "MultiLoraError",
    "MultiLoraLayer",
    "MultiLoraModel",
    "MultiTaskTrainer",
    "Plan",
    "Recipe",
    "RecipeError",
    "RecordError",
    "Run",
    "RunDirectoryError",
    "RunError",
    "StoppedError",
    "__version__",
    "analyze",
    "combine_adapters",
    "convert_to_lora",
    "evaluate",
    "export_gguf",
    "export_lora",
    "export_merged",
    "export_mlx",
    "generate",
    "plan",
    "prune_adapter",
    "train",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'multilora' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
