"""Redacts known secrets in what vendors send, before anyone sees, logs or writes it.

A vendor knows the key of a request and can repeat it anywhere: in a body, a header, a refusal, a name.
Therefore every session redacts what it receives: `redact` for text, `redact_data` for bytes, and
`redact_logs` for the log messages of libraries. Asterisks keep the length, so binary records stay valid.
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
"""Shorter values are not redacted, because they occur in ordinary text."""
WORD = 8
"""In data, a shorter secret is not redacted, because ordinary data may contain it."""
LONG = 16
"""In data, a shorter secret is redacted only as a whole word, a longer one anywhere."""

Value = TypeVar("Value", str, bytes)


def secret_spellings(secrets: Iterable[str]) -> tuple[str, ...]:
    """The secrets as spelled in URLs, JSON, HTML and login headers; the longest first, because one may be
    part of another."""
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
    """The text with asterisks in place of secrets."""
    for secret in secrets:
        text = text.replace(secret, "*" * len(secret))
    return text


def redact_data(data: bytes, secrets: Iterable[str]) -> bytes:
    """The data with asterisks in place of secrets, of the same length; see `WORD` and `LONG`."""
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
    """Text, bytes, and containers of them, with secrets redacted."""
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


# ── logs ──────────────────────────────────────────────────────────────────────────

_log_secrets: tuple[str, ...] = ()


def redact_logs(secrets: Collection[str]) -> None:
    """Redact these secrets in every later log record of this process, whichever library makes it."""
    global _log_secrets
    if new := set(secrets) - set(_log_secrets):
        _log_secrets = tuple(sorted({*_log_secrets, *new}, key=len, reverse=True))
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        _redact_record(made)
        return made

    record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _redact_record(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except Exception:  # the arguments do not fit the format; logging reports that without showing them
        record.msg, record.args = redact(str(record.msg), _log_secrets), None
        return
    if (clean := redact(message, _log_secrets)) != message:
        record.msg, record.args = clean, None
    if record.exc_info and record.exc_info[1] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if (clean := redact(trace, _log_secrets)) != trace:
            record.exc_text, record.exc_info = clean, None
