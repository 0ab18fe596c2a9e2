"""Charts as pictures, without a browser and without a network."""

from __future__ import annotations

import re
from typing import Any

import altair as alt

from nq_pipeline.charts.theme import LIGHT, Palette, config


def svg(
    chart: alt.LayerChart,
    *,
    palette: Palette = LIGHT,
    width: int,
    height: int,
    title: bool = True,
    spoken: bool = True,
) -> str:
    """The chart as SVG, all in all `width` by `height` pixels.

    Texts are escaped by the renderer.

    Parameters
    ----------
    title
        Without, there is room for none: the words are the page's.
    spoken
        Without, what marks say is left out: an image on a page can neither show nor read it.
    """
    import vl_convert

    picture = vl_convert.vegalite_to_svg(_spec(chart, palette, width, height, title))
    if not spoken:
        picture = re.sub(r'<path[^>]* opacity="0\.001"[^>]*/>', "", picture)  # marks that only answer
        picture = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", picture)
    # A tenth of a pixel is more than eyes see, and half of the file.
    return re.sub(r' (?:d|transform|x1|x2|y1|y2)="[^"]*"', _to_tenths, picture)


def png(
    chart: alt.LayerChart, *, palette: Palette = LIGHT, width: int, height: int, scale: float = 2
) -> bytes:
    """The chart as PNG on the palette's paper."""
    import vl_convert

    spec = _spec(chart, palette, width, height, title=True)
    return vl_convert.vegalite_to_png(spec, scale=scale)


def _spec(chart: alt.LayerChart, palette: Palette, width: int, height: int, title: bool) -> dict[str, Any]:
    spec = chart.to_dict(validate=False)
    spec |= {"config": config(palette), "width": width, "height": height}
    spec["autosize"] = {"type": "fit", "contains": "padding"}
    spec["padding"] = {"left": 10, "right": 10, "top": 6, "bottom": 4}
    if not title:
        del spec["title"]
    return spec


def _to_tenths(attribute: re.Match[str]) -> str:
    return re.sub(r"(\.\d)\d+", r"\1", attribute.group())
