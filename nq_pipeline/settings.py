"""Every setting of the program in one typed object, read from the environment or `.env`.

The environment beats `.env`, `.env` beats the default. Names are `NQ_` plus the field's name
in capitals; vendors' credentials keep the names their vendors use. `docs/configuration.md` is
generated from this model. Secrets are `SecretStr`: they never print.
"""

import difflib
import os
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nq_pipeline.clock import Clock, PinnedClock, SystemClock, unproven
from nq_pipeline.errors import NotConfigured, SettingsError, SettingsWarning
from nq_pipeline.market.products import list_names
from nq_pipeline.redaction import LONG, spellings

SOURCE_NAMES = ("barchart", "polygon", "tradovate", "databento")
"""All vendors, in the default priority."""

UNFIT = ("=", "*", "?", "[", "]", "{", "}", "\\")
"""Signs in the path of the data folder that would change what is read. A byte that is no UTF-8 is shown with
the last of them."""
LONGEST_PATH = 3_800
"""Bytes; the rest of the system's 4,096 is for what lies below."""

SANDBOX_DEFAULTS = {
    "ask_metered": "always",
    "polygon_rpm": 0,
    "barchart_spacing_s": 0.0,
    "databento_quote_window_s": 60,
    "capture_schema": "mbo",
    "capture_repair": "paid",
    "risk_free_rate": 0.043,
}
"""Defaults that differ in the sandbox: stand-ins need no politeness, cost nothing and show refusals.

The rate is that of the synthetic market, where every book changes every minute: a longer window of
quotes would cost more and tell no more."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that plain http may be sent to."""

PURPOSES = ("chains", "backfill", "gap_repair", "verify")
"""What metered requests are made for."""

Usd = Annotated[Decimal, Field(ge=0, lt=10**9, decimal_places=9)]
CommaList = Annotated[tuple[str, ...], NoDecode]


def _credential(name: str, *more: str, description: str) -> Any:
    return Field(default=None, validation_alias=AliasChoices(name, *more), description=description)


def check_databento_key(key: SecretStr, host: str) -> None:
    """Raise `NotConfigured` for what Databento itself would refuse as no key; another host may have other
    keys."""
    if host.endswith(".databento.com") and not re.fullmatch(r"db-[!-~]{29}", key.get_secret_value()):
        raise NotConfigured(
            "DATABENTO_API_KEY is no key of Databento, since one has 32 characters and begins with `db-`; "
            "copy it from databento.com/portal/keys"
        )


