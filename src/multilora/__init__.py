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
    from multilora.export.combine import combine_adapters
    from multilora.export.gguf import export_gguf
    from multilora.export.lora import convert_to_lora, export_lora
    from multilora.export.merge import export_merged
    from multilora.export.mlx import export_mlx
    from multilora.export.pruned_adapter import prune_adapter
    from multilora.peft_method import MultiLoraConfig, MultiLoraLayer, MultiLoraModel
    from multilora.recipe import Recipe
    from multilora.runs.directory import Run
    from multilora.runs.evaluate import Evaluation, evaluate
    from multilora.runs.train import plan, train
    from multilora.training.trainer import MultiTaskTrainer

_MODULES = {
    "Evaluation": "multilora.runs.evaluate",
    "MultiLoraConfig": "multilora.peft_method",
    "MultiLoraLayer": "multilora.peft_method",
    "MultiLoraModel": "multilora.peft_method",
    "MultiTaskTrainer": "multilora.training.trainer",
    "Plan": "multilora.data.plan",
    "Recipe": "multilora.recipe",
    "Run": "multilora.runs.directory",
    "analyze": "multilora.analysis.analyze",
    "combine_adapters": "multilora.export.combine",
    "convert_to_lora": "multilora.export.lora",
    "evaluate": "multilora.runs.evaluate",
    "export_gguf": "multilora.export.gguf",
    "export_lora": "multilora.export.lora",
    "export_merged": "multilora.export.merge",
    "export_mlx": "multilora.export.mlx",
    "plan": "multilora.runs.train",
    "prune_adapter": "multilora.export.pruned_adapter",
    "train": "multilora.runs.train",
}

__all__ = [
    "Evaluation",
    "MultiLoraConfig",
    "MultiLoraLayer",
    "MultiLoraModel",
    "MultiTaskTrainer",
    "Plan",
    "Recipe",
    "Run",
    "__version__",
    "analyze",
    "combine_adapters",
    "convert_to_lora",
    "evaluate",
    "export_gguf",
    "export_lora",
    "export_merged",
    "export_mlx",
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
