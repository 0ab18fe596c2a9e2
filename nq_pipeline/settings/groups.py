"""The settings that belong to no vendor, one model per concern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import SecretStr, ValidationInfo, field_validator

from nq_pipeline.errors import SettingsError
from nq_pipeline.market.rates import RateCurve, parse_curve, read_curve
from nq_pipeline.settings.base import LOOPBACK, CommaList, SettingsGroup, Usd, bare_url, setting

PURPOSES = ("chains", "backfill", "gap_repair", "verify")
"""Purposes of metered requests, each of which may have a budget."""


def check_caps(pairs: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    """The pairs. Raises `ValueError` unless each is `NAME=USD` with a known name that occurs once."""
    for pair in pairs:
        name, _, usd = pair.partition("=")
        if name not in names or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", usd):
            raise ValueError(f"write NAME=USD pairs like {names[0]}=15; names are {', '.join(names)}")
    if len({pair.partition("=")[0] for pair in pairs}) != len(pairs):
        raise ValueError("a name occurs twice; give each name one amount")
    return pairs


class ChainSettings(SettingsGroup):
    """Which chains are requested, from which vendors, and which answers may win."""

    sources: CommaList = setting((), description="Vendors to ask, in order of priority.")
    """`configuration.build_settings` sets the default, which is all vendors."""
    window: Literal["rth", "globex", "always"] = setting(
        "rth",
        description="Hours of scheduled chains: `rth` 08:30–15:00 CT, `globex` the whole session, `always` "
        "without a break. A chain requested after they close is as of the close.",
        name="chain_window",
    )
    horizon_days: int = setting(
        14, ge=0, le=400, description="Request expirations up to this many days ahead."
    )
    far_expirations: bool = setting(
        True,
        description="Also request the next monthly expiration beyond NQ_HORIZON_DAYS, and the quarterly ones "
        "up to the first after that, so that 30-day volatility can be interpolated every day.",
    )
    source_deadline_s: float = setting(
        20.0,
        gt=0,
        description="Seconds that a vendor may take per requested product. An answer that is not complete "
        "by then is `partial`, or `unavailable` if it is empty.",
    )
    ask_metered: Literal["missing", "always"] = setting(
        "missing",
        description="When to ask metered vendors: `missing` only for series that no free vendor has, "
        "`always` together with the others (the sandbox's default).",
        sandbox="always",
    )
    stale_after_s: int = setting(
        1800,
        gt=0,
        description="In regular hours, a series is stale when its newest quote or trade is older than this "
        "many seconds.",
    )
    min_complete: float = setting(
        0.5,
        ge=0,
        le=1,
        description="A series is incomplete when it has less than this share of the contracts or quotes of "
        "the most complete source.",
    )
    max_bad_quotes: float = setting(
        0.02,
        ge=0,
        le=1,
        description="A series is rejected when a larger share of its quotes is crossed or negative.",
    )


class HttpSettings(SettingsGroup):
    """Timeouts and retries of requests, and how long answers are cached."""

    timeout_s: float = setting(
        10.0, gt=0, description="Seconds without a byte after which a request fails.", name="http_timeout_s"
    )
    attempts: int = setting(
        3,
        ge=1,
        le=10,
        description="Maximum attempts of a request that fails for a transient reason.",
        name="http_attempts",
    )
    retry_after_cap_s: float = setting(30.0, ge=0, description="Longest Retry-After to wait for, in seconds.")
    cache_open_s: int = setting(
        300,
        ge=0,
        description="Seconds that an answer is cached while the market is open.",
    )
    cache_closed_s: int = setting(
        1800,
        ge=0,
        description="Seconds that an answer is cached while the market is closed.",
    )


class PricingSettings(SettingsGroup):
    """Assumptions and limits of the computed tables."""

    parity_tolerance: float = setting(
        0.005,
        gt=0,
        description="Largest accepted relative difference between the put-call-parity forward and the "
        "underlying's price.",
    )
    risk_free_rate: float = setting(
        0.04,
        ge=-0.05,
        le=0.5,
        description="Interest rate for implied volatility and Greeks, per year, continuously compounded. "
        "The default is an assumption: set today's rate, or 0 (the sandbox's default is 0.043, the rate of "
        "the synthetic market).",
        sandbox=0.043,
    )
    rate_curve: str | None = setting(
        None,
        description="Interest rates by time to expiration instead of NQ_RISK_FREE_RATE: days and rates like "
        "`30=0.043,90=0.0425`, or the path of a CSV file as the US Treasury offers it (Daily Treasury Par "
        "Yield Curve Rates). Each trade date uses the file's newest row before it, converted to continuous "
        "compounding.",
    )
    max_last_age_s: float = setting(
        900.0,
        ge=0,
        description="Price a contract without a two-sided quote from its last trade if that is at most this "
        "many seconds older than the quotes.",
    )

    @field_validator("rate_curve")
    @classmethod
    def _readable_curve(cls, value: str | None) -> str | None:
        if value and "=" in value:
            parse_curve(value)
        return value or None

    def rate_on(self, day: date) -> float | RateCurve:
        """The rate of a trade date: the curve, or `risk_free_rate` without one or up to its first row.

        Raises `SettingsError` for a file that cannot be used.
        """
        if self.rate_curve is None:
            return self.risk_free_rate
        if "=" in self.rate_curve:
            return parse_curve(self.rate_curve)
        try:
            return read_curve(Path(self.rate_curve), day) or self.risk_free_rate
        except ValueError as error:
            raise SettingsError(f"NQ_RATE_CURVE: {error}") from None


class BackfillSettings(SettingsGroup):
    """Purchases of history."""

    prefix = "backfill_"

    symbols: CommaList = setting(
        (),
        description="Parent symbols to backfill, e.g. `NQ.OPT,NQ.FUT`; by default all options of "
        "NQ_PRODUCTS and their futures.",
    )
    batch_mb: int = setting(
        512,
        ge=0,
        description="Download a day of at least this many MiB as a batch job, which is billed once and can "
        "be downloaded again for free for 30 days. Smaller days are streamed.",
    )
    wait_s: float = setting(
        3600.0, gt=0, description="Seconds that one download or the preparation of one batch job may take."
    )


class CaptureSettings(SettingsGroup):
    """The live capture."""

    prefix = "capture_"

    window: Literal["rth", "globex", "always"] = setting(
        "rth",
        description="Hours of live capture: `rth` 08:30–15:00 CT, `globex` the whole session, `always` "
        "without a break.",
    )
    options_schema: Literal["mbo", "mbp-1", "trades"] = setting(
        "trades",
        description="Schema to capture for options. If the plan does not include it, the next of mbo, "
        "mbp-1, trades is captured (the sandbox's default is `mbo`, which its gateway refuses).",
        name="capture_schema",
        sandbox="mbo",
    )
    futures_schema: Literal["mbo", "mbp-1", "trades"] = setting(
        "trades", description="Schema to capture for the future, with the same fallback."
    )
    sync_ms: int = setting(
        50,
        ge=0,
        le=60_000,
        description="Milliseconds after which received bytes are synced to the disk; 0 syncs every chunk.",
    )
    lease_s: float = setting(
        30.0,
        ge=1,
        le=3600,
        description="Seconds after which a capture that gives no sign of life may be replaced from another "
        "machine. Within this time it stops itself if it cannot reach the ledger's PostgreSQL.",
    )
    zstd: bool = setting(False, description="Request a zstd-compressed stream from the live gateway.")
    repair: Literal["replay", "paid"] = setting(
        "replay",
        description="How to fill a gap: `replay` uses only the live gateway, within the plan; `paid` also "
        "buys from the historical API, within the budgets, what the gateway no longer has (the sandbox's "
        "default).",
        sandbox="paid",
    )


class SpendSettings(SettingsGroup):
    """The ledger, the plan and the budgets."""

    ledger_url: SecretStr | None = setting(
        None,
        description="Database of the spend ledger, e.g. `postgresql://user:password@host/name`. By default "
        "it is `ledger.sqlite` in the environment's folder.",
    )
    ledger_timeout_s: float = setting(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that the ledger's PostgreSQL may take per statement; also for connecting, but "
        "at most 10.",
    )
    plan_name: str = setting(
        "Databento Standard", description="Name of the data plan, shown with its monthly fee."
    )
    plan_monthly_usd: Usd = setting(
        Decimal(179), description="The data plan's flat fee per calendar month, in USD."
    )
    budget_monthly_usd: Usd = setting(
        Decimal(200), description="Maximum to spend in a calendar month, including the plan's fee, in USD."
    )
    budget_daily_usd: Usd = setting(
        Decimal(10), description="Maximum to spend on metered requests in a calendar day, in USD."
    )
    budget_by_vendor: CommaList = setting(
        (), description="Monthly caps on metered requests as VENDOR=USD pairs, e.g. `databento=15`."
    )
    budget_by_purpose: CommaList = setting(
        (),
        description="Monthly caps on metered requests as PURPOSE=USD pairs; purposes are chains, backfill, "
        "gap_repair, verify.",
    )
    budget_warn: float = setting(0.8, gt=0, le=1, description="Warn when this share of a budget is spent.")
    budget_timezone: str = setting(
        "UTC",
        description="Time zone of the budgets' days and months. With UTC, a day nearly matches a Globex "
        "session, which opens an hour or two before midnight UTC.",
    )
    budget_reason: str = setting(
        "settings changed",
        description="Reason for a changed budget, which the ledger records with the change.",
    )
    budget_review_h: float = setting(
        24,
        gt=0,
        description="Hours after which an open reservation is reported, so that somebody looks up its bill.",
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


class StoreSettings(SettingsGroup):
    """Where the lake, the raw archive and the reports are kept, if not in NQ_DATA_DIR."""

    prefix = "store_"

    endpoint_url: str | None = setting(
        None,
        description="Address of an S3-compatible store other than Amazon's; http:// on this machine only.",
        variables=("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    )
    access_key_id: SecretStr | None = setting(
        None, description="Access key ID for the store.", variables=("AWS_ACCESS_KEY_ID",)
    )
    secret_access_key: SecretStr | None = setting(
        None, description="The store's key.", variables=("AWS_SECRET_ACCESS_KEY",)
    )
    session_token: SecretStr | None = setting(
        None, description="Token of a temporary key.", variables=("AWS_SESSION_TOKEN",)
    )
    region: str = setting(
        "us-east-1", description="Region of the bucket.", variables=("AWS_REGION", "AWS_DEFAULT_REGION")
    )
    timeout_s: float = setting(
        60.0,
        gt=0,
        le=300,
        description="Seconds that one request to the store may take, with its retries.",
    )
    url: str | None = setting(
        None,
        description="Object store for the lake, the raw archive, reports and sealed capture segments: "
        "`s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`, the same on every machine. "
        "By default they are in NQ_DATA_DIR. The AWS_ variables are for `s3://`; Google's and Azure's own "
        "variables are read from the environment.",
        name="lake_url",
    )
    format: Literal["manifest", "delta"] = setting(
        "manifest",
        description="Format of a lake in NQ_DATA_DIR: `manifest`, or `delta`, which other engines read in "
        "place. A lake with NQ_LAKE_URL is always `delta`.",
        name="lake_format",
    )

    @field_validator("url")
    @classmethod
    def _store_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"(s3|gs|az)://[a-z0-9][a-z0-9.-]+[a-z0-9](/[\w-][\w.-]*)*/?", value, re.ASCII):
            raise ValueError(
                "write an address like s3://bucket/prefix (or gs://, az://) of letters, digits, . - and _, "
                "without keys: those have variables of their own"
            )
        if endpoint := info.data.get("endpoint_url"):
            try:
                bare_url(endpoint)
            except ValueError as error:
                raise ValueError(f"its AWS_ENDPOINT_URL cannot be used: {error}") from None
        return value.rstrip("/")

    @property
    def plain_http(self) -> bool:
        """Whether the store is asked without encryption, which only a store on this machine may be."""
        return (self.endpoint_url or "").startswith("http://")

    def s3_config(self) -> dict[str, str]:
        """The endpoint, region and credentials by the names that obstore uses. Secret: never show them."""
        given = {
            "endpoint": self.endpoint_url and bare_url(self.endpoint_url),
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "session_token": self.session_token,
            "region": self.region,
        }
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in given.items()
            if value
        }

    def storage_options(self) -> dict[str, str]:
        """The same by the names that deltalake and polars use. Secret: never show them."""
        if not self.url or not self.url.startswith("s3://"):
            return {}
        plain = {"aws_allow_http": "true"} if self.plain_http else {}
        return {f"aws_{name}": value for name, value in self.s3_config().items()} | plain


class RetentionSettings(SettingsGroup):
    """How long files are kept."""

    prefix = "keep_"

    raw_days: int = setting(
        90,
        ge=0,
        description="Days to keep the exact answers of vendors after their rows are in the lake; 0 keeps "
        "them for ever. Purchased history is always kept.",
    )
    capture_days: int = setting(
        90,
        ge=0,
        description="Days to keep the capture log of a trade date after it is published and compacted and "
        "all its gaps are settled; 0 keeps it for ever.",
    )
    report_days: int = setting(90, ge=0, description="Days to keep reports; 0 keeps them for ever.")
    run_days: int = setting(
        14,
        ge=0,
        description="Days to keep every Dagster run; of older ones, only the last successful run of each "
        "trade date is kept. 0 keeps all.",
    )


class QuerySettings(SettingsGroup):
    """Limits of `nq sql`."""

    prefix = "sql_"

    timeout_s: float = setting(
        300, ge=0, description="Seconds after which a query is stopped; 0 is no limit."
    )
    memory_mb: int = setting(
        2048,
        ge=64,
        description="Maximum memory of a query, in MiB; also the maximum size of its answer.",
    )


class ServeSettings(SettingsGroup):
    """`nq serve` and `nq board`."""

    prefix = "serve_"

    token: SecretStr | None = setting(
        None,
        min_length=16,
        description="Secret of at least 16 characters that clients of `nq serve` and `nq board` must send. "
        "Required when they listen beyond this machine. Use it behind TLS there.",
    )


class AlertSettings(SettingsGroup):
    """Where alerts go, and how often."""

    prefix = "alert_"

    webhook: SecretStr | None = setting(
        None,
        description="Address that receives alerts, in the format of Slack's incoming webhooks. It is a "
        "secret: anyone who has it can post there. Without it, alerts are only in `alerts.jsonl`.",
    )
    repeat_s: int = setting(
        3600, ge=0, description="Minimum seconds before an alert that is still active is sent again."
    )
    ui_url: str = setting(
        "http://127.0.0.1:3000", description="Address of the Dagster UI for links in alerts.", name="ui_url"
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
    """The stand-ins of the vendors, and the synthetic market."""

    prefix = "sandbox_"

    port: int = setting(
        0, ge=0, le=65535, description="Port of the stand-ins; 0 uses the last one again, or a free one."
    )
    seed: int = setting(7, description="Seed of the synthetic market.")
    faults: CommaList = setting(
        (), description="Faults of the stand-ins, as VENDOR=FAULT pairs, e.g. `barchart=blocked`."
    )