def _caps(pairs: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    for pair in pairs:
        name, _, usd = pair.partition("=")
        if name not in names or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", usd):
            raise ValueError(f"write NAME=USD pairs like {names[0]}=15; names are {', '.join(names)}")
    if len({pair.partition("=")[0] for pair in pairs}) != len(pairs):
        raise ValueError("name each at most once")
    return pairs


class Settings(BaseSettings):
    """All settings. Build with `load()` for errors in one sentence."""

    model_config = SettingsConfigDict(
        env_prefix="NQ_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    environment: Literal["sandbox", "live"] = Field(
        "sandbox",
        description="`sandbox` asks stand-ins on loopback with a synthetic market; `live` asks the vendors.",
    )
    data_dir: Path = Field(
        Path("data"),
        validate_default=True,
        description="Root of everything written; each environment has its own folder below it. Its path has "
        "no sign that readers of Parquet take for a column or a glob: = * ? [ ] { } or a backslash.",
    )
    now: datetime | None = Field(
        None, description="A frozen instant (ISO 8601 with a zone) for sessions, partitions and freshness."
    )
    products: CommaList = Field(
        ("NQ",),
        description=f"Products to fetch and to capture, from the product table: {list_names()}.",
    )

    # What is asked, and of whom
    sources: CommaList = Field(SOURCE_NAMES, description="Vendors to ask; their order is the priority.")
    chain_window: Literal["rth", "globex", "always"] = Field(
        "rth", description="Hours a chain may speak of: `rth` 08:30–15:00 CT, `globex` the whole session."
    )
    horizon_days: int = Field(
        14, ge=0, le=400, description="Expirations up to this many days ahead are asked for."
    )
    source_deadline_s: float = Field(
        20.0,
        gt=0,
        description="Seconds a vendor may take for each of NQ_PRODUCTS that is asked for; past it the answer "
        "is `partial`, or `unavailable` when nothing has come.",
    )
    ask_metered: Literal["missing", "always"] = Field(
        "missing",
        description="Whether metered vendors are asked only for series that free ones lack (`missing`) or "
        "together with the others (`always`; the default in the sandbox).",
    )
    http_timeout_s: float = Field(
        10.0, gt=0, description="Seconds without a byte before a request is given up."
    )
    http_attempts: int = Field(3, ge=1, le=10, description="Attempts per request on transient faults.")
    retry_after_cap_s: float = Field(30.0, ge=0, description="Longest Retry-After that is waited for.")
    cache_open_s: int = Field(
        300, ge=0, description="Lifetime of an answer while the market is open, seconds."
    )
    cache_closed_s: int = Field(
        1800, ge=0, description="Lifetime of an answer while the market is closed, seconds."
    )

    # Gates of the failover
    stale_after_s: int = Field(
        1800,
        gt=0,
        description="While the market is open, a series whose newest quote or trade is older is stale.",
    )
    min_complete: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A series with a smaller share of the fullest native answer is incomplete.",
    )
    max_bad_quotes: float = Field(
        0.02,
        ge=0,
        le=1,
        description="A series with a larger share of crossed or negative quotes is rejected.",
    )
    parity_tolerance: float = Field(
        0.005,
        gt=0,
        description="Largest relative distance of the put-call-parity forward from the underlying.",
    )

    # Pricing
    risk_free_rate: float = Field(
        0.04,
        ge=-0.05,
        le=0.5,
        description="Interest rate for implied volatility and Greeks, per year, continuously compounded: an "
        "assumption, so set today's, or 0 (the sandbox's default is 0.043, the synthetic market's own).",
    )
    max_last_age_s: float = Field(
        900.0,
        ge=0,
        description="A contract without a two-sided quote is priced from its last trade up to this age, "
        "seconds.",
    )

    # Barchart
    barchart_enabled: bool = Field(
        False, description="In live, barchart.com is asked only with this opt-in (or `--source barchart`)."
    )
    barchart_url: str = Field("https://www.barchart.com", description="Base address of Barchart's site.")
    barchart_session: Literal["api", "cookies", "browser"] = Field(
        "api",
        description="How requests are authorised: `api` headers only, `cookies` a page visit for XSRF-TOKEN, "
        "`browser` cookies supplied in NQ_BARCHART_COOKIES.",
    )
    barchart_cookies: SecretStr | None = Field(None, description="Cookie header of your own browser session.")
    barchart_spacing_s: float = Field(
        1.0, ge=0, description="Least seconds between two requests to Barchart (0 in the sandbox)."
    )
    barchart_delay_s: int = Field(
        600, ge=0, description="Delay of Barchart's quotes: `as_of` is the asking time less this."
    )
    barchart_pages: bool = Field(
        True, description="Also read each series' page, once per trade date, as a control."
    )
    barchart_codes: CommaList = Field(
        (), description="Extra Barchart root codes as CODE=ROOT pairs, e.g. a fifth Monday's."
    )

    # Polygon / Massive
    polygon_url: str = Field("https://api.massive.com", description="Base address of Polygon (now Massive).")
    polygon_rpm: int = Field(
        5, ge=0, description="Requests per minute of your plan; 0 is no limit (the default in the sandbox)."
    )
    polygon_underlyings: CommaList = Field(
        ("NDX", "SPX"),
        description="Proxy chains to ask for, where they stand for one of NQ_PRODUCTS: NDX and QQQ for NQ, "
        "SPX and SPY for ES.",
    )
    polygon_api_key: SecretStr | None = _credential(
        "POLYGON_API_KEY", "MASSIVE_API_KEY", description="API key of Polygon or Massive."
    )

    # Tradovate (experimental)
    tradovate_url: str = Field(
        "https://live.tradovateapi.com/v1", description="Base address of the REST API."
    )
    tradovate_md_url: str = Field(
        "wss://md.tradovateapi.com/v1/websocket", description="Address of the market-data websocket."
    )
    tradovate_products: CommaList = Field(
        ("NQ=NQ Options", "ES=ES Options"),
        description="Tradovate's names of option products as ROOT=NAME pairs, where they are not the "
        "root itself. Unconfirmed: no recorded answer of this vendor shows one.",
    )
    tradovate_max_quotes: int = Field(
        200, ge=1, description="Most quote subscriptions; nearest the money first."
    )
    tradovate_quote_wait_s: float = Field(
        3.0, gt=0, description="Seconds to collect quotes after the last subscription was answered."
    )
    tradovate_heartbeat_s: float = Field(2.5, gt=0, description="Seconds between the client's heartbeats.")
    tradovate_username: SecretStr | None = _credential("TRADOVATE_USERNAME", description="Login name.")
    tradovate_password: SecretStr | None = _credential("TRADOVATE_PASSWORD", description="Password.")
    tradovate_app_id: str | None = _credential("TRADOVATE_APP_ID", description="Name of the API key.")
    tradovate_app_version: str = Field(
        "1.0", validation_alias="TRADOVATE_APP_VERSION", description="Its version."
    )
    tradovate_cid: SecretStr | None = _credential("TRADOVATE_CID", description="Client id of the API key.")
    tradovate_sec: SecretStr | None = _credential("TRADOVATE_SEC", description="Secret of the API key.")
    tradovate_device_id: str | None = _credential(
        "TRADOVATE_DEVICE_ID", description="A stable id of this device."
    )

    # Databento
    databento_url: str = Field(
        "https://hist.databento.com", description="Base address of the historical API."
    )
    databento_gateway: str | None = Field(
        None, description="host:port of the live gateway; the vendor's own when unset."
    )
    databento_dataset: str = Field("GLBX.MDP3", description="Dataset with CME Globex.")
    databento_quote_window_s: int = Field(
        900,
        ge=60,
        description="Quotes of at most this long before the moment asked for, which are most of its price; "
        "60 in the sandbox.",
    )
    databento_api_key: SecretStr | None = _credential(
        "DATABENTO_API_KEY", description="API key of Databento."
    )

    # Historical backfill
    backfill_symbols: CommaList = Field(
        (),
        description="Parent symbols to backfill, e.g. `NQ.OPT,NQ.FUT`; by default all options of NQ_PRODUCTS "
        "and their futures.",
    )
    backfill_batch_mb: int = Field(
        512,
        ge=0,
        description="A day of at least so many MiB is had as a batch job, billed once and free to download "
        "again for 30 days; a smaller one is streamed.",
    )
    backfill_wait_s: float = Field(
        3600.0, gt=0, description="Seconds that one download, or the making of one batch job, may take."
    )

    # Live capture
    capture_window: Literal["rth", "globex", "always"] = Field(
        "rth", description="Hours of live capture: `rth` 08:30–15:00 CT, `globex` the whole session."
    )
    capture_schema: Literal["mbo", "mbp-1", "trades"] = Field(
        "trades",
        description="Schema wanted of options; what the plan lacks is replaced by the next of mbo, mbp-1, "
        "trades (`mbo` in the sandbox, whose gateway refuses it).",
    )
    capture_futures_schema: Literal["mbo", "mbp-1", "trades"] = Field(
        "trades", description="Schema wanted of the future, likewise."
    )
    capture_sync_ms: int = Field(
        50, ge=0, le=60_000, description="Captured bytes are on the disk after this; 0 syncs every chunk."
    )
    capture_zstd: bool = Field(False, description="Ask the live gateway for a compressed stream.")
    capture_repair: Literal["replay", "paid"] = Field(
        "replay",
        description="What fills a gap: `replay` only the live gateway, which is free; `paid` also the "
        "historical API where the gateway no longer has it, within the budgets (the sandbox's default).",
    )

    # Money
    ledger_url: SecretStr | None = Field(
        None,
        description="Database of the spend ledger, e.g. `postgresql://user:password@host/name`; by default "
        "`ledger.sqlite` in the environment's folder.",
    )
    ledger_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that a PostgreSQL with the ledger may take for a statement, and for connecting "
        "if that is less than 10.",
    )
    plan_name: str = Field("Databento Standard", description="What the plan's monthly fee is called.")
    plan_monthly_usd: Usd = Field(
        Decimal(179), description="The data plan's flat fee per calendar month, USD."
    )
    budget_monthly_usd: Usd = Field(
        Decimal(200),
        description="Most that a calendar month may come to, the plan's fee included, USD.",
    )
    budget_daily_usd: Usd = Field(
        Decimal(10), description="Most that is spent on metered requests in a calendar day, USD."
    )
    budget_by_vendor: CommaList = Field(
        (), description="Monthly caps on metered requests as VENDOR=USD pairs, e.g. `databento=15`."
    )
    budget_by_purpose: CommaList = Field(
        (),
        description="Monthly caps on metered requests as PURPOSE=USD pairs; purposes are chains, backfill, "
        "gap_repair, verify.",
    )
    budget_warn: float = Field(
        0.8, gt=0, le=1, description="Share of a budget from which on a warning is given."
    )
    budget_timezone: str = Field(
        "UTC",
        description="Zone of the budgets' days and months. A UTC day is nearly a Globex session, which opens "
        "an hour or two before it.",
    )
    budget_reason: str = Field(
        "settings changed", description="Why a budget was changed, for the ledger's entry about the change."
    )
    budget_review_h: float = Field(
        24, gt=0, description="A reservation that is open for longer, hours, waits for a person's review."
    )

    # Retention
    keep_raw_days: int = Field(
        90,
        ge=0,
        description="Days for which vendors' exact answers are kept once their rows are in the lake; 0 is "
        "for ever. Purchased history is always kept.",
    )
    keep_capture_days: int = Field(
        90,
        ge=0,
        description="Days for which the capture log is kept once it is published, compacted and without an "
        "unsettled gap; 0 is for ever.",
    )
    keep_report_days: int = Field(90, ge=0, description="Days for which reports are kept; 0 is for ever.")
    keep_run_days: int = Field(
        14,
        ge=0,
        description="Days for which Dagster keeps every run; of older ones it keeps the last good one of "
        "each trade date. 0 is for ever.",
    )

    # Queries
    sql_timeout_s: float = Field(
        300, ge=0, description="A query of `nq sql` is ended after so many seconds; 0 is never."
    )
    sql_memory_mb: int = Field(
        2048, ge=64, description="Memory a query of `nq sql` may take, MiB; also the most text it prints."
    )

    # Alerts
    alert_webhook: SecretStr | None = Field(
        None,
        description="Address that alerts are sent to, in the format of Slack's incoming webhooks; a secret, "
        "since whoever has it can write there. Without it they are only in `alerts.jsonl`.",
    )
    alert_repeat_s: int = Field(
        3600, ge=0, description="An alert that goes on is said again after so many seconds at the earliest."
    )
    ui_url: str = Field(
        "http://127.0.0.1:3000", description="Address of the Dagster UI, for the links in alerts."
    )

    # Sandbox
    sandbox_port: int = Field(
        0, ge=0, le=65535, description="Port of the stand-ins; 0 remembers the last or takes a free one."
    )
    sandbox_seed: int = Field(7, description="Seed of the synthetic market.")
    sandbox_faults: CommaList = Field(
        (), description="Faults of the stand-ins as VENDOR=FAULT pairs, e.g. `barchart=blocked`."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_environment(cls, data: dict[str, Any]) -> dict[str, Any]:
        sandbox = data.get("environment", "sandbox") == "sandbox"
        return {**SANDBOX_DEFAULTS, **data} if sandbox else data

    @field_validator(
        "sources",
        "products",
        "polygon_underlyings",
        "sandbox_faults",
        "barchart_codes",
        "tradovate_products",
        "backfill_symbols",
        "budget_by_vendor",
        "budget_by_purpose",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("sources")
    @classmethod
    def _known_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in SOURCE_NAMES]
        if unknown or not value or len(set(value)) != len(value):
            raise ValueError(f"name each of {', '.join(SOURCE_NAMES)} at most once, separated by commas")
        return value

    @field_validator("now")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("write an instant with its zone, e.g. 2025-06-10T15:00:00Z")
        now = value.astimezone(UTC) if value else None
        if now and (why := unproven(now.date())):
            raise ValueError(why)
        return now

    @field_validator("data_dir")
    @classmethod
    def _plain_folder(cls, value: Path) -> Path:
        """Readers of Parquet take `name=value` in a path for a column, and the signs of globs for globs."""
        try:
            path = os.fsencode(value.resolve())
        except OSError as error:
            raise ValueError(f"the folder cannot be found ({error.strerror}); write another") from None
        shown = path.decode("utf-8", "backslashreplace")
        if found := [sign for sign in UNFIT if sign in shown]:
            raise ValueError(
                f"{shown} holds {found[0]}; choose a folder whose path has none of {' '.join(UNFIT)}"
            )
        if len(path) > LONGEST_PATH:
            raise ValueError(f"its path has {len(path):,} bytes; choose one of at most {LONGEST_PATH:,}")
        return value

    @field_validator("barchart_url", "polygon_url", "tradovate_url", "tradovate_md_url", "databento_url")
    @classmethod
    def _bare_url(cls, value: str, info: ValidationInfo) -> str:
        """An address and nothing secret; a key travels unencrypted only inside this machine."""
        plain, secure = ("ws", "wss") if info.field_name == "tradovate_md_url" else ("http", "https")
        form = f"write an address like {secure}://host/path"
        try:
            parts = urlsplit(value)
            known = parts.scheme in (plain, secure) and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, half an IPv6 address
            raise ValueError(form) from None
        if not known:
            raise ValueError(form)
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"{form}, without user, password, query or fragment: it is written to tables")
        if parts.scheme == plain and parts.hostname not in LOOPBACK:
            raise ValueError(
                f"{plain}:// is for this machine only, since keys travel with it; use {secure}://"
            )
        return value.rstrip("/")

    @field_validator("budget_by_vendor")
    @classmethod
    def _caps_of_vendors(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _caps(value, SOURCE_NAMES)

    @field_validator("budget_by_purpose")
    @classmethod
    def _caps_of_purposes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _caps(value, PURPOSES)

    @field_validator("budget_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("write a zone of the IANA database, e.g. UTC or America/Chicago") from None
        return value

    @field_validator("alert_webhook")
    @classmethod
    def _webhook(cls, value: SecretStr | None) -> SecretStr | None:
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

    @field_validator("databento_gateway")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        host, _, port = (value or "").rpartition(":")
        if value is not None and not (host and port.isdecimal() and 0 < int(port) < 65_536):
            raise ValueError("write host:port, e.g. 127.0.0.1:13000")
        return value

    @property
    def clock(self) -> Clock:
        return PinnedClock(self.now) if self.now else SystemClock()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that must be in no text, in every spelling, the longest first.

        Beside each secret also what of a URL is secret by itself.
        """
        return self.secrets_of("")

    def secrets_of(self, vendor: str) -> tuple[str, ...]:
        """Those that one vendor was told, as `secrets`."""
        found = set[str]()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr) and name.startswith(vendor):
                text = value.get_secret_value()
                password = re.match(r"[^/]*//[^/@]*:([^/]+)@", text)
                cookies = {pair.partition("=")[2] for pair in text.split(";")} if "cookies" in name else ()
                found |= {text, *(password.groups() if password else ())}
                found |= {cookie for cookie in cookies if len(cookie) >= LONG}
        if self.alert_webhook and not vendor:
            found.add(urlsplit(self.alert_webhook.get_secret_value()).path)
        return spellings(found)

    @property
    def environment_dir(self) -> Path:
        """Everything of this environment lives below this folder."""
        return self.data_dir / self.environment


def variables() -> dict[str, tuple[str, ...]]:
    """The variables that set each field, the documented ones first."""
    names = {}
    for name, field in Settings.model_fields.items():
        alias, prefixed = field.validation_alias, f"NQ_{name.upper()}"
        own = alias.choices if isinstance(alias, AliasChoices) else [alias or prefixed]
        names[name] = tuple(dict.fromkeys([*map(str, own), prefixed]))
    return names


def misspelled() -> Iterator[str]:
    """A sentence for each variable, of the environment or `.env`, that looks like a setting and is none.

    All that begin with NQ_; of those that begin as a vendor's credentials do, which may be another
    program's, the ones that are close to a name of ours.
    """
    known = {name for names in variables().values() for name in names}
    vendors = tuple({f"{name.partition('_')[0]}_" for name in known} - {"NQ_"})
    for place, names in ((".env", dotenv_values(".env", interpolate=False)), ("the environment", os.environ)):
        for name in sorted({name.upper() for name in names} - known):
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
            if name.startswith("NQ_") or (near and name.startswith(vendors)):
                remedy = f"did you mean {near[0]}?" if near else "`nq settings` lists those that are"
                yield f"{name}, in {place}, is no setting and has no effect; {remedy}"


def load(**overrides: Any) -> Settings:
    """Read the settings; `SettingsError` names the variable, what is wrong and what to write.

    A variable that looks like a setting and is none is a `SettingsWarning`.
    """
    for sentence in misspelled():
        warnings.warn(sentence, SettingsWarning, stacklevel=2)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = str(first["loc"][0])
        name = where if where.isupper() else f"NQ_{where.upper()}"
        message, field = str(first["msg"]), Settings.model_fields.get(where)
        if first["type"] == "value_error":
            message = message.removeprefix("Value error, ")
        elif field is not None:
            message += f" ({field.description})"
        raise SettingsError(f"{name}: {message}") from None
