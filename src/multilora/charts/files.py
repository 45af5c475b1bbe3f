"""Write charts to files: the numbers, the specification and, with vl-convert, an image."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from multilora.charts.chart import Chart
from multilora.errors import InputError
from multilora.files import atomic_file, write_json, write_text

VEGALITE = "6.4"  # of the versions that vl-convert has, the one next to that of the vendored bundle
SCALE = 2.0


def can_draw() -> bool:
    """Whether images can be drawn here: `pip install multilora[report]`."""
    return find_spec("vl_convert") is not None


def write_charts(charts: Iterable[Chart], folder: Path) -> list[Path]:
    """Write `<name>.csv` and `<name>.vl.json` for each chart, and `<name>.svg` and `<name>.png` if they can be drawn.

    Returns:
        the images
    """
    images = []
    for chart in charts:
        write_text(folder / f"{chart.name}.csv", chart.csv())
        write_json(folder / f"{chart.name}.vl.json", chart.figure())
        if can_draw():
            images += [draw(chart, folder / f"{chart.name}.{kind}") for kind in ("svg", "png")]
    return images


def draw(chart: Chart, path: Path) -> Path:
    """Draw a chart as an SVG or PNG file, as its suffix says.

    Raises:
        InputError: vl-convert is not installed, or the suffix is another one.
    """
    kind: Literal[".svg", ".png"] | str = path.suffix
    if kind not in (".svg", ".png"):
        raise InputError(f"{path}: suffix is {kind!r}, expected .svg or .png")
    if not can_draw():
        raise InputError(f"{path}: vl-convert is not installed; pip install multilora[report]")
    import vl_convert

    specification = chart.figure()
    if kind == ".svg":
        image = vl_convert.vegalite_to_svg(specification, vl_version=VEGALITE).encode()
    else:
        image = vl_convert.vegalite_to_png(specification, vl_version=VEGALITE, scale=SCALE)
    with atomic_file(path) as temporary:
        temporary.write_bytes(image)
    return path
