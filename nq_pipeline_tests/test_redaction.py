"""Known secrets are struck out of texts, data and what libraries log, in every spelling."""

from __future__ import annotations

import base64
import logging
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.redaction import redact, redact_data, redact_logs, secret_spellings

SECRET = 'db-"quoted"/&ünïcode=1234567890'
HIDDEN = secret_spellings([SECRET])


@pytest.mark.parametrize(
    "said",
    [
        SECRET,
        quote(SECRET, safe=""),
        SECRET.replace('"', '\\"'),
        SECRET.replace('"', '\\"').replace("/", "\\/"),
        SECRET.replace("&", "&amp;").replace('"', "&quot;"),
        base64.b64encode(f"{SECRET}:".encode()).decode(),
    ],
)
def test_a_secret_is_struck_in_every_spelling(said: str) -> None:
    assert redact(f"a {said} b", HIDDEN) == f"a {'*' * len(said)} b"


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_data_keep_their_length_and_the_bytes_around(before: bytes, after: bytes) -> None:
    key = "db-0123456789-0123456789"
    struck = redact_data(before + key.encode() + after, [key])
    assert struck == before + b"*" * len(key) + after


def test_a_short_secret_is_redacted_only_as_a_whole_word() -> None:
    assert (
        redact_data(b'{"a":"hunter22","b":"hunter221"}', ["hunter22"]) == b'{"a":"********","b":"hunter221"}'
    )
    assert redact_data(b'{"cid":8133}', ["8133"]) == b'{"cid":8133}'


def test_no_library_logs_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    key = "db-logged-0123456789-0123456789"
    redact_logs([key])
    log = logging.getLogger("some.library")
    log.error("refused %s", key)
    log.error(f"refused {key}")
    log.error("not %d", key)
    try:
        raise ValueError(f"no {key}")
    except ValueError:
        log.exception("broke")
    assert len(caplog.records) == 4 and "broke" in caplog.text and "ValueError" in caplog.text
    assert key not in caplog.text and key not in str([vars(record) for record in caplog.records])
