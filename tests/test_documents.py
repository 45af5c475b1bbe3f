"""What the documents say is there: links, paths, verbs, keys, valid recipes. `test_pages.py` runs their code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from conftest import REPOSITORY, make_llama, make_tokenizer, write_jsonl
from doc_pages import DOCS, page_id, pages

import multilora
from multilora.cli.app import app
from multilora.recipe import Recipe
from multilora.recipe.schema import RecipeSchema

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TREE = (DOCS / "source_tree.md").read_text(encoding="utf-8")
sys.path.insert(0, str(DOCS / "hooks"))
DOCUMENTS = [*pages(), *(REPOSITORY / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))]


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as mkdocs and GitHub make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=page_id)
def test_links_within_the_repository(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / unquote(file) if file else path
        assert linked.exists(), f"{page_id(path)}: {target}"
        if anchor and linked.suffix == ".md" and "<!-- generated" not in (content := linked.read_text()):
            assert anchor in headings(content) or ":::" in content, f"{page_id(path)}: {target}"


def test_every_page_is_in_the_navigation():
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    shown = set(re.findall(r"([\w/]+)\.md$", text.split("\nnav:")[1], re.MULTILINE))
    sources = [path for kind in ("*.md", "*.ipynb") for path in DOCS.rglob(kind)]
    assert shown == {str(path.relative_to(DOCS).with_suffix("")) for path in sources}


def test_the_generated_pages_have_every_key_and_verb():
    from commands import commands
    from recipe_fields import fixed_training_keys, recipe_fields, study_fields

    fields = recipe_fields()
    schema = RecipeSchema.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for key, property_ in section["properties"].items():
            assert property_.get("description"), key
            assert f"| `{key}` |" in fields
    assert "`responses`, `all`<br>default `responses`" in fields
    assert "| `grid` |" in study_fields()
    assert "| `output_dir` |" in fixed_training_keys()
    text = commands()
    for command in app.registered_commands:
        assert f"## `multilora {command.name}`" in text
    assert "## `multilora nano build`" in text
    assert "`--resume`" in text


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)", text, re.MULTILINE)}
    by_class = {"MultiLoraLayer", "MultiLoraModel", "Recipe", "__version__"}  # of PEFT's internals, and of recipe.md
    errors = {name for name in multilora.__all__ if name.endswith("Error")}
    assert set(multilora.__all__) - by_class - errors <= documented


def test_every_path_of_the_tree_exists():
    (tree,) = re.findall(r"```text\n(.*?)```", TREE, re.DOTALL)
    folder = REPOSITORY
    for line in tree.splitlines():
        name = line.split()[0]
        inside = line.startswith("  ")
        folder = folder if inside else REPOSITORY / name
        assert (folder / name if inside else folder).exists(), line


def test_the_tree_names_every_room():
    shown = set(re.findall(r"^(?:  )?(\S+)", TREE, re.MULTILINE))
    for item in (REPOSITORY / "src" / "multilora").iterdir():
        if not item.name.startswith(("_", "py.typed")):
            assert (f"{item.name}/" if item.is_dir() else item.name) in shown, item.name


DATA = {
    "gsm8k": {"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    "superglue/RTE": {"premise": "He left.", "hypothesis": "He went.", "label": "entailment"},
    "superglue/WiC": {"word": "bank", "sentence1": "The bank.", "sentence2": "A bank.", "label": True},
    "superglue/CB": {"premise": "He left.", "hypothesis": "He went.", "label": "neutral"},
    "superglue/MultiRC": {
        "passage": {
            "text": "He left.",
            "questions": [{"idx": 0, "question": "Who?", "answers": [{"text": "He", "idx": 0, "label": 1}]}],
        },
        "idx": 0,
    },
    "superglue/WSC": {"text": "He left.", "target": {"span1_text": "He", "span2_text": "left"}, "label": False},
    "superglue/COPA": {"premise": "It rained.", "choice1": "Sun.", "choice2": "Wet.", "question": "effect", "label": 1},
}
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """Miniatures of the public files where the shipped recipes look for them, and a base."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, record in DATA.items():
        (folder / "data" / name).mkdir(parents=True)
        for split in ("train", "val", "test"):
            write_jsonl(folder / "data" / name / f"{split}.jsonl", [record] * 4)
    (folder / "data" / "dolly15k").mkdir()
    dolly = {"instruction": "Add 1 and 2.", "context": "", "response": "3"}
    write_jsonl(folder / "data" / "dolly15k" / "dolly.jsonl", [{**dolly, "context": str(i)} for i in range(20)])
    for split in ("dev", "val", "test"):
        (folder / "data" / "mmlu" / split).mkdir(parents=True)
        file = folder / "data" / "mmlu" / split / f"anatomy_{split}.csv"
        file.write_text('"What, then?",a,b,c,d,B\n' * 3)
    model = folder / "models" / "small-base"
    make_llama(max_position_embeddings=1024).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_have_a_plan(path, data_folder, monkeypatch):
    monkeypatch.chdir(data_folder)
    plan = multilora.plan(path, ["training.max_steps=2"])
    assert plan.task_names == [task.name for task in Recipe.load(path).tasks]
    assert plan.steps == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_train(path, data_folder, tmp_path):
    shutil.copy(path, data_folder / path.name)
    command = [sys.executable, "-m", "multilora", "train", path.name, "--set", "training.max_steps=2"]
    done = subprocess.run(command, cwd=data_folder, check=True, capture_output=True, text=True)
    assert "next: multilora eval" in done.stdout
    assert (data_folder / yaml.safe_load(path.read_text())["output_dir"] / "train.json").is_file()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_shipped_configs(path):
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    options = [action.dest for action in launch_command_parser()._actions]
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(getattr(config, section) or {}) <= set(options), section
    if config.deepspeed_config:  # on several machines torchrun's way, not a launcher of DeepSpeed's
        assert config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"
    assert f"`{path.name}`" in (DOCS / "clusters.md").read_text(encoding="utf-8")
    assert f"recipes/accelerate/{path.name}" in path.read_text(encoding="utf-8")


def test_the_studies_on_the_page_of_results_are_those_of_the_files(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import study_results

    text = study_results.PAGE.read_text(encoding="utf-8")
    assert study_results.page_text(text) == text
