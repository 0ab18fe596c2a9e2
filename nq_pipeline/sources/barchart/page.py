"""Barchart's options page: what it says of a series besides its rows.

Read once per series and trade date, as a control of the rows and of our own tables: when the
series expires, what a point is worth, which series the site lists, the totals below the
table. The page belongs to a site: every part of it may be missing and is None then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.market.contracts import Series
from nq_pipeline.transport.json_columns import loads

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

_TOTAL = re.compile(r"(Put|Call) (Open Interest|Premium) Total\s+\$?([\d,]+(?:\.\d+)?)")
_EXPIRY = re.compile(r"to expiration on\s+(\d{2}/\d{2}/\d{2})")
_POINT = re.compile(r"Option point:\s*\$([\d,.]+)")
_LINK = re.compile(r"^/futures/quotes/([A-Z0-9]+)/options(?:/([A-Z0-9]+))?$")


@dataclass(frozen=True, slots=True)
class OptionsPage:
    """What a page says.

    Attributes
    ----------
    code
        The site's code of the series shown, two year digits.
    underlying
        The future the site shows the series under, two year digits (`NQM25`). In the week of a
        quarterly expiration that is already the next one.
    point_value
        Dollars per point.
    listed
        Label by code of the series in the dropdowns.
    open_interest, premium
        Totals by side, `C` and `P`.
    """

    code: str | None = None
    underlying: str | None = None
    underlying_price: float | None = None
    expiration_date: date | None = None
    point_value: float | None = None
    listed: Mapping[str, str] = field(default_factory=dict)
    open_interest: Mapping[str, float] = field(default_factory=dict)
    premium: Mapping[str, float] = field(default_factory=dict)

    def controls(self, series: Series, rows: pl.DataFrame, *, open_interest: bool) -> dict[str, bool]:
        """Whether the page and the rows of its series agree, for what the page has.

        `open_interest` is whether both were asked at the same time, so that totals compare.
        """
        held = {}
        if self.expiration_date is not None:
            held["expiration_equals_page"] = self.expiration_date == series.expiration_date
        if self.point_value is not None:
            held["multiplier_equals_page"] = self.point_value == series.root_info.product.multiplier
        if open_interest and self.open_interest:
            sums = dict(rows.group_by("option_type").agg(pl.col("open_interest").sum()).iter_rows())
            held["open_interest_equals_page"] = all(
                sums.get(side, 0) == total for side, total in self.open_interest.items()
            )
        return held


def parse_page(html: bytes) -> OptionsPage:
    """Read a page; a part that is not there or cannot be read is left out."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "lxml")
    config = _json(soup, "script#bc-dynamic-config")
    current = _member(config, "currentSymbol", "raw")
    toolbar = _text(soup, ".bc-options-toolbar__second-row")
    totals = _TOTAL.findall(_text(soup, ".bc-futures-options-quotes-totals__data-row"))
    expiry, point = _EXPIRY.search(toolbar), _POINT.search(toolbar)
    return OptionsPage(
        code=_string(config, "optionContract") or _string(_api_config(soup), "symbol"),
        underlying=_string(current, "symbol"),
        underlying_price=_number(current.get("lastPrice")),
        expiration_date=_day(expiry[1]) if expiry else None,
        point_value=_number(point[1]) if point else None,
        listed=_listed(soup),
        open_interest=_totals(totals, "Open Interest"),
        premium=_totals(totals, "Premium"),
    )


def _listed(soup: BeautifulSoup) -> dict[str, str]:
    """Label by code from both dropdowns; the quarterly board's code is that of its future."""
    listed = {}
    for option in soup.select(
        "#bc-options-toolbar__dropdown-type option, #bc-options-toolbar__dropdown-month option"
    ):
        link = _LINK.match(str(option.get("value", "")))
        if link:
            listed[link[2] or link[1]] = option.get_text(strip=True)
    return listed


def _api_config(soup: BeautifulSoup) -> dict[str, object]:
    """The request the page's own script makes."""
    tag = soup.select_one("[data-api-config]")
    return _member(_object(str(tag["data-api-config"])), "api") if tag else {}


def _json(soup: BeautifulSoup, selector: str) -> dict[str, object]:
    tag = soup.select_one(selector)
    return _object(tag.get_text()) if tag else {}


def _object(text: str) -> dict[str, object]:
    try:
        value = loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _member(value: dict[str, object], *path: str) -> dict[str, object]:
    for name in path:
        inner = value.get(name)
        value = inner if isinstance(inner, dict) else {}
    return value


def _string(value: dict[str, object], name: str) -> str | None:
    text = value.get(name)
    return text if isinstance(text, str) and text else None


def _text(soup: BeautifulSoup, selector: str) -> str:
    return " ".join(" ".join(tag.get_text(" ").split()) for tag in soup.select(selector))


def _number(value: object) -> float | None:
    try:
        return float(str(value).replace(",", "").rstrip("s."))
    except ValueError:
        return None


def _totals(totals: list[tuple[str, str, str]], wanted: str) -> dict[str, float]:
    """One of the page's totals by side, C and P."""
    numbers = {side[0]: _number(text) for side, name, text in totals if name == wanted}
    return {side: number for side, number in numbers.items() if number is not None}


def _day(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%m/%d/%y").date()
    except ValueError:
        return None
