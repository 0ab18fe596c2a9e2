"""Tradovate's login and contract library over REST.

    POST /auth/accesstokenrequest            a token, a penalty ticket or an error text, all HTTP 200
    GET  /auth/renewaccesstoken              the same session for longer
    GET  /product/find?name=                 one product
    GET  /contractMaturity/deps?masterid=    its expirations
    GET  /contract/deps?masterid=            the contracts of an expiration
    GET  /contract/find?name=                one contract

Bodies are bare objects and lists; a business error is an object with `errorText` or `violations`
and comes with HTTP 200. Documented by the vendor: the login, these endpoints, their fields. Not
confirmed by any recorded answer: that options are contracts of this library, what their products
are called, that contracts are named as on Globex. So names are settings, or counted when unread.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import polars as pl

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.symbology import globex_rows, parse_globex_code
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.plausibility import OTHER
from nq_pipeline.sources.tradovate.feed import YEARS, quoted
from nq_pipeline.transport.json_columns import (
    decode,
    loads,
    number,
    texts,
)
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Reply, VendorSession

RENEW_BEFORE = timedelta(minutes=10)
"""A token that ends sooner is renewed; when it ends, the vendor says in `expirationTime`."""
BUSINESS_ERRORS: tuple[tuple[str, type[SourceError]], ...] = (
    ("username or password", NotConfigured),
    ("denied", NotEntitled),
    ("permission", NotEntitled),
    ("subscri", NotEntitled),
    ("entitle", NotEntitled),
    ("too many", RateLimited),
    ("captcha", Blocked),
)
"""What an `errorText` means, by a part of it. The vendor publishes no list; the rest is `unavailable`."""
NAME_SPACING = r"^([A-Z0-9]{4,6})\s*([CP])\s*([0-9.]+)$"
"""A contract's name with any spacing; mended to Globex's before it is read."""

_PRODUCT = texts("id", "name", "productType", "valuePerPoint")
_MATURITY = texts("id", "expirationMonth", "expirationDate")
_CONTRACT = texts("id", "name")
Parsed = TypeVar("Parsed")
_CHICAGO = ZoneInfo("America/Chicago")


class Unlisted(SourceError):
    """The library has nothing of that name."""

    outcome = Outcome.EMPTY


@dataclass(frozen=True, slots=True)
class Token:
    """What a login gave. `market_data` opens the websocket."""

    access: str = field(repr=False)
    market_data: str = field(repr=False)
    expires: datetime


@dataclass(frozen=True, slots=True)
class ListedSeries:
    """The contracts of one series.

    Attributes
    ----------
    contracts
        contract_id, name (as sent), series, option_type, strike, request_id, raw_sha256.
    """

    series: Series
    contracts: pl.DataFrame
    replies: tuple[Reply, ...]
    dropped: Counter[str]
    controls: dict[str, bool]


_tokens: dict[tuple[str, str], Token] = {}
"""By address and user, in memory only: a new login can end the session of the one before."""
_login_lock = threading.Lock()


class Library:
    """The contract library as one run asks it. It logs in when the first question really leaves."""

    def __init__(self, settings: Settings, exchange: VendorSession) -> None:
        self._settings, self._exchange = settings, exchange
        self._token: Token | None = None
        self._remembered = False
        self._failure: SourceError | None = None
        self.dropped: Counter[str] = Counter()
        """What could not be used of boards of which nothing could."""
        self._products = dict(pair.split("=", 1) for pair in settings.tradovate_products if "=" in pair)

    # Login

    def token(self) -> Token:
        """The token of this process and user, renewed or new where needed.

        Raises
        ------
        NotConfigured
            A credential is missing or wrong.
        Blocked, RateLimited
            A penalty: with a captcha that only a person can answer, or longer than the time left.
        """
        if self._failure is not None:
            raise self._failure  # logins are few and punished: one that failed is not tried again
        if self._token is None:
            try:
                self._token = self._current()
                self._exchange.learn(self._token.access, self._token.market_data)
            except SourceError as error:
                self._failure = error
                raise
        return self._token

    def _current(self) -> Token:
        credentials = self._credentials()
        key = self._settings.tradovate_url, credentials["name"]
        with _login_lock:
            known = _tokens.get(key)
            left = known.expires - datetime.now(UTC) if known else timedelta()
            self._remembered = left > RENEW_BEFORE
            if known is None or left <= timedelta():
                known = self._login(credentials)
            elif not self._remembered:
                known = self._renewed(known) or self._login(credentials)
            _tokens[key] = known
        return known

    def forget(self) -> bool:
        """Drop a token of an earlier run that the vendor no longer takes; False when it is of this run."""
        if not self._remembered:
            return False
        _tokens.pop((self._settings.tradovate_url, self._credentials()["name"]), None)
        self._token, self._remembered = None, False
        return True

    def _credentials(self) -> dict[str, str]:
        settings = self._settings
        required = {
            "TRADOVATE_USERNAME": ("name", settings.tradovate_username),
            "TRADOVATE_PASSWORD": ("password", settings.tradovate_password),
            "TRADOVATE_CID": ("cid", settings.tradovate_cid),
            "TRADOVATE_SEC": ("sec", settings.tradovate_sec),
        }
        missing = [variable for variable, (_, secret) in required.items() if secret is None]
        if missing:
            raise NotConfigured(f"set {', '.join(missing)} to ask Tradovate")
        optional = {
            "appId": settings.tradovate_app_id,
            "appVersion": settings.tradovate_app_version,
            "deviceId": settings.tradovate_device_id,
        }
        return {
            name: secret.get_secret_value() for name, secret in required.values() if secret is not None
        } | {name: text for name, text in optional.items() if text is not None}

    def _login(self, credentials: dict[str, str]) -> Token:
        """A new session; waits out one penalty when it is short and asks for no captcha."""
        answer, reply = self._authorization(credentials)
        if "p-ticket" in answer:
            wait_s = answer.get("p-time")
            if answer.get("p-captcha") or not isinstance(wait_s, int | float):
                words = "Tradovate wants a captcha answered; log in with a browser, or wait an hour"
                raise self._refused(reply, Blocked(words))
            self._exchange.learn(str(answer["p-ticket"]))
            if not 0 <= wait_s < self._exchange.remaining():
                raise self._refused(reply, RateLimited(f"Tradovate delays the login by {wait_s:g} s"))
            time.sleep(wait_s)
            answer, reply = self._authorization(credentials | {"p-ticket": str(answer["p-ticket"])})
            if "p-ticket" in answer:
                raise self._refused(reply, Blocked("Tradovate delays the login twice in a row; wait an hour"))
        return read_token(answer)

    def _authorization(self, credentials: dict[str, str]) -> tuple[dict[str, Any], Reply]:
        reply = self._exchange.post("/auth/accesstokenrequest", operation="login", json=credentials)
        if reply.status == 404:
            raise self._refused(
                reply, Unavailable("no login at this address (HTTP 404); check NQ_TRADOVATE_URL")
            )
        return self._judged(reply, _object), reply

    def _refused(self, reply: Reply, error: SourceError) -> SourceError:
        self._exchange.reject(reply, error.outcome, str(error))
        return error

    def _renewed(self, token: Token) -> Token | None:
        """The same session for longer; None when the vendor will not, and a new login then says why."""
        try:
            reply = self._exchange.get(
                "/auth/renewaccesstoken",
                operation="renew",
                headers={"Authorization": f"Bearer {token.access}"},
                keep=Keep.NEVER,
                archive=False,
            )
            return read_token(self._judged(reply, _object))
        except (BadPayload, NotEntitled, NotConfigured, Unavailable, Unlisted):
            return None

    # The library

    def board(self, series: Series) -> ListedSeries:
        """The contracts of a series.

        Raises `Unlisted` when the library lists nothing for it, `BadPayload` when nothing of what it
        lists can be read.
        """
        name = self._products.get(series.root, series.root)
        product, found = self._ask("/product/find", parse_product, name=name)
        if product.kind != "Options":
            raise Unlisted(
                f"Tradovate's {name!r} is no option product; NQ_TRADOVATE_PRODUCTS can name another"
            )
        (maturities, lost), listed = self._ask(
            "/contractMaturity/deps", parse_maturities, masterid=product.id
        )
        year, number = series.contract_month
        dropped: Counter[str] = lost.copy()
        ours = maturities.filter(pl.col("month") == year * 100 + number)
        parts, replies = [], [found, listed]
        for maturity_id in ours["maturity_id"]:
            (part, unread), reply = self._ask(
                "/contract/deps", lambda body: parse_contracts(body, series), masterid=maturity_id
            )
            source = {"request_id": pl.lit(reply.request_id), "raw_sha256": pl.lit(reply.sha256)}
            parts.append(part.with_columns(**source))
            replies.append(reply)
            dropped += unread
        if not sum(part.height for part in parts):
            month, malformed = f"{series.expiration_date:%B %Y}", dropped.total() - dropped[OTHER]
            self.dropped += dropped
            nothing: SourceError = Unlisted(f"Tradovate lists no contracts of {name} for {month}")
            if malformed:
                nothing = BadPayload(f"none of {malformed} contracts of {name} for {month} can be read")
            raise self._refused(replies[-1], nothing)  # or a slip of the vendor's would hold all day
        contracts = pl.concat(parts).unique(["option_type", "strike"], keep="first", maintain_order=True)
        dropped["duplicate"] += sum(part.height for part in parts) - contracts.height
        controls = {
            "value_per_point_is_multiplier": product.value_per_point == series.root_info.product.multiplier,
            "maturity_is_expiration": any(series.expiration_date in days for days in ours["days"]),
        }
        return ListedSeries(series, contracts, tuple(replies), dropped, controls)

    def contract_id(self, name: str) -> int:
        """The id of a contract by name; `Unlisted` when there is none."""
        return self._ask("/contract/find", parse_contract_id, name=name)[0]

    def _ask(self, path: str, parse: Callable[[bytes], Parsed], **params: str | int) -> tuple[Parsed, Reply]:
        """One question to the library; its answers hold for the trade date.

        Asked once more with a new token when the vendor no longer takes one of an earlier run.
        """
        reply = self._sent(path, params)
        if reply.status == 401 and self.forget():
            self._exchange.reject(reply, Outcome.NOT_ENTITLED, "the token is no longer accepted")
            reply = self._sent(path, params)
        return self._judged(reply, parse), reply

    def _sent(self, path: str, params: dict[str, str | int]) -> Reply:
        kept = self._exchange.kept(path, params)
        return self._exchange.get(
            path,
            operation=path.removeprefix("/"),
            params=params,
            headers={} if kept else {"Authorization": f"Bearer {self.token().access}"},
            keep=Keep.TRADE_DATE,
        )

    def _judged(self, reply: Reply, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What a reply says, once it is known to be no refusal; a bad one is not served again."""
        try:
            error = refusal(reply)
            if error is not None:
                raise error
            return parse(reply.body)
        except SourceError as error:
            self._refused(reply, error)
            raise


