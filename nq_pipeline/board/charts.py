"""The board's charts as Vega specifications without data, and the library that draws them in the page.

The page changes their data and signals as messages arrive. Colours are the page's CSS variables, so a chart
follows its light and dark theme. `ast` makes Vega interpret its expressions, which a strict
Content-Security-Policy allows; it would otherwise compile them to JavaScript.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import altair as alt
import orjson

from nq_pipeline.charts.theme import PAGE, axis, config, described
from nq_pipeline.errors import ServeError

SNIPPET = """
window.drawChart = async (element, spec) => {
  const plain = { ast: true, actions: false, renderer: "svg", defaultStyle: false, mode: "vega",
    logLevel: 1 };  // errors only: Vega warns of a chart that is still empty
  const tooltip = { disableDefaultStyle: true, formatTooltip: (value, clean) => clean(value.title ?? value) };
  return (await vegaEmbed(element, spec, { ...plain, tooltip })).view;
};
"""


class ChartFiles:
    """The files of the page's charts, made when the first page asks for them.

    A process of its own makes them: it takes seconds in which Python's lock is held, and 150 MB.
    """

    def __init__(self) -> None:
        self._made: asyncio.Task[tuple[bytes, bytes]] | None = None

    async def library(self) -> bytes:
        """Vega with the function `drawChart`, about 900 kB of JavaScript."""
        return (await self._files())[0]

    async def specifications(self) -> bytes:
        """The charts `price` and `strikes` as a JSON object of Vega specifications."""
        return (await self._files())[1]

    async def _files(self) -> tuple[bytes, bytes]:
        if self._made is None or (self._made.done() and self._made.exception()):  # after an error, again
            self._made = asyncio.create_task(_make_in_process())
        return await asyncio.shield(self._made)


async def _make_in_process() -> tuple[bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise ServeError("the charts could not be made; the messages above say why")
    specifications, _, library = printed.partition(b"\n")
    return library, specifications


def _print_files() -> None:
    import vl_convert

    charts = {"price": _price(), "strikes": _strikes()}
    compiled = {name: vl_convert.vegalite_to_vega(_whole(chart)) for name, chart in charts.items()}
    sys.stdout.buffer.write(orjson.dumps(compiled, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.write(vl_convert.javascript_bundle(SNIPPET).encode())


def _price() -> Any:
    """A line of `price` by `wall`, Chicago's wall time as UTC milliseconds; rows in the data set `price`."""
    base = alt.Chart(alt.NamedData("price"))
    x = alt.X(
        "wall:T",
        scale=alt.Scale(type="utc", nice=False),
        axis=axis("", format="%H:%M", tickCount=6),
    )
    y = alt.Y("price:Q", scale=alt.Scale(zero=False), axis=axis("points", format=",d", tickCount=5))
    last = alt.Chart(alt.NamedData("last"))
    return alt.layer(
        base.mark_line(style="line", interpolate="step-after").encode(x=x, y=y),
        base.mark_point(opacity=0.001, size=200).encode(x=x, y=y, **described()),
        last.mark_point(style="dots").encode(x=x, y=y, **described()),
    )


def _strikes() -> Any:
    """Contracts bought (to the right) and sold by strike; rows in the data set `strikes`.

    A row has `low` and `high` of its group of strikes, `bought`, `sold` (negative) and `label`; the data set
    `spot` has a row with `low`, the future's price. The signals `most`, `lowest` and `highest` set the
    scales, so that calls and puts can be compared.
    """
    base = alt.Chart(alt.NamedData("strikes"))
    y = alt.Y(
        "low:Q",
        scale=alt.Scale(
            zero=False, nice=False, domainMin=alt.expr(expr="lowest"), domainMax=alt.expr(expr="highest")
        ),
        axis=axis("strike", format=",d", tickCount=8, grid=False),
    )
    x = {
        name: alt.X(
            f"{name}:Q",
            scale=alt.Scale(nice=False, domainMin=alt.expr(expr="-most"), domainMax=alt.expr(expr="most")),
            axis=axis(
                "contracts", labelExpr="format(abs(datum.value), ',d')", tickCount=5, tickMinStep=1, grid=True
            ),
        )
        for name in ("bought", "sold")
    }
    bars = [
        base.mark_rect(style=style).encode(
            x=x[name], x2=alt.X2(datum=0), y=y, y2=alt.Y2("high:Q"), **described()
        )
        for name, style in (("bought", "buy"), ("sold", "sell"))
    ]
    spot = alt.Chart(alt.NamedData("spot")).mark_rule(style="spot").encode(y=alt.Y("low:Q"))
    zero = alt.Chart(alt.NamedData("spot")).mark_rule(style="zero").encode(x=alt.X(datum=0))
    params = [
        alt.param(name=name, value=value) for name, value in (("most", 10), ("lowest", 0), ("highest", 1))
    ]
    return alt.layer(*bars, zero, spot).add_params(*params)


def _whole(chart: Any) -> dict[str, Any]:
    sized = chart.properties(
        width="container",
        height="container",
        autosize=alt.AutoSizeParams(type="fit", contains="padding", resize=True),
        padding={"left": 0, "right": 8, "top": 18, "bottom": 0},
    )
    sized.config = config(PAGE)
    spec: dict[str, Any] = sized.to_dict(validate=False)
    return spec


if __name__ == "__main__":
    _print_files()
