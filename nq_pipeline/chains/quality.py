"""The quality of a chain: pure functions from frames to findings.

A function returns None where there is nothing to judge, so that no check passes on missing data. The failover
selects the winner; these findings show how good the result is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, time

import polars as pl

from nq_pipeline.chains.failover import BAD_QUOTE, NATIVE, QUOTED, latest_plausible, oldest_fresh
from nq_pipeline.finding import Finding
from nq_pipeline.market.contracts import PROXY_ROOTS, ROOTS
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest

PARITY_STRIKES = 5
"""Strikes nearest the forward that the parity of each series uses."""
MIN_AGREEING = 0.95
"""Share of common contracts on which two sources must agree."""

_MID = (pl.col("bid") + pl.col("ask")) / 2
_SPREAD = pl.col("ask") - pl.col("bid")


def of_source(answer: ChainAnswer, request: ChainRequest, settings: Settings) -> dict[str, Finding]:
    """The findings on one source's answer, by the name of the check."""
    frame = answer.frame
    return _present(
        available=available(answer),
        rows_complete=rows_complete(answer),
        no_bad_quotes=no_bad_quotes(frame, settings.chains.max_bad_quotes),
        unique_contracts=unique_contracts(frame),
        fresh=fresh(frame, request, settings.chains.stale_after_s),
    )


def of_chain(
    chain: pl.DataFrame,
    decisions: pl.DataFrame,
    answers: Mapping[str, ChainAnswer],
    request: ChainRequest,
    settings: Settings,
) -> dict[str, Finding]:
    """The findings on the chosen chain, by the name of the check."""
    frames = {name: answer.frame for name, answer in answers.items()}
    return _present(
        available=chain_available(chain, decisions),
        series_covered=series_covered(request, decisions),
        no_proxy=no_proxy(chain),
        no_bad_quotes=no_bad_quotes(chain, settings.chains.max_bad_quotes),
        unique_contracts=unique_contracts(chain),
        fresh=fresh(chain, request, settings.chains.stale_after_s),
        parity_forward=parity_forward(chain, settings.pricing.parity_tolerance),
        sources_agree=sources_agree(chain, frames, settings.pricing.parity_tolerance),
    )


def not_asked(reason: str) -> Finding:
    """The finding on a source that was skipped on purpose."""
    return Finding(False, f"not asked: {reason.removeprefix('not asked: ')}", "warn")


def available(answer: ChainAnswer) -> Finding:
    """Whether the vendor answered completely."""
    rows = answer.frame.height
    mild = answer.outcome.has_rows or answer.outcome is Outcome.NOT_CONFIGURED
    sentence = (
        f"{answer.outcome}: {answer.reason}" if answer.reason else f"{answer.outcome}: {rows:,} contracts"
    )
    return Finding(
        passed=answer.outcome is Outcome.OK,
        sentence=sentence,
        severity="warn" if mild else "error",
        numbers={"outcome": str(answer.outcome), "contracts": rows},
    )


def rows_complete(answer: ChainAnswer) -> Finding | None:
    """Whether the vendor's own control totals held and every series came whole."""
    if answer.frame.is_empty():
        return None
    broken = [name for name, held in answer.controls.items() if not held]
    partial = [key for key, series in answer.series.items() if series.outcome is Outcome.PARTIAL]
    numbers = {
        "contracts": answer.frame.height,
        "controls": len(answer.controls),
        "controls_broken": len(broken),
        "series_partial": len(partial),
        "dropped": answer.dropped.total(),
    }
    if broken:
        return Finding(False, f"control totals do not match: {', '.join(broken)}", numbers=numbers)
    if partial:
        return Finding(False, f"incomplete series: {_shorten(partial)}", "warn", numbers)
    held = f"control totals match: {', '.join(answer.controls)}" if answer.controls else "no control totals"
    return Finding(True, f"every series is complete; {held}", numbers=numbers)


def no_bad_quotes(frame: pl.DataFrame, max_share: float) -> Finding | None:
    """No bid above its ask, no negative or infinite price; up to `max_share` is only a warning."""
    bid, ask = pl.col("bid"), pl.col("ask")
    counts = frame.select(
        quoted=QUOTED.sum(),
        crossed=(bid > ask).sum(),
        negative=((bid < 0) | (ask < 0)).sum(),
        not_finite=(~bid.is_finite() | ~ask.is_finite()).sum(),
        bad=BAD_QUOTE.sum(),
    ).row(0, named=True)
    quoted, bad = counts["quoted"], counts["bad"]
    if not quoted:
        return None
    return Finding(
        passed=bad == 0,
        sentence=f"{bad:,} of {quoted:,} quotes are crossed, negative or not finite",
        severity="warn" if bad <= max_share * quoted else "error",
        numbers=counts,
    )


