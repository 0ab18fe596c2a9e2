"""The report: facts in, one HTML file out.

To add a chart, write a function in `charts/`, export it in `charts/__init__.py`, and list it in
`_product` under its section. A chart that is not of one product goes into `html` and `page.html`.

Jinja escapes all text, because some of it comes from vendors. The Content-Security-Policy allows only
the page's own scripts and style, by their digests. Charts are Vega-Lite specifications that the page's own
copy of Vega draws; their colours are CSS variables of the page, so they follow its light and dark theme.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import orjson
import polars as pl
from altair.utils import schemapi

from nq_pipeline import charts
from nq_pipeline.charts import render, theme
from nq_pipeline.disk import explain_disk_error
from nq_pipeline.files import write_atomically
from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.report.facts import Facts, Measures, Moment, ProductFacts, load_facts
from nq_pipeline.report.formats import count, local, number, share, total, usd
from nq_pipeline.report.headline import tiles
from nq_pipeline.settings import Settings
from nq_pipeline.spend.statement import Statement
from nq_pipeline.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title and caption; without a chart, `caption` says why."""

    title: str
    caption: str
    chart: int | None = None  # its place in the specifications of the page


@dataclass(frozen=True, slots=True)
class Choice:
    """A control that sets a parameter of the charts in its section: one of the options, or any of them."""

    parameter: str
    words: str
    options: dict[str, str]  # the words by value
    chosen: tuple[str, ...]  # the values of the beginning
    many: bool = False
    shades: dict[str, int] = field(default_factory=dict)


class _Charts:
    """The charts of a page: their specifications, and their data by name, each once."""

    def __init__(self) -> None:
        self._specs: list[dict[str, Any]] = []
        self._datasets: dict[str, Any] = {}

    def figure(self, picture: theme.Picture) -> Figure:
        if isinstance(picture, str):
            return Figure("", picture)
        spec, datasets = render.for_page(picture)
        self._specs.append(spec)
        self._datasets |= datasets
        title = picture.title
        return Figure(str(title.text), str(title.subtitle[0]), len(self._specs) - 1)

    def packed(self) -> str:
        """All charts as JSON, compressed with gzip, in base64."""
        page = {"config": theme.config(theme.PAGE), "specs": self._specs, "datasets": self._datasets}
        return base64.b64encode(gzip.compress(orjson.dumps(page), 6, mtime=0)).decode()


class WrittenReport(NamedTuple):
    """A report that was written: where it is, its file if that is on this machine, and the page."""

    uri: str
    path: Path | None
    page: bytes


def write_report(settings: Settings, *, snapshot_ts: datetime | None = None) -> WrittenReport:
    """Write the report of the newest snapshot, or of the chain as of an instant with a time zone.

    The page is `reports/<snapshot in UTC>.html` of the environment, or in a temporary folder when the data's
    disk is full or read-only. Raises `LakeError` when the lake has no chain at that moment.
    """
    facts = load_facts(settings, snapshot_ts)
    reports, name = Workspace.of(settings).reports, f"{facts.snapshot_ts:%Y-%m-%dT%H-%M-%SZ}.html"
    page = html(facts, render.vega_embed(Workspace.of(settings).cache)).encode()
    try:
        reports.put(name, page)
    except OSError as error:
        if (reason := explain_disk_error(error, settings.environment_dir)) is None:
            raise
        log.warning("the report cannot be written with the data: %s", reason)
        path = Path(mkdtemp(prefix="nq-report-")) / name
        write_atomically(path, page)
        return WrittenReport(str(path), path, page)
    if isinstance(reports, LocalObjects):
        path = reports.path(name).resolve()
        return WrittenReport(str(path), path, page)
    return WrittenReport(reports.uri(name), None, page)


def html(facts: Facts, vega_embed: str) -> str:
    """The whole page as HTML; `vega_embed` is the script of `render.vega_embed`."""
    import jinja2

    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {one.__name__: one for one in (count, number, share, usd, local, total)}
    swatches = "".join(f".shade-{at}{{background:var(--shade-{at})}}" for at in range(theme.SHADES))
    style = f"{theme.page_colours()}{swatches}\n{_text('page.css')}"
    scripts, drawn = (vega_embed, _text("page.js")), _Charts()
    digests = " ".join(f"'{_digest(script)}'" for script in scripts)
    moments = {moment.name: _moment_words(moment, facts) for moment in facts.moments}
    with schemapi.debug_mode(False):  # altair's validation takes a quarter of the time; the tests do it
        products = [_product(one, drawn) for one in facts.products]
        agreement = drawn.figure(charts.source_agreement(facts.agreement, environment=facts.environment))
        spend = drawn.figure(_spend(facts.month))
    return page.get_template("page.html").render(
        facts=facts,
        sandbox=theme.SANDBOX if facts.environment == "sandbox" else "",
        style=style,
        scripts=scripts,
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src {digests}; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        against=Choice("against", "Compare with", {"": "nothing", **moments}, (next(reversed(moments), ""),)),
        products=products,
        unpriced=_unpriced(facts.pricing),
        agreement=agreement,
        spend=spend,
        dropped=_dropped(facts.sources),
        version=version("nq_pipeline"),
        charts=drawn.packed(),
    )


