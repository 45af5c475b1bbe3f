"""What a model card says of a run or an adapter folder: all of it read from their files, and the licences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multilora.data.render import PLAIN_TEMPLATES
from multilora.errors import RunDirectoryError
from multilora.methods import FULL
from multilora.recipe.built_in_tasks import built_in
from multilora.recipe.schema import HUB_PREFIX, TaskSection
from multilora.runs.directory import EVAL_FILE, Run
from multilora.saved_adapter import CONFIG_FILE

CARD_FILE = "README.md"
_TITLES = {"multilora": "MultiLoRA", "lora": "LoRA", FULL: "full fine-tuning"}
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
# Metadata of the hub that stays true when an adapter is exported again.
_LICENCE = ("license", "license_name", "license_link")
_KEPT = (*_LICENCE, "language", "datasets")


@dataclass
class CardFacts:
    """What is known; what is not is empty.

    method: PEFT's name of it, or `full`; empty if it is not known
    adapter: its options, as rows of a table
    training: how it was trained, as rows of a table
    unit, tasks: of the plan, and its tasks: name, share, examples, epochs, trained_tokens
    template: how prompts were rendered
    edited: what was done with the update after training
    protocols, scores: whether prompts and metrics have names, and rows: task, metric, questions, before, after, losses
    metadata: for the hub: datasets, and what the card of an adapter folder says
    licences: rows: what, licence; of the base and of the data, as their own cards say it
    """

    method: str
    adapter: list[tuple[str, str]] = field(default_factory=list)
    training: list[tuple[str, str]] = field(default_factory=list)
    unit: str = ""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    template: str = ""
    edited: str = ""
    protocols: bool = False
    scores: list[list[str]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    licences: list[tuple[str, str]] = field(default_factory=list)


def run_facts(run: Run) -> CardFacts:
    """Read what is known of a run.

    Raises:
        RunDirectoryError: the run is damaged.
    """
    with readable(run):
        return _run_facts(run)


@contextmanager
def readable(run: Run) -> Iterator[None]:
    """Turn the errors of a block that reads the files of a run into one that names them.

    Raises:
        RunDirectoryError: the run is damaged.
    """
    try:
        yield
    except RunDirectoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunDirectoryError(
            f"{run.path}: one of plan/plan.json, train.json, eval.json and environment.json is damaged "
            f"({type(error).__name__}: {error}); restore it, or train again"
        ) from error


def evaluation_of(run: Run) -> dict[str, Any]:
    """The content of `eval.json`; empty if it is of other weights, as of a run that was extended."""
    evaluation = _read_json(run.path / EVAL_FILE)
    return evaluation if evaluation.get("weights_of_step") == run.training["weights_of_step"] else {}


def _run_facts(run: Run) -> CardFacts:
    from multilora.data.plan import SUMMARY_FILE  # imports torch, which takes seconds

    recipe, facts = run.recipe, CardFacts(run.recipe.adapter.method)
    config = {} if facts.method == FULL else _read_json(run.weights / CONFIG_FILE)
    plan, trained = _read_json(run.path / "plan" / SUMMARY_FILE), run.training
    facts.adapter = list(_adapter_rows(facts.method, config))
    facts.training = [
        ("trained parameters", f"{trained['trainable_parameters']:,} of {trained['total_parameters']:,}"),
        ("optimizer steps", _steps(trained)),
        *([("tokens", f"{trained['tokens']:,}")] if "tokens" in trained else []),
        *([("rows per step", f"{plan['rows_per_step']:,}")] if "rows_per_step" in plan else []),
        *((key.replace("_", " "), str(recipe.training[key])) for key in ("learning_rate",) if key in recipe.training),
        ("precision of the base", _precision(recipe.model.dtype, recipe.model.quantization)),
        *_machine(trained["seconds"], _read_json(run.path / "environment.json")),
    ]
    facts.unit, facts.tasks = str(plan.get("unit", "")).replace("_", " "), _tasks(plan, recipe.tasks)
    facts.template = _template(recipe.data.template)
    facts.protocols, facts.scores = _scores(evaluation_of(run))
    paths = [section.path or "" for section in recipe.tasks]
    datasets = [path.removeprefix(HUB_PREFIX).partition(":")[0] for path in paths if path.startswith(HUB_PREFIX)]
    facts.metadata = {"datasets": sorted(set(datasets))} if datasets else {}
    sources = {"base": (recipe.model.name_or_path, False)}
    sources |= {f"data of {section.name}": (section.path or "", True) for section in recipe.tasks}
    found = [(what, licence_of(name, dataset=is_data)) for what, (name, is_data) in sources.items()]
    facts.licences = [(what, str(licence["license"])) for what, licence in found if "license" in licence]
    return facts


def folder_facts(method: str, folder: Path) -> CardFacts:
    """Read what is known of an adapter that was made elsewhere."""
    config = _read_json(folder / CONFIG_FILE)
    facts = CardFacts(method, list(_adapter_rows(method, config)))
    facts.metadata = {key: value for key, value in _front_matter(folder / CARD_FILE).items() if key in _KEPT}
    return facts


def licence_of(name: str, *, dataset: bool = False) -> dict[str, Any]:
    """Return what a model's or a data set's own card says of the licence; empty if there is none on this machine.

    Args:
        name: a folder, a file in one, or a name on the hub, whose card may be in the hub's cache
        dataset: whether it is a data set
    """
    path = Path(name)
    card: Path | None
    if path.exists():
        card = (path if path.is_dir() else path.parent) / CARD_FILE
    else:
        card = _cached_card(name.removeprefix(HUB_PREFIX).partition(":")[0], dataset=dataset)
    return {key: value for key, value in _front_matter(card).items() if key in _LICENCE} if card else {}


def _cached_card(name: str, *, dataset: bool) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, CARD_FILE, repo_type="dataset" if dataset else "model")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _adapter_rows(method: str, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    title = _TITLES.get(method, method)
    rank, branches = config.get("r"), config.get("num_branches")
    if method == "multilora" and rank and branches:
        title += f", {branches} branches of rank {rank} (total rank {branches * rank}), {config['scaling']} scales"
    elif rank:
        title += f" of rank {rank}"
    yield "method", title
    if method != FULL and config.get("lora_alpha") is not None:
        yield "alpha", f"{config['lora_alpha']:g}" + (", rank-stabilised" if config.get("use_rslora") else "")
    for key in ("target_modules", "target_parameters", "modules_to_save"):
        value = config.get(key)
        if value:
            names = [value] if isinstance(value, str) else sorted({name.rpartition(".")[2] for name in value})
            yield key.replace("_", " "), ", ".join(names)
    if config.get("bias", "none") != "none":
        yield "trained biases", str(config["bias"])


def _steps(trained: dict[str, Any]) -> str:
    steps, used = trained["steps"], trained["weights_of_step"]
    return f"{steps:,}" if steps == used else f"{steps:,}; the weights are those of step {used:,}"


def _precision(dtype: str, quantization: str) -> str:
    return dtype if quantization == "none" else f"{dtype}, {quantization} quantization in training"


def _machine(seconds: float, environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of how long it took, where, and with which software."""
    took = f"{seconds:,.0f} s" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
    yield "time", took + (f" on {environment['device']}" if environment.get("device") else "")
    packages = environment.get("packages", {})
    names = [name for name in ("multilora", "torch", "transformers", "peft") if name in packages]
    if names:
        yield "software", ", ".join(f"{name} {packages[name]}" for name in names)


