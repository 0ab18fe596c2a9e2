"""The report: facts in, one HTML file out.

To add a chart, write a function in `charts/`, export it in `charts/__init__.py`, and list it in
`_product` under its section. A chart that is not of one product goes into `html` and `page.html`.

Jinja escapes all text, because some of it comes from vendors. The Content-Security-Policy allows only
the page's own script and style, by their digests. Each chart is embedded as SVG in two widths, of which
CSS shows one. Their colours are CSS variables of the page, so they follow its light and dark theme.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import polars as pl

from nq_pipeline import charts
from nq_pipeline.charts import render
from nq_pipeline.charts.theme import DARK, LIGHT, PAGE, SANDBOX, ZONE, Palette, Picture
from nq_pipeline.disk import explain_disk_error
from nq_pipeline.files import write_atomically
from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.report.facts import Facts, ProductFacts, load_facts
from nq_pipeline.settings import Settings
from nq_pipeline.spend.statement import Statement
from nq_pipeline.workspace import Workspace

log = logging.getLogger(__name__)

WIDE, NARROW = 560, 358
"""Width of a chart on a desktop screen and on a phone, pixels."""
NONE = "–"


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title and caption; without a chart, `caption` says why."""

    title: str
    caption: str
    wide: str = ""
    narrow: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number."""

    name: str
    value: str
    note: str = ""


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
    page = html(facts).encode()
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


def html(facts: Facts) -> str:
    """The whole page as HTML."""
    import jinja2

    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formatters = (_count, _number, _share, _usd, _local, _total)
    page.filters |= {formatter.__name__.removeprefix("_"): formatter for formatter in formatters}
    style, script = _colours() + _text("page.css"), _text("page.js")
    return page.get_template("page.html").render(
        facts=facts,
        sandbox=SANDBOX if facts.environment == "sandbox" else "",
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        products=[_product(one) for one in facts.products],
        unpriced=_unpriced(facts.pricing),
        agreement=_figure(charts.source_agreement(facts.agreement, environment=facts.environment)),
        spend=_figure(_spend(facts.month)),
        dropped=_dropped(facts.sources),
        version=version("nq_pipeline"),
    )


def _product(product: ProductFacts) -> dict[str, Any]:
    """The template's data for the options on one product."""
    front = product.series.row(0, named=True)
    pictures = {
        "Volatility": [
            charts.smile(product.smile),
            charts.term_structure(product.series),
            charts.expected_move(product.series),
            charts.put_call(product.series),
        ],
        "Positions": [
            charts.open_interest(product.profile, product.series),
            charts.gamma_exposure(product.profile, product.levels),
            charts.open_interest(product.profile, product.series, front["series"]),
            charts.volume(product.profile, product.series, front["series"]),
        ],
        "Trades": [
            charts.pressure(product.pressure, side, forward=product.levels["forward"].drop_nulls().first())  # type: ignore[arg-type]
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
        "tiles": list(_tiles(product, front)),
        "sections": {title: _distinct([_figure(one) for one in own]) for title, own in pictures.items()},
        "series": product.series.with_columns(
            name=charts.series_label(pl.col("series")), days=pl.col("years") * 365
        ).to_dicts(),
    }


def _tiles(product: ProductFacts, front: dict[str, Any]) -> Iterator[Tile]:
    name, forward = charts.series_label_text(front["series"]), front["forward"]
    yield Tile(f"Future {product.underlying}", _number(forward), f"by parity of {name}" if forward else "")
    far = product.series.filter(pl.col("atm_iv").is_not_null()).tail(1).to_dicts()
    later = [f"{_share(one['atm_iv'])} by {charts.series_label_text(one['series'])}" for one in far]
    yield Tile("ATM IV", _share(front["atm_iv"]), "; ".join([name, *later]))
    move = front["expected_move_iv"]
    straddle = f"straddle {_number(front['expected_move_straddle'], 1)}"
    yield Tile(
        "Expected move",
        f"±{_number(move, 0)}" if move else NONE,
        f"{_share(move / forward, 2)} by {name}; {straddle}" if move else name,
    )
    level = product.levels.row(0, named=True)  # of the source with the most contracts, if there are several
    zero = level["zero_gamma"]
    whose = f", of {level['source']}'s series" if product.levels.height > 1 else ""
    net, left_out = level["gex_per_pct"], level["open_interest_left_out"]
    away = (
        f"{zero / level['forward'] - 1:+.2%} from the future".replace("-", "−")
        if zero
        else "none within 10 %"
    )
    yield Tile(
        "Zero gamma",
        _number(zero, 0),
        f"{away}{whose}; net gamma exposure {_signed_millions(net)}, {left_out:,} open contracts left out",
    )
    calls, puts, calls_traded, puts_traded = (
        _known(product.series[f"{side}_{what}"])
        for what in ("open_interest", "volume")
        for side in ("call", "put")
    )
    yield Tile(
        "Put/call ratio", _ratio(puts, calls), f"open interest; {_ratio(puts_traded, calls_traded)} by volume"
    )
    traded = f"{_total([calls_traded, puts_traded])} traded in the session"
    yield Tile("Open interest", _total([calls, puts]), f"contracts; {traded}")


def _figure(picture: Picture) -> Figure:
    if isinstance(picture, str):
        return Figure("", picture)
    wide, narrow = render.svgs(picture, palette=PAGE, widths=[WIDE, NARROW], title=False)
    title = picture.title
    return Figure(str(title.text), str(title.subtitle[0]), wide, narrow)


def _distinct(figures: list[Figure]) -> list[Figure]:
    """Remove repeated figures: several charts may have the same reason for being empty."""
    return list(dict.fromkeys(figures))


def _spend(month: Statement) -> Picture:
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


def _colours() -> str:
    def variables(palette: Palette) -> str:
        return "".join(f"--{name}:{value};" for name, value in asdict(palette).items())

    dark = f"@media screen and (prefers-color-scheme: dark){{:root{{{variables(DARK)}}}}}"
    return f":root{{{variables(LIGHT)}}}\n{dark}\n"


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def _share(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:.{digits}%}"


def _usd(value: float | Decimal | None, digits: int = 2) -> str:
    return NONE if value is None else f"${value:,.{digits}f}"


def _signed_millions(usd: float | None) -> str:
    """Dollars per 1 % move, with their sign."""
    return "unknown" if usd is None else f"{usd / 1e6:+,.1f} million dollars per 1 %".replace("-", "−")


def _local(moment: datetime | None, form: str = "%H:%M:%S") -> str:
    """An instant in Chicago time."""
    return NONE if moment is None else moment.astimezone(ZoneInfo(ZONE)).strftime(form)


def _known(counts: pl.Series) -> int | None:
    """The sum of the known counts; None when all are unknown."""
    return int(counts.sum()) if counts.count() else None


def _ratio(part: int | None, whole: int | None) -> str:
    return NONE if part is None or not whole else _number(part / whole)


def _total(parts: list[int | None]) -> str:
    known = [part for part in parts if part is not None]
    return _count(sum(known)) if known else NONE
