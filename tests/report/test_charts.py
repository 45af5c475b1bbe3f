"""Charts: styles of methods, what a selector and a file show, and images."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from importlib.resources import files

import pytest

from multilora.charts.chart import Chart, Selector
from multilora.charts.files import can_draw, draw, write_charts
from multilora.charts.styles import COLOURS, OTHERS, SERIES, method_styles
from multilora.errors import InputError
from multilora.report.page import BUNDLE

PAGES = ("#ffffff", "#14171a")  # as in report.css


def luminance(colour):
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", sorted({*OTHERS, *SERIES, *(c for found in COLOURS.values() for c in found)}))
@pytest.mark.parametrize("page", PAGES)
def test_colours_have_enough_contrast(colour, page):
    low, high = sorted(map(luminance, (colour, page)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_a_method_keeps_its_style_in_any_company():
    few = method_styles({"lora r=8": "lora", "full": "full"})
    many = method_styles({"full": "full", "mine": "multilora", "lora r=8": "lora", "lora r=24": "lora", "dora": "dora"})
    assert few["lora r=8"].colour == many["lora r=8"].colour
    assert few["full"].colour == many["full"].colour
    assert len({(style.colour, *style.dash) for style in many.values()}) == 5
    twelve = method_styles({f"multilora {index}": "multilora" for index in range(8)})
    assert len({(style.colour, style.shape) for style in twelve.values()}) == 8


def test_the_vendored_files_are_those_of_the_table():
    folder = files("multilora.charts") / "vendor"
    table = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+\.js) \|.*BSD-3-Clause, (\S+) \| ([0-9a-f]{64}) \|$", table, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(BUNDLE)
    for name, licence, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
        assert "Redistribution and use" in (folder / licence).read_text(encoding="utf-8")


def example(**options):
    rows = [
        {"layer": layer, "kind": kind, "x": x, "y": None if x == 2 else x * 0.5, "method": 'a "b", c'}
        for layer in (0, 1)
        for kind in ("q", "k")
        for x in (1, 2, 3)
    ]
    selectors = [Selector("kind", "module type", ["q", "k"], "all"), Selector("layer", "layer", [0, 1])]
    encoding = {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}}
    return Chart("c", "C", "about", rows, {"mark": "line", "encoding": encoding}, selectors=selectors, **options)


def test_the_selectors_of_a_page_are_filters():
    specification = example().specification()
    assert [item["name"] for item in specification["params"]] == ["chosen_kind", "chosen_layer"]
    assert [item["value"] for item in specification["params"]] == ["all", 0]
    assert specification["transform"] == [
        {"filter": "chosen_kind === 'all' || datum['kind'] === chosen_kind"},
        {"filter": "datum['layer'] === chosen_layer"},
    ]


def test_a_file_has_a_panel_per_value():
    figure = example(facet="kind").figure()
    assert figure["facet"]["field"] == "kind"
    assert figure["transform"] == [{"filter": {"field": "layer", "equal": 0}}]
    assert "params" not in figure
    assert "facet" not in example().figure()


def test_csv_has_the_rows():
    rows = list(csv.DictReader(io.StringIO(example().csv())))
    assert [row["y"] for row in rows[:3]] == ["0.5", "", "1.5"]
    assert rows[0]["method"] == 'a "b", c'


@pytest.mark.skipif(not can_draw(), reason="vl-convert is not installed: pip install multilora[report]")
def test_images_are_drawn(tmp_path):
    images = write_charts([example(facet="kind")], tmp_path)
    assert [path.name for path in images] == ["c.svg", "c.png"]
    svg = (tmp_path / "c.svg").read_text()
    assert svg.count('class="mark-group role-scope cell"') == 2 or svg.count("mark-line") == 2
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "c.vl.json").read_text())["title"] == "C"
    with pytest.raises(InputError, match=r"\.pdf"):
        draw(example(), tmp_path / "c.pdf")
