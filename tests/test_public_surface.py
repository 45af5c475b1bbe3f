"""What users rely on: the names in Python, the keys of a recipe, the files of a run. Add to them, do not rename."""

from __future__ import annotations

import importlib
import inspect

import pytest

import multilora
from multilora.recipe.schema import RecipeSchema

NAMES = {
    "multilora": {
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
        "generate",
        "AdapterError",
        "DataError",
        "InputError",
        "MultiLoraError",
        "RecipeError",
        "RecordError",
        "RunDirectoryError",
        "RunError",
        "StoppedError",
        "export_gguf",
        "export_lora",
        "export_merged",
        "export_mlx",
        "plan",
        "prune_adapter",
        "train",
    },
    "multilora.tasks": {
        "Example",
        "RecordTask",
        "Task",
        "chat_example",
        "choice_example",
        "field",
        "free_example",
        "lettered_example",
        "list_field",
        "make_task",
        "text_field",
        "to_dataset",
    },
    "multilora.metrics": {"METRICS", "Metric", "find_metric"},
    "multilora.errors": {
        "AdapterError",
        "DataError",
        "InputError",
        "MultiLoraError",
        "RecipeError",
        "RecordError",
        "RunDirectoryError",
        "RunError",
    },
}
PARAMETERS = {
    "train": ["recipe", "overrides", "callbacks", "resume"],
    "plan": ["recipe", "overrides"],
    "evaluate": ["run", "max_examples"],
    "analyze": ["run"],
    "export_lora": ["source", "out", "adapter_name"],
    "export_merged": ["source", "out"],
    "export_gguf": ["source", "out"],
    "export_mlx": ["source", "out"],
    "combine_adapters": ["weights", "out"],
    "prune_adapter": ["source", "out"],
    "convert_to_lora": ["model"],
    "generate": ["source", "prompts"],
}
KEYS = {
    "model": {"name_or_path", "dtype", "quantization", "attn_implementation", "revision", "trust_remote_code"},
    "adapter": {"method"},
    "tasks": {
        "name",
        "path",
        "eval_path",
        "split",
        "eval_split",
        "weight",
        "max_examples",
        "holdout",
        "on_error",
        "prompt",
        "response",
        "messages",
        "tools",
        "question",
        "answer",
        "choices",
        "metric",
        "task",
        "options",
        "choice_score",
        "harness_task",
    },
    "mixture": {
        "strategy",
        "temperature",
        "unit",
        "total_examples",
        "total_tokens",
        "order",
        "homogeneous_batches",
        "seed",
    },
    "data": {"max_length", "packing", "loss_on", "template", "overlong", "cut_responses", "num_proc"},
    "training": set(),
    "optimizer": {"scale_lr_factor", "up_lr_factor", "down_lr_factor", "scale_steps", "muon"},
    "loss": {"weighting", "on_nonfinite"},
    "evaluation": {
        "protocol",
        "shots",
        "max_examples",
        "batch_tokens",
        "max_new_tokens",
        "every",
        "max_examples_during",
        "max_seconds",
        "best_by",
        "keep",
        "patience",
    },
    "output_dir": set(),
}
VERBS = {
    "analyze",
    "chat",
    "demo",
    "doctor",
    "estimate",
    "eval",
    "export",
    "generate",
    "init",
    "plan",
    "prune",
    "samples",
    "schema",
    "servers",
    "study",
    "tasks",
    "train",
}
RUN = {
    "recipe.yaml",
    "environment.json",
    "plan/plan.arrow",
    "plan/plan.json",
    "metrics.jsonl",
    "train.json",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "evaluations.jsonl",
    "eval.json",
    "analysis/spectrum.json",
    "analysis/singular_values.csv",
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    loaded = importlib.import_module(module)
    public = getattr(loaded, "__all__", None) or {
        name for name, value in vars(loaded).items() if inspect.isclass(value) and value.__module__ == module
    }
    assert NAMES[module] <= set(public)
    assert all(hasattr(loaded, name) for name in NAMES[module])


@pytest.mark.parametrize("function", PARAMETERS)
def test_parameters(function):
    parameters = list(inspect.signature(getattr(multilora, function)).parameters)
    assert parameters[: len(PARAMETERS[function])] == PARAMETERS[function]


def test_keys_of_a_recipe():
    schema = RecipeSchema.model_json_schema()
    assert set(KEYS) <= set(schema["properties"])
    sections = {
        "model": "ModelSection",
        "adapter": "AdapterSection",
        "tasks": "TaskSection",
        "mixture": "MixtureSection",
        "data": "DataSection",
        "optimizer": "OptimizerSection",
        "loss": "LossSection",
        "evaluation": "EvaluationSection",
    }
    for key, section in sections.items():
        assert KEYS[key] <= set(schema["$defs"][section]["properties"]), key


def test_verbs():
    from multilora.cli.app import app

    assert {command.name for command in app.registered_commands} >= VERBS


def test_files_of_a_run(recipe):
    run = multilora.train(recipe, ["evaluation.every=2", "training.save_steps=2"])
    multilora.evaluate(run, max_examples=4)
    multilora.analyze(run)
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*")}
    assert files >= RUN
    assert {"checkpoints/checkpoint-2", "checkpoints/checkpoint-4"} <= files
    best = list(run.path.glob("best-*"))  # of each checkpoint
    assert best
    assert all((folder / "evaluation.json").is_file() for folder in best)
