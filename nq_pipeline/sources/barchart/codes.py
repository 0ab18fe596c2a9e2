"""Barchart's codes of series, with those that `NQ_BARCHART_CODES` adds."""

from __future__ import annotations

from datetime import date

from nq_pipeline.errors import SettingsError
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.symbology import Unparsed, parse_barchart_code
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.spec import BarchartSettings


def series_of_code(code: str, trade_date: date, settings: Settings) -> Series:
    """The series of one of Barchart's codes, `MM1N5` or `MM1N25`; `SettingsError` when it is none."""
    parsed = parse_barchart_code(code, on=trade_date, codes=added_codes(settings))
    if isinstance(parsed, Unparsed):
        raise SettingsError(f"{code!r} is not a Barchart series: {parsed.reason}; write e.g. MM1N25")
    return parsed


def added_codes(settings: Settings) -> dict[str, str]:
    """`NQ_BARCHART_CODES` as Barchart root by Globex root; `SettingsError` when it cannot be read."""
    codes = {}
    for pair in settings.vendor(BarchartSettings).codes:
        code, equals, root = (part.strip().upper() for part in pair.partition("="))
        if not (code and equals and root in ROOTS):
            raise SettingsError(
                f"NQ_BARCHART_CODES: {pair!r} is not CODE=ROOT with a known root, e.g. MC0=Q5A."
            )
        codes[root] = code
    return codes


def one_digit(code: str) -> str:
    """The code as rows carry it, with one digit of the year."""
    code = code.strip().upper()
    return code[:-2] + code[-1] if code[-2:].isdigit() else code