def refusal(reply: Reply) -> SourceError | None:
    """What is wrong with a reply; None when nothing is. HTTP 200 with an error text is a refusal too."""
    match reply.status:
        case 200:
            return _business_error(reply.body)
        case 401:
            return NotEntitled(f"Tradovate refuses {reply.operation} (HTTP 401): no permission")
        case 403:
            return Blocked(f"Tradovate refuses {reply.operation} (HTTP 403)")
        case 404:
            return Unlisted(f"Tradovate's {reply.operation} has nothing of that name (HTTP 404)")
        case 423 | 429:
            return RateLimited(f"too many requests to Tradovate (HTTP {reply.status})")
        case status if status is not None and status >= 500:
            return Unavailable(f"Tradovate answered HTTP {status}; it may work again later")
    return BadPayload(
        f"Tradovate answered HTTP {reply.status} to {reply.operation}, which it does not document"
    )


def _business_error(body: bytes) -> SourceError | None:
    if not body.lstrip().startswith(b"{"):
        return None
    try:
        answer = _object(body)
    except BadPayload as error:
        return error
    words = answer.get("errorText")
    if words:
        said = str(words).lower()
        kind = next((kind for part, kind in BUSINESS_ERRORS if part in said), Unavailable)
        return kind(f"Tradovate reports an error{quoted(words)}")
    if answer.get("violations"):
        return BadPayload("Tradovate finds fault with the question itself: its protocol may have changed")
    return None


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FoundProduct:
    id: int
    kind: str
    value_per_point: float | None