def unique_contracts(frame: pl.DataFrame) -> Finding | None:
    """Every contract at most once."""
    if frame.is_empty():
        return None
    contracts = frame["contract_key"].n_unique()
    twice = frame.height - contracts
    return Finding(
        passed=twice == 0,
        sentence=f"{contracts:,} contracts, {twice:,} duplicate rows",
        numbers={"contracts": contracts, "rows_too_many": twice},
    )


def fresh(frame: pl.DataFrame, request: ChainRequest, stale_after_s: int) -> Finding | None:
    """The newest quote or trade is as young as the failover asks of a healthy source, and no younger.

    The newest counts, not each row's: most contracts last traded hours ago at any vendor.
    """
    newest = newest_quote(frame)
    if newest is None:
        return None
    timed = bool(frame["quote_ts"].count())
    oldest = oldest_fresh(request, stale_after_s, timed=timed)
    age = (request.moment - newest).total_seconds()
    # A date without a time is stored as midnight UTC, which in Chicago is the evening before.
    of = in_chicago(newest) if newest.time() != time() else f"{newest:%Y-%m-%d}, without a time"
    return Finding(
        passed=oldest <= newest <= latest_plausible(request),
        sentence=f"the newest quote or trade is from {of}; it must be from {in_chicago(oldest)} or later",
        numbers={"age_s": age},
    )


def newest_quote(frame: pl.DataFrame) -> datetime | None:
    """The newest quote or trade of a chain."""
    value = frame.select(pl.max_horizontal(pl.col("quote_ts").max(), pl.col("last_ts").max())).item()
    return value if isinstance(value, datetime) else None


def chain_available(chain: pl.DataFrame, decisions: pl.DataFrame) -> Finding:
    """Whether any source won anything."""
    if chain.height:
        winners = chain.group_by("source").len().sort("len", descending=True).iter_rows()
        won = ", ".join(f"{source} {contracts:,}" for source, contracts in winners)
        return Finding(True, f"{chain.height:,} contracts ({won})", numbers={"contracts": chain.height})
    causes = decisions.group_by("source", maintain_order=True).agg(pl.col("reason").first()).iter_rows()
    lost = "; ".join(f"{source}: {reason}" for source, reason in causes)
    return Finding(
        False, f"no source has a usable chain ({lost or 'none was asked'})", numbers={"contracts": 0}
    )


def series_covered(request: ChainRequest, decisions: pl.DataFrame) -> Finding:
    """Every series asked for has a winner, except those that each source says are not listed."""
    by_series = decisions.group_by("series").agg(
        won=pl.col("won").any(), listed=(pl.col("outcome") != str(Outcome.EMPTY)).any()
    )
    won = set(by_series.filter("won")["series"])
    unlisted = set(by_series.filter(~pl.col("listed"))["series"])
    missing = [s.key for s in request.series if s.key not in won | unlisted]
    asked = len(request.series)
    return Finding(
        passed=not missing,
        sentence=f"no usable chain for {_shorten(missing)}"
        if missing
        else f"all {asked} series are accounted for",
        severity="warn",
        numbers={
            "series": asked,
            "series_won": sum(s.key in won for s in request.series),
            "series_unlisted": sum(s.key in unlisted for s in request.series),
            "series_missing": len(missing),
        },
    )


def products_of(chain: pl.DataFrame) -> str:
    """The products whose options a chain has, or that its proxies stand for, in words."""
    products = [(ROOTS.get(root) or PROXY_ROOTS[root]).product for root in chain["root"].unique()]
    codes = {product.stands_for or product.code for product in products}
    return " and ".join(code for code in PRODUCTS if code in codes)


def no_proxy(chain: pl.DataFrame) -> Finding | None:
    """The chain is of options on the future itself."""
    if chain.is_empty():
        return None
    proxies = chain.filter(pl.col("underlying_class") != NATIVE)
    if proxies.is_empty():
        of = products_of(chain)
        return Finding(True, f"all contracts are options on {of} futures", "warn", {"proxy_contracts": 0})
    roots = ", ".join(proxies["root"].unique().sort())
    return Finding(
        passed=False,
        sentence=f"every native source failed: these are options on {roots}, a proxy for "
        f"{products_of(proxies)} futures",
        severity="warn",
        numbers={"proxy_contracts": proxies.height},
    )


