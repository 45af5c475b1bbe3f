"""Reports of a run and a study: what they say, and that a browser shows it without a network."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from browser import missing, opened, wait_for
from conftest import make_recipe
from pages import make_run, make_study, specifications

from multilora.charts.chart import Chart
from multilora.cli import main
from multilora.errors import InputError, RunDirectoryError
from multilora.evaluation.samples import read_samples
from multilora.report.page import Figure, Page, Section, Table, Text
from multilora.report.write import report

WIDTHS = (400, 1200)
needs_browser = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    path = make_run(make_recipe(tmp_path_factory.mktemp("run"), model_folder))
    report(path, token_losses=True)
    return path


@pytest.fixture(scope="module")
def study(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    path = make_study(make_recipe(folder, model_folder), folder)
    report(path)
    return path


def test_the_report_of_a_run_has_its_numbers(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    scores = json.loads((run / "eval.json").read_text())["after"]
    assert f"{scores['echo']['loss']:.3f}" in text
    value, (low, high) = scores["even"]["value"], scores["even"]["interval"]
    assert f"{100 * value:.1f} <small><span>({100 * low:.1f} to {100 * high:.1f})</span></small>" in text
    assert "95 % confidence intervals" in text
    assert "standard error" not in text
    charts = specifications(run / "report.html")
    assert set(charts) == {
        *("scores", "training_loss", "evaluations", "learning_rate", "shares"),
        *("singular_values", "dominance", "branches", "intruders"),
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = [row["loss"] for row in charts["training_loss"]["data"]["values"] if row["task"] == "echo"]
    assert drawn == [line["loss/echo"] for line in lines if line.get("loss/echo") is not None]
    spectrum = json.loads((run / "analysis" / "spectrum.json").read_text())
    largest = [row for row in charts["singular_values"]["data"]["values"] if row["number"] == 1]
    assert len(largest) == len(spectrum["matrices"]) == 14
    assert {row["share"] for row in largest} == {1.0}


def test_the_token_losses_of_an_answer_add_up_to_its_loss(run):
    from multilora.report.token_losses import token_losses_of
    from multilora.runs.directory import Run

    losses = token_losses_of(Run(run))
    assert {task for task, _ in losses} == {"even", "echo"}
    samples = {(sample.task, sample.index): sample for sample in read_samples(run / "samples" / "run.parquet")}
    for key, found in losses.items():
        assert sum(nats for _, nats in found["after"]) == pytest.approx(samples[key].reference_nats, abs=1e-3)
        assert [text for text, _ in found["before"]] == [text for text, _ in found["after"]]
        assert all(nats >= 0 for who in ("before", "after") for _, nats in found[who])
        assert [nats for _, nats in found["before"]] != [nats for _, nats in found["after"]]
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count('class="tokens"') == 2 * len(losses)


def test_a_report_names_what_is_missing(recipe, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["multilora", "train", str(write_recipe(recipe))])
    with contextlib.suppress(SystemExit):
        main()
    assert "report: " in capsys.readouterr().out
    text = (path := report(recipe["output_dir"])).read_text(encoding="utf-8")
    assert f"multilora eval {path.parent}" in text
    assert f"multilora analyze {path.parent}" in text
    assert "scores" not in specifications(path)


def write_recipe(recipe):
    file = Path(recipe["output_dir"]).with_name("recipe.yaml")
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_the_report_of_a_study_has_its_numbers(study):
    results = json.loads((study / "results" / "results.json").read_text())
    charts = specifications(study / "report.html")
    assert {"final_scores", "differences", "task_changes", "search", "forgetting", "training_loss"} <= set(charts)
    pairs = {row["pair"] for row in charts["similarity"]["data"]["values"]}
    assert pairs == {
        "multilora 2x1, seed 0 – lora r=2, seed 0",
        *(f"{method}, seed 0 – {method}, seed 1" for method in ("lora r=2", "multilora 2x1")),
    }
    trials = {(row["method"], row["tried"]): row["loss"] for row in charts["search"]["data"]["values"]}
    expected = {
        (item["method"], item["setting"]["training.learning_rate"]): item["macro_loss"]
        for item in results["runs"]
        if item["stage"] == "trial"
    }
    assert trials == expected
    points = charts["forgetting_by_intruders"]["data"]["values"]
    measured = [run for run in results["runs"] if run["stage"] in ("trial", "final")]
    assert [(row["forgetting"], row["intruders"]) for row in points] == [
        (run["forgetting"], run["intruders"]) for run in measured
    ]
    assert results["forgetting_by_intruders"]["runs"] == len(points) == 8
    assert "rank correlation" in (study / "report.html").read_text(encoding="utf-8")
    losses = [item for item in results["differences"] if item["quantity"] == "loss"]
    drawn = [row for row in charts["differences"]["data"]["values"] if "nats" in row["quantity"]]
    assert {row["difference"] for row in drawn} >= {item["difference"] for item in losses}
    assert "±" in (study / "report.html").read_text(encoding="utf-8")


def test_the_report_of_a_study_with_one_seed(study, tmp_path):
    """JSON has no infinite bounds: they are null."""
    shutil.copytree(study, tmp_path / "study")
    file = tmp_path / "study" / "results" / "results.json"
    results = json.loads(file.read_text())
    for item in results["differences"]:
        item |= {"low": None, "high": None, "adjusted_p_value": None}
    file.write_text(json.dumps(results))
    text = report(tmp_path / "study").read_text(encoding="utf-8")
    assert "(one seed: interval unknown)" in text
    assert "differences" not in specifications(tmp_path / "study" / "report.html")


def test_a_method_has_one_colour_in_all_charts(study, run):
    colours: dict[str, set[str]] = {}
    for page in (study, run):
        text = json.dumps(specifications(page / "report.html"))
        pattern = r'"field": "method", "type": "nominal", "scale": \{"domain": (\[[^]]*\]), "range": (\[[^]]*\])\}'
        for domain, values in re.findall(pattern, text):
            if "#" not in values:
                continue
            for label, colour in zip(json.loads(domain), json.loads(values), strict=True):
                colours.setdefault(label.split(" ")[0], set()).add(colour)
    assert set(colours) == {"lora", "multilora"}
    assert all(len(found) == 1 for found in colours.values())
    assert colours["lora"] != colours["multilora"]


def test_nothing_in_the_data_ends_the_script(tmp_path):
    hostile = "</script><script>window.broken = true</script>"
    chart = Chart("x", hostile, hostile, [{"a": hostile, "b": float("nan")}], {"mark": "point", "encoding": {}})
    page = Page(
        hostile, hostile, [Section("S", [Text(hostile), Table(hostile, [hostile], [[hostile]]), Figure(chart)])]
    )
    html = page.html()
    assert "<script>window.broken" not in html
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    assert specifications(tmp_path / "report.html")["x"]["data"]["values"] == [{"a": hostile, "b": None}]


def test_no_page_asks_for_anything_on_a_network(run, study):
    for page in (run, study):
        text = (page / "report.html").read_text(encoding="utf-8")
        outside = re.sub(r"<script>.*?</script>|<script type.*?</script>", "", text, flags=re.DOTALL)
        assert not re.search(r"(?:src|href)=[\"']?https?:", outside)
        assert "sourceMappingURL" not in text
        assert "default-src 'none'" in text


def test_what_is_no_run_raises(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no recipe\.yaml"):
        report(tmp_path / "nothing")
    with pytest.raises(InputError, match="expected the folder of a run or of a study"):
        report(tmp_path)
    (tmp_path / "study.yaml").write_text("methods: {}")
    with pytest.raises(InputError, match="multilora study"):
        report(tmp_path)
    with pytest.raises(InputError, match="token losses"):
        report(tmp_path, token_losses=True)
    assert not (tmp_path / "report.html").exists()


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["run", "study"])
def test_a_browser_shows_the_report(kind, width, dark, request):
    page = request.getfixturevalue(kind) / "report.html"
    with opened(page, width=width, dark=dark) as driver:
        assert driver.get_log("browser") == []
        charts = driver.execute_script("return Object.keys(reportViews)")
        assert set(charts) == set(specifications(page))
        assert driver.execute_script("return document.querySelectorAll('.chart svg').length") == len(charts)
        page_width = driver.execute_script("return document.documentElement.scrollWidth")
        assert page_width <= width  # only tables scroll sideways, inside their frame
        wide = "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
        assert width < 1200 or driver.execute_script(wide) == 0
        ink = driver.execute_script("return getComputedStyle(document.querySelector('.chart text')).fill")
        light = sum(map(int, re.findall(r"\d+", ink)[:3])) > 3 * 128
        assert light == dark
        unnamed = "return [...document.querySelectorAll('select')].filter(s => !s.closest('label')).length"
        assert driver.execute_script(unnamed) == 0
        assert driver.execute_script("return [...document.querySelectorAll('table')].every(t => t.caption)")


@needs_browser
def test_a_selector_changes_the_chart_and_a_csv_holds_its_numbers(run, tmp_path):
    page = run / "report.html"
    with opened(page, downloads=tmp_path) as driver:
        path = "document.querySelector('[data-chart=singular_values] svg .mark-line path').getAttribute('d')"
        before = driver.execute_script(f"return {path}")
        choose = """
            const select = document.querySelector('[data-chart=singular_values] select');
            select.value = [...select.options].find(o => o.text === arguments[0]).value;
            select.dispatchEvent(new Event('change', {bubbles: true}));
        """
        driver.execute_script(choose, "k_proj")
        wait_for(lambda: driver.execute_script(f"return {path}") != before)
        driver.execute_script("document.querySelector('[data-csv=singular_values]').click()")
        file = tmp_path / "singular_values.csv"
        wait_for(lambda: file.is_file() and not list(tmp_path.glob("*.crdownload")))
        assert driver.get_log("browser") == []
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    drawn = specifications(page)["singular_values"]["data"]["values"]
    assert [(row["name"], int(row["number"]), float(row["share"])) for row in rows] == [
        (row["name"], row["number"], row["share"]) for row in drawn
    ]
