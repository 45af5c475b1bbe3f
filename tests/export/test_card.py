"""The model card of an export: what is known, readable by the hub, and nothing else."""

from __future__ import annotations

import errno
import json
import re

import pytest
from conftest import make_llama, make_tokenizer
from huggingface_hub import ModelCard

import multilora
from multilora import combine_adapters, export_merged
from multilora.charts.files import can_draw
from multilora.export.card import add_card
from multilora.export.lora.export_lora import write_lora
from multilora.export.sources.source import open_source
from multilora.runs.card_facts import folder_facts, licence_of

LEARN = ["training.max_steps=10", "training.learning_rate=0.05"]
SCORE = {"metric": "accuracy", "value": 0.5, "stderr": 0.1, "n": 40, "loss": 1.25, "truncated": 0, "dropped": 0}


@pytest.fixture
def run(recipe):
    return multilora.train(recipe, LEARN)


def card_of(source, tmp_path, name="out", **arguments) -> str:
    opened = open_source(source)
    export = write_lora(opened, tmp_path / name)
    add_card(opened, tmp_path / name, tmp_path / name, "lora", export.proof, export.notes, **arguments)
    return (tmp_path / name / "README.md").read_text()


def write_scores(run, weights_of_step: int = 10) -> None:
    """Scores of one task with a metric, and of one without."""
    before = {"even": SCORE, "echo": {**SCORE, "value": None}}
    after = {**before, "even": {**SCORE, "value": 0.75, "interval": [0.5, 0.9]}}
    values = {"before": before, "after": after, "weights_of_step": weights_of_step}
    (run.path / "eval.json").write_text(json.dumps(values))


