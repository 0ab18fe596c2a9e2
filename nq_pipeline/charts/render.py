"""Render charts as SVG or PNG, without a browser or a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import altair as alt

from nq_pipeline.charts.theme import LIGHT, UNTITLED, Palette, config


def svg(
    chart: alt.LayerChart,
    *,
    palette: Palette = LIGHT,
    width: int,
    height: int | None = None,
    title: bool = True,
    described: bool = True,
) -> str:
    """The chart as SVG, in pixels; its texts are escaped. A page that shows the `title` itself leaves it out.

    Unless `described`, the marks lose their tooltips and descriptions. In an `<img>` neither browsers nor
    screen readers can use them.
    """
    (picture,) = svgs(chart, palette=palette, widths=[width], height=height, title=title)
    if not described:
        picture = re.sub(r'<path[^>]* opacity="0\.001"[^>]*/>', "", picture)  # marks with only a tooltip
        picture = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", picture)
    return picture


def svgs(
    chart: alt.LayerChart,
    *,
    palette: Palette = LIGHT,
    widths: Sequence[int],
    height: int | None = None,
    title: bool = True,
) -> list[str]:
    """The chart as SVG in several widths, compiled once; parameters as for `svg`."""
    import vl_convert

    compiled = vl_convert.vegalite_to_vega(_spec(chart, palette, widths[0], height, title))
    across = widths[0] - compiled["width"]
    pictures = (vl_convert.vega_to_svg(compiled | {"width": width - across}) for width in widths)
    # Tenths of a pixel are fine enough, and halve the file.
    return [re.sub(r' (?:d|transform|x1|x2|y1|y2)="[^"]*"', _to_tenths, picture) for picture in pictures]


def png(
    chart: alt.LayerChart, *, palette: Palette = LIGHT, width: int, height: int, scale: float = 2
) -> bytes:
    """The chart as PNG, on the palette's background."""
    import vl_convert

    spec = _spec(chart, palette, width, height, title=True)
    return vl_convert.vegalite_to_png(spec, scale=scale)


def _spec(
    chart: alt.LayerChart, palette: Palette, width: int, height: int | None, title: bool
) -> dict[str, Any]:
    """The chart's Vega-Lite specification for an image of this size."""
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