def read_token(answer: Mapping[str, Any]) -> Token:
    """The token of a login's answer; one without a readable end is used once and not remembered."""
    access, market_data = answer.get("accessToken"), answer.get("mdAccessToken")
    if not (isinstance(access, str) and access):
        raise BadPayload("Tradovate's login: neither a token nor an error text")
    ends = _instant(str(answer.get("expirationTime", "")))
    return Token(
        access=access,
        market_data=market_data if isinstance(market_data, str) and market_data else access,
        expires=ends or datetime.now(UTC),
    )


def parse_product(body: bytes) -> FoundProduct:
    """The product of `product/find`."""
    what = "Tradovate's product"
    product = decode(body, _PRODUCT, Counter(), what=what).struct.unnest()
    product_id, value = product.select(number("id", pl.Int64), number("valuePerPoint")).row(0)
    if product_id is None:
        raise BadPayload(f"{what}: no id in the answer")
    return FoundProduct(product_id, product["productType"].item() or "", value)


def parse_maturities(body: bytes) -> tuple[pl.DataFrame, Counter[str]]:
    """The expirations of a product, and the count of those that cannot be read (`malformed_row`).

    Columns: maturity_id, month (yyyymm), days it may mean (UTC's, Chicago's).
    """
    rows = _list(body, _MATURITY, Counter(), "Tradovate's maturities")
    read = rows.select(
        number("id", pl.Int64).alias("maturity_id"),
        number("expirationMonth", pl.Int64).alias("month"),
        pl.col("expirationDate").map_elements(_days, return_dtype=pl.List(pl.Date)).alias("days"),
    )
    known = read.drop_nulls(["maturity_id", "month"])
    return known, Counter(malformed_row=read.height - known.height)