def section(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a text: rows of cells, without the line of dashes."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in table if "---" not in row[0]] for table in rows]


def test_the_card_of_a_run(run, tmp_path):
    write_scores(run)
    card = card_of(run, tmp_path)
    ((_, *facts), (_, *shares)) = tables(section(card, "Training"))
    facts = dict(facts)
    assert facts["method"] == "MultiLoRA, 3 branches of rank 2 (total rank 6), vector scales"
    assert facts["optimizer steps"] == "10"
    assert facts["trained parameters"].startswith("6,912 of ")
    plan = json.loads((run.path / "plan" / "plan.json").read_text())
    assert [row[:2] for row in shares] == [[t["name"], f"{100 * t['share']:.1f} %"] for t in plan["tasks"]]
    ((_, *scores),) = tables(section(card, "Scores"))
    assert scores == [
        ["even", "accuracy", "40", "50.0", "75.0 (50.0 to 90.0)", "1.250", "1.250"],
        ["echo", "accuracy", "40", "–", "–", "1.250", "1.250"],
    ]
    ((columns, *proof),) = tables(section(card, "Proof"))
    assert [row[0] for row in proof] == ["even", "echo", "total"]
    assert {len(row) for row in proof} == {len(columns)}
    assert "vllm serve base0 --enable-lora --lora-modules out=out" in section(card, "Use")


def test_a_card_names_nothing_of_this_machine_and_nothing_unknown(run, tmp_path):
    card = card_of(run, tmp_path)
    assert str(tmp_path) not in card
    assert section(card, "Scores") == ""
    assert "None" not in card
    assert "More Information" not in card
    assert "license" not in ModelCard(card).data.to_dict()
    assert "base_model" not in ModelCard(card).data.to_dict()


def test_scores_of_other_weights_are_left_out(run, tmp_path):
    values = {"before": {"even": SCORE}, "after": {"even": SCORE}, "weights_of_step": 5}
    (run.path / "eval.json").write_text(json.dumps(values))
    assert section(card_of(run, tmp_path), "Scores") == ""


def images(card: str) -> dict[str, str]:
    """File of every image of a card -> its alternative text."""
    return {file: text for text, file in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", card)}


@pytest.mark.skipif(not can_draw(), reason="vl-convert is not installed: pip install multilora[report]")
def test_a_card_shows_charts_that_are_beside_it(run, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    write_scores(run)
    write_lora(open_source(run), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert list(images(section(card, "Training"))) == ["training_loss.png"]
    assert list(images(section(card, "Scores"))) == ["scores.png"]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == set(images(card))
    assert "95 % confidence interval" in images(card)["scores.png"]
    multilora_colour, first_task_colour = (213, 94, 0), (0, 114, 178)
    for file, colour in (("scores.png", multilora_colour), ("training_loss.png", first_task_colour)):
        with pillow.open(tmp_path / "out" / file) as image:
            drawn = {found: count for count, found in image.convert("RGB").getcolors(maxcolors=1 << 20)}
            assert min(image.size) > 200
        assert drawn[255, 255, 255] > 10_000  # the background, on dark pages too
        assert drawn[colour] > 100


@pytest.mark.skipif(not can_draw(), reason="vl-convert is not installed: pip install multilora[report]")
def test_charts_of_what_is_not_known_are_left_out(run, tmp_path):
    write_scores(run, weights_of_step=5)
    (line, *_) = (run.path / "metrics.jsonl").read_text().splitlines()
    (run.path / "metrics.jsonl").write_text(line + "\n")
    write_lora(open_source(run), tmp_path / "out")
    assert images((tmp_path / "out" / "README.md").read_text()) == {}
    assert list((tmp_path / "out").glob("*.png")) == []


def test_without_vl_convert_a_card_has_no_charts(run, tmp_path, monkeypatch):
    monkeypatch.setattr("multilora.charts.files.find_spec", lambda name: None)
    write_scores(run)
    write_lora(open_source(run), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert section(card, "Scores") != ""
    assert images(card) == {}
    assert "vl-convert" not in card
    assert list((tmp_path / "out").glob("*.png")) == []


def test_a_chart_that_cannot_be_written_leaves_no_export(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multilora.runs.card_charts.can_draw", lambda: True)
    monkeypatch.setattr("multilora.runs.card_charts.draw", full)
    write_scores(run)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        write_lora(open_source(run), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_an_edited_adapter_has_neither_scores_nor_the_training_of_one_run(run, tmp_path):
    values = {"before": {"even": SCORE}, "after": {"even": SCORE}, "weights_of_step": 10}
    (run.path / "eval.json").write_text(json.dumps(values))
    truncated = write_lora(open_source(run), tmp_path / "small", rank=2)
    card = (tmp_path / "small" / "README.md").read_text()
    assert "changed after training" in card
    assert (section(card, "Training") != "", section(card, "Scores")) == (True, "")
    again = {item.consumer: item.commands for item in truncated.commands}["llama.cpp"]
    assert again == (f"multilora export {tmp_path / 'small'} --to gguf --out small.gguf",)

    combine_adapters({str(run.path): 0.5, str(tmp_path / "small"): 0.5}, tmp_path / "sum")
    card = (tmp_path / "sum" / "README.md").read_text()
    assert "the weighted sum of several adapters" in card
    assert section(card, "Training") == section(card, "Scores") == ""


def test_protocols_are_shown_when_they_are_known(run, tmp_path):
    score = {**SCORE, "protocol": "ours, 0-shot"}
    (run.path / "eval.json").write_text(
        json.dumps({"before": {"even": score}, "after": {"even": score}, "weights_of_step": 10})
    )
    ((columns, row),) = tables(section(card_of(run, tmp_path), "Scores"))
    assert dict(zip(columns, row, strict=True))["protocol"] == "ours, 0-shot"


def test_the_card_of_an_adapter_made_elsewhere(run, tmp_path):
    card_of(run, tmp_path, "first")
    readme = tmp_path / "first" / "README.md"
    readme.write_text("---\nlicense: mit\ndatasets:\n- owner/data\ntags:\n- mine\n---\nMy adapter")
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    card = card_of(tmp_path / "first", tmp_path, "second")
    data = ModelCard(card).data.to_dict()
    assert (data["license"], data["datasets"], data["tags"]) == ("mit", ["owner/data"], ["lora"])
    ((_, *facts),) = tables(section(card, "Adapter"))
    assert dict(facts)["method"] == f"LoRA of rank {config['r']}"
    assert section(card, "Training") == ""
    assert "sequences of random tokens" in section(card, "Proof")


@pytest.mark.parametrize("readme", ["---\n: [\n---\n", "---\n- a list\n---\n", "no metadata", "---\nlicense: mit"])
def test_an_unreadable_card_of_the_source_is_ignored(tmp_path, readme):
    (tmp_path / "README.md").write_text(readme)
    assert folder_facts("lora", tmp_path).metadata == {}


def test_a_base_and_datasets_of_the_hub_are_metadata(run, tmp_path, monkeypatch):
    from multilora.export.sources.source import RunSource

    source = RunSource(run)
    export = write_lora(source, tmp_path / "out")
    source.base = "owner/base"
    source.section = source.section.model_copy(update={"name_or_path": "owner/base"})
    path = run.path / "recipe.yaml"
    path.write_text(path.read_text().replace(str(tmp_path / "echo.jsonl"), "hub:owner/data:config"))
    commands = add_card(source, tmp_path / "out", tmp_path / "out", "lora", export.proof)
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert data["base_model"] == "owner/base"
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft"
    assert data["datasets"] == ["owner/data"]
    assert data["tags"] == ["multilora", "lora", "multi-task"]
    assert f'PeftModel.from_pretrained(base, "{tmp_path / "out"}")' in commands[0].commands[-1]


def test_the_card_of_a_run_has_no_placeholders(run, tmp_path):
    file = run.weights / "README.md"
    before = file.read_text()
    assert "More Information" not in before
    assert str(tmp_path) not in before
    assert "No scores of these weights are known." in before
    assert dict(tables(section(before, "Training"))[0][1:])["tokens"].replace(",", "").isdigit()
    assert tables(section(before, "Training"))[1][1][-1] == "own data"
    assert 'AutoPeftModelForCausalLM.from_pretrained("adapter")' in section(before, "Use")
    assert "multilora generate adapter" in section(before, "Use")
    assert "2311.11501" in section(before, "Citation")
    multilora.evaluate(run, max_examples=4)
    ((_, *scores),) = tables(section(file.read_text(), "Scores"))
    assert [row[0] for row in scores] == ["even", "echo"]
    full = multilora.train(run.recipe, ["adapter={method: full}", f"output_dir={tmp_path / 'full'}"])
    card = (full.weights / "README.md").read_text()
    assert ModelCard(card).data.to_dict()["library_name"] == "transformers"
    assert section(card, "Citation") == ""


def test_licences_of_the_base_and_of_the_data(recipe, tmp_path, monkeypatch):
    make_llama().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")  # beside the data
    recipe["model"]["name_or_path"] = str(tmp_path / "base")
    card = (multilora.train(recipe, LEARN).weights / "README.md").read_text()
    ((_, *rows),) = tables(section(card, "Licences"))
    assert rows == [["base", "apache-2.0"], ["data of even", "cc-by-4.0"], ["data of echo", "cc-by-4.0"]]

    cached = tmp_path / "hub" / "datasets--owner--data"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert licence_of("hub:owner/data:config", dataset=True) == {"license": "mit"}
    assert licence_of("hub:owner/other", dataset=True) == licence_of("not a name") == {}


def test_the_card_of_a_merged_model_has_the_licence_of_its_base(recipe, tmp_path):
    make_llama().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\nThe base")
    recipe["model"]["name_or_path"] = str(tmp_path / "base")
    folder = export_merged(multilora.train(recipe, LEARN), tmp_path / "out")
    card = (folder / "README.md").read_text()
    data = ModelCard(card).data.to_dict()
    assert (data["license"], data["library_name"]) == ("apache-2.0", "transformers")
    assert "language" not in data
    assert "The base" not in card
    assert "llama.cpp" in section(card, "Use")
    ((_, *proof),) = tables(section(card, "Proof"))
    assert proof[-1][0] == "total"