def _tasks(plan: dict[str, Any], sections: list[TaskSection]) -> list[dict[str, Any]]:
    """The tasks of the plan, with what their data are: a name on the hub, a built-in task, or own data."""
    data = {}
    for section in sections:
        known = built_in(section.name)
        path = section.path or ""
        on_hub = path.removeprefix(HUB_PREFIX) if path.startswith(HUB_PREFIX) else ""
        data[section.name] = on_hub or (known.about if known else "own data")
    return [{**task, "data": data.get(task["name"], "")} for task in plan.get("tasks", [])]


def _template(name: str) -> str:
    if name in PLAIN_TEMPLATES:
        plain = PLAIN_TEMPLATES[name]
        return f"{plain.before}{{prompt}}{plain.after}"
    return ""


def _scores(evaluation: dict[str, Any]) -> tuple[bool, list[list[str]]]:
    """Whether the prompts and metrics have names, and the rows of the scores."""
    if not evaluation:
        return False, []
    before, after = evaluation["before"], evaluation["after"]
    protocols = any(score.get("protocol") for score in after.values())
    rows = []
    for task, score in after.items():
        base = before.get(task, {})
        row = [task, score["metric"], f"{score['n']:,}", _percent(base), _percent(score)]
        row += [f"{item['loss']:.3f}" if item.get("loss") is not None else "–" for item in (base, score)]
        rows.append([*row, score.get("protocol") or "–"] if protocols else row)
    return protocols, rows


def _percent(score: dict[str, Any]) -> str:
    if score.get("value") is None:
        return "–"
    text = f"{100 * score['value']:.1f}"
    interval = score.get("interval")
    return f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else text


def _front_matter(card: Path) -> dict[str, Any]:
    """Return the metadata of a model card; empty without a readable one."""
    try:
        found = _FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        values = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    """Return an object in a JSON file; empty without a readable one, because a card says what is known."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