def parse_contracts(body: bytes, series: Series) -> tuple[pl.DataFrame, Counter[str]]:
    """The contracts of one expiration that are options of the series.

    Returns
    -------
    contract_id, name (as sent), series, option_type, strike; and the count of what is not among
    them: `malformed_row`, `unknown_symbol` (the name cannot be read), `other_series`.
    """
    dropped: Counter[str] = Counter()
    rows = _list(body, _CONTRACT, dropped, "Tradovate's contracts")
    mended = pl.col("name").str.strip_chars().str.to_uppercase().str.replace(NAME_SPACING, "${1} ${2}${3}")
    rows = rows.select(
        number("id", pl.Int64).alias("contract_id"), "name", globex_rows(mended).alias("term")
    ).unnest("term")
    codes = rows["code"].drop_nulls().unique()
    ours = [c for c in codes if parse_globex_code(c, expiration=series.expiration_date) == series]
    fault = (
        pl.when(pl.col("contract_id").is_null() | pl.col("name").is_null())
        .then(pl.lit("malformed_row"))
        .when(pl.col("code").is_null() | ~(pl.col("strike") > 0))
        .then(pl.lit("unknown_symbol"))
        .when(~pl.col("code").is_in(ours))
        .then(pl.lit(OTHER))
    )
    rows = rows.with_columns(fault=fault)
    dropped.update(dict(rows["fault"].drop_nulls().value_counts().iter_rows()))
    good = rows.filter(pl.col("fault").is_null())
    return good.select(
        "contract_id", "name", pl.lit(series.key).alias("series"), "option_type", "strike"
    ), dropped


def parse_contract_id(body: bytes) -> int:
    """The id of `contract/find`."""
    what = "Tradovate's contract"
    found = (
        decode(body, _CONTRACT, Counter(), what=what).struct.unnest().select(number("id", pl.Int64)).item()
    )
    if found is None:
        raise BadPayload(f"{what}: no id in the answer")
    return int(found)


def _list(body: bytes, item: pl.Struct, dropped: Counter[str], what: str) -> pl.DataFrame:
    return decode(body, pl.List(item), dropped, what=what).explode(empty_as_null=False).struct.unnest()


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadPayload(f"Tradovate: expected a JSON object, got something else of {len(body)} bytes")
    return value


def _instant(text: str) -> datetime | None:
    """An instant as the vendor writes it, with or without seconds (`2026-08-27T17:30Z`)."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    if instant.year not in YEARS:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _days(text: str) -> list[date]:
    instant = _instant(text)
    return [instant.date(), instant.astimezone(_CHICAGO).date()] if instant else []
