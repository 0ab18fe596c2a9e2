"""The settings that belong to no vendor, one model per concern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import SecretStr, field_validator

from nq_pipeline.settings.base import LOOPBACK, CommaList, SettingsGroup, Usd, setting

PURPOSES = ("chains", "backfill", "gap_repair", "verify")
"""What metered requests are made for."""


def check_caps(pairs: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    """The pairs; `ValueError` when one is not `NAME=USD` with a known name, or a name occurs twice."""
    for pair in pairs:
        name, _, usd = pair.partition("=")
        if name not in names or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", usd):
            raise ValueError(f"write NAME=USD pairs like {names[0]}=15; names are {', '.join(names)}")
    if len({pair.partition("=")[0] for pair in pairs}) != len(pairs):
        raise ValueError("name each at most once")
    return pairs


class ChainSettings(SettingsGroup):
    """What is asked, of whom, and which answers may win."""

    sources: CommaList = setting((), description="Vendors to ask; their order is the priority.")
    """Filled in by `configuration.build_settings` with all vendors."""
    window: Literal["rth", "globex", "always"] = setting(
        "rth",
        description="Hours a chain may speak of: `rth` 08:30–15:00 CT, `globex` the whole session.",
        name="chain_window",
    )
    horizon_days: int = setting(
        14, ge=0, le=400, description="Expirations up to this many days ahead are asked for."
    )
    source_deadline_s: float = setting(
        20.0,
        gt=0,
        description="Seconds a vendor may take for each of NQ_PRODUCTS that is asked for; past it the answer "
        "is `partial`, or `unavailable` when nothing has come.",
    )
    ask_metered: Literal["missing", "always"] = setting(
        "missing",
        description="Whether metered vendors are asked only for series that free ones lack (`missing`) or "
        "together with the others (`always`; the default in the sandbox).",
        sandbox="always",
    )
    stale_after_s: int = setting(
        1800,
        gt=0,
        description="While the market is open, a series whose newest quote or trade is older is stale.",
    )
    min_complete: float = setting(
        0.5,
        ge=0,
        le=1,
        description="A series with a smaller share of the fullest native answer is incomplete.",
    )
    max_bad_quotes: float = setting(
        0.02,
        ge=0,
        le=1,
        description="A series with a larger share of crossed or negative quotes is rejected.",
    )


class HttpSettings(SettingsGroup):
    """How vendors are asked, and how long an answer is kept."""

    prefix = "http_"

    timeout_s: float = setting(10.0, gt=0, description="Seconds without a byte before a request is given up.")
    attempts: int = setting(3, ge=1, le=10, description="Attempts per request on transient faults.")
    retry_after_cap_s: float = setting(
        30.0, ge=0, description="Longest Retry-After that is waited for.", name="retry_after_cap_s"
    )
    cache_open_s: int = setting(
        300, ge=0, description="Lifetime of an answer while the market is open, seconds.", name="cache_open_s"
    )
    cache_closed_s: int = setting(
        1800,
        ge=0,
        description="Lifetime of an answer while the market is closed, seconds.",
        name="cache_closed_s",
    )


class PricingSettings(SettingsGroup):
    """Assumptions and limits of the computed tables."""

    parity_tolerance: float = setting(
        0.005,
        gt=0,
        description="Largest relative distance of the put-call-parity forward from the underlying.",
    )
    risk_free_rate: float = setting(
        0.04,
        ge=-0.05,
        le=0.5,
        description="Interest rate for implied volatility and Greeks, per year, continuously compounded: an "
        "assumption, so set today's, or 0 (the sandbox's default is 0.043, the synthetic market's own).",
        sandbox=0.043,
    )
    max_last_age_s: float = setting(
        900.0,
        ge=0,
        description="A contract without a two-sided quote is priced from its last trade up to this age, "
        "seconds.",
    )


class BackfillSettings(SettingsGroup):
    """Purchases of history."""

    prefix = "backfill_"

    symbols: CommaList = setting(
        (),
        description="Parent symbols to backfill, e.g. `NQ.OPT,NQ.FUT`; by default all options of NQ_PRODUCTS "
        "and their futures.",
    )
    batch_mb: int = setting(
        512,
        ge=0,
        description="A day of at least so many MiB is had as a batch job, billed once and free to download "
        "again for 30 days; a smaller one is streamed.",
    )
    wait_s: float = setting(
        3600.0, gt=0, description="Seconds that one download, or the making of one batch job, may take."
    )


class CaptureSettings(SettingsGroup):
    """The live capture."""

    prefix = "capture_"

    window: Literal["rth", "globex", "always"] = setting(
        "rth", description="Hours of live capture: `rth` 08:30–15:00 CT, `globex` the whole session."
    )
    options_schema: Literal["mbo", "mbp-1", "trades"] = setting(
        "trades",
        description="Schema wanted of options; what the plan lacks is replaced by the next of mbo, mbp-1, "
        "trades (`mbo` in the sandbox, whose gateway refuses it).",
        name="capture_schema",
        sandbox="mbo",
    )
    futures_schema: Literal["mbo", "mbp-1", "trades"] = setting(
        "trades", description="Schema wanted of the future, likewise."
    )
    sync_ms: int = setting(
        50, ge=0, le=60_000, description="Captured bytes are on the disk after this; 0 syncs every chunk."
    )
    zstd: bool = setting(False, description="Ask the live gateway for a compressed stream.")
    repair: Literal["replay", "paid"] = setting(
        "replay",
        description="What fills a gap: `replay` only the live gateway, which is free; `paid` also the "
        "historical API where the gateway no longer has it, within the budgets (the sandbox's default).",
        sandbox="paid",
    )


class SpendSettings(SettingsGroup):
    """The ledger, the plan and the budgets."""

    ledger_url: SecretStr | None = setting(
        None,
        description="Database of the spend ledger, e.g. `postgresql://user:password@host/name`; by default "
        "`ledger.sqlite` in the environment's folder.",
    )
    ledger_timeout_s: float = setting(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that a PostgreSQL with the ledger may take for a statement, and for connecting "
        "if that is less than 10.",
    )
    plan_name: str = setting("Databento Standard", description="What the plan's monthly fee is called.")
    plan_monthly_usd: Usd = setting(
        Decimal(179), description="The data plan's flat fee per calendar month, USD."
    )
    budget_monthly_usd: Usd = setting(
        Decimal(200),
        description="Most that a calendar month may come to, the plan's fee included, USD.",
    )
    budget_daily_usd: Usd = setting(
        Decimal(10), description="Most that is spent on metered requests in a calendar day, USD."
    )
    budget_by_vendor: CommaList = setting(
        (), description="Monthly caps on metered requests as VENDOR=USD pairs, e.g. `databento=15`."
    )
    budget_by_purpose: CommaList = setting(
        (),
        description="Monthly caps on metered requests as PURPOSE=USD pairs; purposes are chains, backfill, "
        "gap_repair, verify.",
    )
    budget_warn: float = setting(
        0.8, gt=0, le=1, description="Share of a budget from which on a warning is given."
    )
    budget_timezone: str = setting(
        "UTC",
        description="Zone of the budgets' days and months. A UTC day is nearly a Globex session, which opens "
        "an hour or two before it.",
    )
    budget_reason: str = setting(
        "settings changed", description="Why a budget was changed, for the ledger's entry about the change."
    )
    budget_review_h: float = setting(
        24, gt=0, description="A reservation that is open for longer, hours, waits for a person's review."
    )

    @field_validator("budget_by_purpose")
    @classmethod
    def _known_purposes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_caps(value, PURPOSES)

    @field_validator("budget_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("write a zone of the IANA database, e.g. UTC or America/Chicago") from None
        return value


class RetentionSettings(SettingsGroup):
    """How long files are kept."""

    prefix = "keep_"

    raw_days: int = setting(
        90,
        ge=0,
        description="Days for which vendors' exact answers are kept once their rows are in the lake; 0 is "
        "for ever. Purchased history is always kept.",
    )
    capture_days: int = setting(
        90,
        ge=0,
        description="Days for which the capture log is kept once it is published, compacted and without an "
        "unsettled gap; 0 is for ever.",
    )
    report_days: int = setting(90, ge=0, description="Days for which reports are kept; 0 is for ever.")
    run_days: int = setting(
        14,
        ge=0,
        description="Days for which Dagster keeps every run; of older ones it keeps the last good one of "
        "each trade date. 0 is for ever.",
    )


class QuerySettings(SettingsGroup):
    """Limits of `nq sql`."""

    prefix = "sql_"

    timeout_s: float = setting(
        300, ge=0, description="A query of `nq sql` is ended after so many seconds; 0 is never."
    )
    memory_mb: int = setting(
        2048, ge=64, description="Memory a query of `nq sql` may take, MiB; also the most text it prints."
    )


class AlertSettings(SettingsGroup):
    """Where alerts go, and how often."""

    prefix = "alert_"

    webhook: SecretStr | None = setting(
        None,
        description="Address that alerts are sent to, in the format of Slack's incoming webhooks; a secret, "
        "since whoever has it can write there. Without it they are only in `alerts.jsonl`.",
    )
    repeat_s: int = setting(
        3600, ge=0, description="An alert that goes on is said again after so many seconds at the earliest."
    )
    ui_url: str = setting(
        "http://127.0.0.1:3000",
        description="Address of the Dagster UI, for the links in alerts.",
        name="ui_url",
    )

    @field_validator("webhook")
    @classmethod
    def _incoming_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value()
        try:
            parts = urlsplit(text)
            good = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
            good = good and bool(parts.hostname) and parts.port != 0 and parts.username is None
        except ValueError:
            good = False
        if not good or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("write the address of an incoming webhook, https://host/path")
        return value

    def secret_texts(self) -> Iterator[str]:
        yield from super().secret_texts()
        if self.webhook:  # the path alone is enough to write there
            yield urlsplit(self.webhook.get_secret_value()).path


class SandboxSettings(SettingsGroup):
    """The stand-ins."""

    prefix = "sandbox_"

    port: int = setting(
        0, ge=0, le=65535, description="Port of the stand-ins; 0 remembers the last or takes a free one."
    )
    seed: int = setting(7, description="Seed of the synthetic market.")
    faults: CommaList = setting(
        (), description="Faults of the stand-ins as VENDOR=FAULT pairs, e.g. `barchart=blocked`."
    )
