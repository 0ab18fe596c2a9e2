"""Charts as pictures, without a browser and without a network."""

from __future__ import annotations

from typing import Any

import altair as alt

from nq_pipeline.charts.theme import LIGHT, Palette, config


def svg(
    chart: alt.LayerChart, *, palette: Palette = LIGHT, width: int, height: int, title: bool = True
) -> str:
    """The chart as SVG, all in all `width` by `height` pixels.

    Texts are escaped by the renderer. With `title=False` there is room for none: the words are the
    page's.
    """
    import vl_convert

    return vl_convert.vegalite_to_svg(_spec(chart, palette, width, height, title))


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