def parity_forward(chain: pl.DataFrame, tolerance: float) -> Finding | None:
    """The forward that put-call parity implies lies within `tolerance` of the underlying.

    Per series: the median of strike + call - put over the strikes nearest the forward, where the
    difference of call and put is small and discounting it would change nothing that matters.
    """
    if chain.is_empty():
        return None
    quoted = chain.filter(_MID.is_finite(), pl.col("bid") <= pl.col("ask")).with_columns(mid=_MID)
    calls, puts = (quoted.filter(pl.col("option_type") == side) for side in "CP")
    pairs = calls.join(puts.select("series", "strike", put="mid"), on=["series", "strike"]).with_columns(
        apart=pl.col("mid") - pl.col("put")
    )
    table = (
        pairs.sort(pl.col("apart").abs())
        .group_by("series", maintain_order=True)
        .head(PARITY_STRIKES)
        .group_by("series")
        .agg(
            source=pl.col("source").first(),
            strikes=pl.len(),
            forward=(pl.col("strike") + pl.col("apart")).median(),
            underlying=pl.col("underlying_price").median(),
        )
        .with_columns(distance=(pl.col("forward") / pl.col("underlying") - 1))
        .sort(pl.col("distance").abs(), descending=True, nulls_last=True)
    )
    judged = table.drop_nulls("distance")
    if judged.is_empty():
        return Finding(
            False,
            "no series has a strike quoted on both sides for call and put, with a price of the underlying",
            "warn",
            {"series_checked": 0},
        )
    worst = judged.row(0, named=True)
    outside = judged.filter(pl.col("distance").abs() > tolerance).height
    return Finding(
        passed=outside == 0,
        sentence=f"{outside} of {judged.height} series have a parity forward more than {tolerance:.2%} from "
        f"the underlying; the farthest is {worst['series']}, {worst['distance']:+.3%}",
        numbers={"series_checked": judged.height, "series_outside": outside, "worst": worst["distance"]},
        table=table,
    )


def sources_agree(
    chain: pl.DataFrame, answers: Mapping[str, pl.DataFrame], tolerance: float
) -> Finding | None:
    """Native sources quote the contracts they share alike, and see the same underlying.

    Two mids agree when they differ by no more than their two half spreads and what lies between the two
    prices of the underlying (`tolerance` of it where one of them is not known): an option moves no more than
    its underlying.
    """
    own = _quotes(chain)
    compared = [
        _agreement(own, _quotes(frame), tolerance).select(pl.lit(name).alias("source"), pl.all())
        for name, frame in answers.items()
    ]
    table = pl.concat(compared).filter(pl.col("common") > 0) if compared else pl.DataFrame()
    if table.is_empty():
        return None
    agree = table["agreeing"] >= MIN_AGREEING * table["common"]
    same = table["underlying_apart"].fill_null(0.0).abs() <= tolerance
    odd = table.filter(~(agree & same))["source"].to_list()
    common, agreeing = int(table["common"].sum()), int(table["agreeing"].sum())
    return Finding(
        passed=not odd,
        sentence=f"{agreeing:,} of {common:,} mids agree with the chosen chain"
        + (f"; out of line: {', '.join(odd)}" if odd else ""),
        severity="warn",
        numbers={"common": common, "agreeing": agreeing, "sources_compared": table.height},
        table=table,
    )


def _quotes(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(
        pl.col("underlying_class") == NATIVE, _MID.is_finite(), pl.col("bid") <= pl.col("ask")
    ).select("source", "contract_key", "underlying_price", mid=_MID, half=_SPREAD / 2)


def _agreement(chosen: pl.DataFrame, other: pl.DataFrame, tolerance: float) -> pl.DataFrame:
    """How the quotes of one source compare with the chosen ones of the other sources."""
    here, there = pl.col("underlying_price"), pl.col("underlying_price_right")
    both = chosen.join(other, on="contract_key").filter(pl.col("source") != pl.col("source_right"))
    moved = (here - there).abs().fill_null(tolerance * pl.coalesce(here, there, pl.lit(0.0)))
    differ = (pl.col("mid") - pl.col("mid_right")).abs()
    return both.select(
        common=pl.len(),
        agreeing=(differ <= pl.col("half") + pl.col("half_right") + moved).sum(),
        mid_apart=differ.median(),
        underlying_apart=(there / here - 1).median(),
    )


def _present(**findings: Finding | None) -> dict[str, Finding]:
    return {name: finding for name, finding in findings.items() if finding is not None}


def _shorten(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