def _moment_words(moment: Moment, facts: Facts) -> str:
    """`09:55` of the same trade date, or `Mon 9 Jun 15:50` of an earlier one."""
    if moment.trade_date == facts.trade_date:
        return f"previous snapshot, {local(moment.snapshot_ts, '%H:%M')}"
    return f"last close, {local(moment.snapshot_ts, '%a %-d %b %H:%M')}"


def _product(product: ProductFacts, drawn: _Charts) -> dict[str, Any]:
    """The template's data for the options on one product."""
    now, forward = product.now, product.now.levels["forward"].drop_nulls().first()
    profiles = product.of_moments("profile")
    pictures = {
        "Volatility": [
            charts.smile_explorer(product.of_moments("quotes")),
            charts.term_structure(product.of_moments("series")),
            charts.expected_move(now.series),
            charts.surface(product.surface),
        ],
        "Intraday": [
            charts.volatility_history(product.history),
            charts.level_history(product.history),
            charts.gamma_history(product.history),
        ],
        "Positions": [
            charts.open_interest(profiles, now.series),
            charts.gamma_exposure(profiles, now.levels),
            charts.volume(profiles, now.series),
            charts.open_interest_change(product.changes, forward),  # type: ignore[arg-type]
            charts.put_call(now.series),
        ],
        "Trades": [
            charts.pressure(product.pressure, side, forward=forward)  # type: ignore[arg-type]
            for side in "CP"
        ]
        if product.pressure.height
        else [
            "No live trades of these options were captured up to this trade date; `nq capture` records them."
        ],
    }
    return {
        "code": product.product.code,
        "name": product.product.name,
        "tiles": list(tiles(product)),
        # Each figure once: several charts may have the same reason for being empty.
        "sections": {title: list(dict.fromkeys(map(drawn.figure, own))) for title, own in pictures.items()},
        "choices": _choices(now, forward),  # type: ignore[arg-type]
        "series": now.series.with_columns(
            name=charts.series_label(pl.col("series")), days=pl.col("years") * 365
        ).to_dicts(),
    }


def _choices(now: Measures, forward: float | None) -> dict[str, list[Choice]]:
    """The controls of each section."""
    of_chain = theme.with_shade(now.series).sort("expiration", "series")
    names = dict(of_chain.select("series", charts.series_label(pl.col("series")).alias("name")).iter_rows())
    shades = dict(of_chain.select("series", "shade").iter_rows())
    shown = Choice("shown", "Expirations", names, (), many=True, shades=shades)
    quoted = theme.with_shade(now.quotes).sort("years", "series")
    in_smile = dict(quoted.select("series", "shade").unique(maintain_order=True).iter_rows())
    axes = {"deviations": "σ", "strike": "strike", "delta": "delta", "log_moneyness": "log-moneyness"}
    sides = {"otm": "out of the money", "C": "calls", "P": "puts"}
    reaches = {f"{reach:g}": f"±{reach:.0%}" for reach in charts.REACHES}
    first = charts.first_reach(now.profile, forward)
    return {
        "Volatility": [
            replace(
                shown,
                options={series: names[series] for series in in_smile if series in names},
                shades=in_smile,
                chosen=tuple(theme.spaced(now.quotes, 4)),
            ),
            Choice("axis", "Axis", axes, ("deviations",)),
            Choice("sides", "Options", sides, ("otm",)),
        ],
        "Positions": [
            shown,
            Choice("reach", "Strikes", {**reaches, "0": "all"}, (f"{first:g}",)),
            Choice("sides", "Options", {"both": "calls and puts", "C": "calls", "P": "puts"}, ("both",)),
        ],
    }


def _spend(month: Statement) -> theme.Picture:
    days = pl.DataFrame([asdict(day) for day in month.days])
    budget = float(month.budgets.monthly_usd)
    return charts.spend(days, budget_usd=budget, environment=month.environment)


def _unpriced(pricing: pl.DataFrame) -> dict[str, Any]:
    """How many rows have an implied volatility, and why the others have none."""
    reasons = pricing["unpriced"].drop_nulls().value_counts(sort=True)
    return {
        "rows": pricing.height,
        "priced": pricing["unpriced"].null_count(),
        "reasons": {str(name).replace("_", " "): count for name, count in reasons.iter_rows()},
    }


def _dropped(sources: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Rows and cells of each source that could not be used, by reason."""
    rows = sources.select("source", "dropped_by_reason").drop_nulls().iter_rows()
    return {source: json.loads(reasons) for source, reasons in rows}


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
