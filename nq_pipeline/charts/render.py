"""Render charts as SVG or PNG, or prepare them for a page; without a browser or a network."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt

from nq_pipeline.charts.theme import LIGHT, PAGE, UNTITLED, WIDTH, Palette, config
from nq_pipeline.files import make_folder, write_atomically


def svg(
    chart: alt.LayerChart,
    *,
    palette: Palette = LIGHT,
    width: int,
    height: int | None = None,
    described: bool = True,
) -> str:
    """The chart as SVG, in pixels; its texts are escaped.

    Unless `described`, the marks lose their tooltips and descriptions. In an `<img>` neither browsers nor
    screen readers can use them.
    """
    import vl_convert

    picture = vl_convert.vegalite_to_svg(_spec(chart, palette, width, height, title=True))
    # Tenths of a pixel are fine enough, and halve the file.
    picture = re.sub(r' (?:d|transform|x1|x2|y1|y2)="[^"]*"', _to_tenths, picture)
    if not described:
        picture = re.sub(r'<path[^>]* opacity="0\.001"[^>]*/>', "", picture)  # marks with only a tooltip
        picture = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", picture)
    return picture


def for_page(chart: alt.LayerChart) -> tuple[dict[str, Any], dict[str, dict[str, list[Any]]]]:
    """The chart's Vega-Lite specification without title, theme and data; and its data, as columns by name.

    A page sets its width, and gives `config(PAGE)` to Vega once for all charts.
    """
    spec = _spec(chart, PAGE, WIDTH, None, title=False)
    for name in ("config", "$schema"):
        del spec[name]
    columns = {
        name: {column: [row[column] for row in rows] for column in rows[0]} if rows else {}
        for name, rows in spec.pop("datasets", {}).items()
    }
    return spec, columns


def vega_embed(folder: Path) -> str:
    """Vega, Vega-Lite and vega-embed as one script, which sets `window.vegaEmbed`.

    It comes from vl-convert, which takes seconds to bundle it; `folder` is the one that keeps it. The
    script has no `</script`, so that a page can contain it.
    """
    from importlib.metadata import version

    path = folder / f"vega-embed-{version('vl-convert-python')}.js"
    with suppress(OSError):
        return path.read_text()
    script = _bundle()
    with suppress(OSError):  # a full or read-only disk costs only the time
        make_folder(folder)
        write_atomically(path, script.encode())
    return script


@cache
def _bundle() -> str:
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def _spec(
    chart: alt.LayerChart, palette: Palette, width: int, height: int | None, title: bool
) -> dict[str, Any]:
    """The chart's Vega-Lite specification for an image of this size."""
    with alt.data_transformers.enable("default", max_rows=None):
        spec = chart.to_dict(validate=False)
    margin = spec["padding"]
    if not title:
        margin = margin | {"top": UNTITLED}
        del spec["title"]
    spec["width"] = width - margin["left"] - margin["right"]
    if height is not None:
        spec["height"] = height - margin["top"] - margin["bottom"]
    return spec | {"padding": margin, "config": config(palette)}


def _to_tenths(attribute: re.Match[str]) -> str:
    return re.sub(r"(\.\d)\d+", r"\1", attribute.group())
