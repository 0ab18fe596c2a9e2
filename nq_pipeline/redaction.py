"""Known secrets are struck out of what a vendor sends before anyone sees, logs or writes it.

A vendor knows the key it was asked with and can repeat it anywhere: in a body, a header, a refusal,
a name. So every session strikes at its edge: `redact` for bytes and texts, `redact_logs` for
what libraries log. Asterisks keep the length, so that binary records stay whole.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import traceback
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, unquote

SHORTEST = 4
"""Shorter values are no secrets, and would blank out half of a text."""
WORD = 8
"""In data, a shorter secret is left alone: an honest answer may hold it."""
LONG = 16
"""In data, a secret from `WORD` to here is struck only where it stands by itself, a longer one anywhere."""

Value = TypeVar("Value", str, bytes)


def secret_spellings(secrets: Iterable[str]) -> tuple[str, ...]:
    """The secrets and how they look in a URL, in JSON, in HTML and in a login header; the longest first,
    since one may be part of another."""
    found = set[str]()
    for secret in secrets:
        basic = base64.b64encode(f"{secret}:".encode()).decode()
        found |= {
            secret,
            quote(secret, safe=""),
            quote_plus(secret),
            unquote(secret),
            html.escape(secret),
            basic,
        }
        for in_json in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
            found |= {in_json, in_json.replace("/", "\\/")}
    return tuple(sorted((text for text in found if len(text) >= SHORTEST), key=lambda t: (-len(t), t)))


def redact(text: str, secrets: Iterable[str]) -> str:
    """A text without the secrets."""
    for secret in secrets:
        text = text.replace(secret, "*" * len(secret))
    return text


def redact_data(data: bytes, secrets: Iterable[str]) -> bytes:
    """Data without the secrets, of the same length; those that an honest answer may hold stay (`WORD`)."""
    for secret in secrets:
        if len(secret) < WORD:
            continue
        found = secret.encode()
        if found not in data:
            continue
        if len(secret) >= LONG:
            data = data.replace(found, b"*" * len(found))
        else:
            data = re.sub(rb"(?<!\w)" + re.escape(found) + rb"(?!\w)", b"*" * len(found), data)
    return data


def redact_all(value: Any, secrets: Collection[str]) -> Any:
    """Texts and bytes, and whatever holds them, without the secrets."""
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, bytes):
        for secret in secrets:
            value = value.replace(secret.encode(), b"*" * len(secret.encode()))
        return value
    if isinstance(value, Mapping):
        return {redact_all(name, secrets): redact_all(item, secrets) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item, secrets) for item in value]
    return value


# ── what libraries log ──────────────────────────────────────────────────────────────────────────

_kept_out: tuple[str, ...] = ()


def redact_logs(secrets: Collection[str]) -> None:
    """From now on no log record of this process holds one of these secrets, whichever library makes it."""
    global _kept_out
    if new := set(secrets) - set(_kept_out):
        _kept_out = tuple(sorted({*_kept_out, *new}, key=len, reverse=True))
    make = logging.getLogRecordFactory()
    if getattr(make, "strikes", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        _strike_record(made)
        return made

    record.strikes = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _strike_record(record: logging.LogRecord) -> None:
    try:
        said = record.getMessage()
    except Exception:  # arguments that do not fit: logging itself reports that, without them
        said, record.args = str(record.msg), None
        record.msg = redact(said, _kept_out)
        return
    if (clean := redact(said, _kept_out)) != said:
        record.msg, record.args = clean, None
    if record.exc_info and record.exc_info[1] is not None:
        told = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if (clean := redact(told, _kept_out)) != told:
            record.exc_text, record.exc_info = clean, None
