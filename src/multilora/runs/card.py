"""Model cards: a README.md with the metadata that the hub reads.

A card says what is known from the run or the adapter's files; what is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from multilora.files import write_text
from multilora.methods import FULL
from multilora.runs.card_facts import CARD_FILE, CardFacts, run_facts
from multilora.runs.directory import Run

Kind = Literal["lora", "merged", "adapter", "model"]
RELATIONS = {"lora": "adapter", "adapter": "adapter", "merged": "finetune", "model": "finetune"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Use:
    """How a program uses what a card describes.

    consumer: the program
    commands: lines of a shell or of Python
    tried: the version with which this was found out, if it is not the one that wrote the card
    warning: why it may not work; None without a doubt
    """

    consumer: str
    commands: tuple[str, ...]
    tried: str = ""
    warning: str | None = None


def write_run_card(run: Run) -> None:
    """Write the model card of a run's weights, over the one with placeholders that PEFT writes."""
    full = run.recipe.adapter.method == FULL
    facts, base = run_facts(run), run.recipe.model.name_or_path
    text = render_card("model" if full else "adapter", run.path.resolve().name, facts, base, _uses(run, facts))
    write_text(run.weights / CARD_FILE, text)


def render_card(
    kind: Kind, name: str, known: CardFacts, base: str, uses: Sequence[Any], more: Mapping[str, Any] | None = None
) -> str:
    """Return the text of a card.

    Args:
        kind: an exported LoRA, a merged model, the adapter of a run, or the model of a run
        name: of the folder
        known: what is known
        base: folder or hub name of the base
        uses: how programs load it: objects with the fields of `Use`
        more: rank, notes, proof, proof_rows and images (section -> `CardImage`) of an export
    """
    hub_base = base_on_hub(base)
    context = {
        "metadata": yaml.safe_dump(_metadata(kind, known, hub_base), sort_keys=False, allow_unicode=True),
        "name": name,
        "kind": kind,
        "base": f"[{hub_base}](https://huggingface.co/{hub_base})" if hub_base else f"`{Path(base).name}`",
        "multilora": version("multilora"),
        "known": known,
        "commands": uses,
        **{"rank": None, "notes": (), "proof": None, "proof_columns": (), "proof_rows": (), "images": {}},
        **(more or {}),
    }
    environment = Environment(
        loader=PackageLoader("multilora.runs"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.jinja").render(context)


def base_on_hub(base: str) -> str | None:
    """Return the base's name on the hub; None for a folder."""
    return base if _HUB_NAME.fullmatch(base) and not Path(base).exists() else None


def use_with_multilora(name: str, *, trains_on: bool = False) -> Use:
    """Return how this package uses a folder; `trains_on` if it is an adapter that training can continue from."""
    more = (f"# to continue training, in a recipe: adapter: {{method: multilora, init_from: {name}}}",)
    return Use("multilora", (f'multilora generate {name} --prompt "..."', *(more if trains_on else ())))


def _uses(run: Run, facts: CardFacts) -> list[Use]:
    """How the weights of a run are loaded: with this package, and with PEFT or transformers."""
    name = run.weights.name
    if facts.method == FULL:
        loads = (
            "from transformers import AutoModelForCausalLM",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        )
        return [Use("transformers", loads), use_with_multilora(name)]
    imports = ("import multilora.peft_method  # registers the method",) if facts.method == "multilora" else ()
    loads = (
        "from peft import AutoPeftModelForCausalLM",
        *imports,
        f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")',
    )
    plain = Use("Without multilora", (f"multilora export {run.path.name} --to lora --out lora",))
    return [
        Use("PEFT", loads),
        use_with_multilora(name, trains_on=facts.method in ("multilora", "lora")),
        *([plain] if imports else []),
    ]


def _metadata(kind: Kind, known: CardFacts, hub_base: str | None) -> dict[str, Any]:
    is_lora = kind == "lora" or known.method == "lora"
    tags = [name for name, fits in (("multilora", known.method == "multilora"), ("lora", is_lora)) if fits]
    return {
        **({"base_model": hub_base, "base_model_relation": RELATIONS[kind]} if hub_base else {}),
        "library_name": "peft" if RELATIONS[kind] == "adapter" else "transformers",
        **({"pipeline_tag": "text-generation"} if known.tasks else {}),
        **known.metadata,
        "tags": tags + (["multi-task"] if len(known.tasks) > 1 else []),
    }


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
