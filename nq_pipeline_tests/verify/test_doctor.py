"""What the doctor says about scripted vendors, and about the market at given moments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.configuration import build_settings, load
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotConfigured,
    NotEntitled,
    OverBudget,
    RateLimited,
    SettingsError,
    SourceError,
    Unavailable,
)
from nq_pipeline.sources.base import Probe
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline.verify.doctor import market_state, probe_sources, probe_store
from nq_pipeline_tests.testing.s3 import Bucket, Fault, FaultProxy
from nq_pipeline_tests.testing.vendors import NOW, Vendor, failing

HEALTHY = Probe(True, True, True, "a vendor of the tests")


def examined(
    data: Path, perform: Mapping[str, Callable[[], object]], **settings: object
) -> Mapping[str, Probe]:
    """The probes of all vendors, some of whom do this when asked."""
    vendors = {name: Vendor(name, perform=perform.get(name, lambda: None)) for name in SOURCE_NAMES}
    chosen = {"environment": "live", "data_dir": data, "now": NOW, **settings}
    return probe_sources(build_settings(**chosen), opener=lambda name, _: vendors[name])


def test_every_vendor_is_examined_also_those_that_are_not_used(tmp_path: Path) -> None:
    probes = examined(tmp_path, {}, sources=("databento",))
    assert list(probes) == list(SOURCE_NAMES)
    assert set(probes.values()) == {HEALTHY}


def test_vendors_are_examined_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(len(SOURCE_NAMES), timeout=60)
    probes = examined(tmp_path, dict.fromkeys(SOURCE_NAMES, together.wait))
    assert set(probes.values()) == {HEALTHY}


@pytest.mark.parametrize(
    ("error", "configured", "reachable", "entitled", "remedy"),
    [
        (NotConfigured("no key"), False, None, None, "POLYGON_API_KEY"),
        (NotEntitled("not in the plan"), True, True, False, "plan"),
        (OverBudget("too dear"), True, True, False, "nq budget"),
        (Blocked("a captcha"), True, True, None, "NQ_SOURCES"),
        (RateLimited("too many"), True, True, None, "wait"),
        (BadPayload("HTML"), True, True, None, "nq settings"),
        (Unavailable("nobody"), True, False, None, "network"),
        (DeadlineReached("too slow"), True, False, None, "NQ_SOURCE_DEADLINE_S"),
    ],
)
def test_every_failure_has_a_state_and_a_remedy(
    tmp_path: Path,
    error: SourceError,
    configured: bool,
    reachable: bool | None,
    entitled: bool | None,
    remedy: str,
) -> None:
    probes = examined(tmp_path, {"polygon": failing(error)})
    probe = probes["polygon"]
    assert (probe.configured, probe.reachable, probe.entitled) == (configured, reachable, entitled)
    assert probe.detail == str(error)
    assert remedy in probe.remedy
    assert {probes[name] for name in SOURCE_NAMES if name != "polygon"} == {HEALTHY}


def test_a_fault_in_one_probe_leaves_the_others(tmp_path: Path) -> None:
    probes = examined(tmp_path, {"barchart": failing(ZeroDivisionError("a bug"))})
    assert probes["barchart"].detail == "a fault of this program, ZeroDivisionError: a bug"
    assert probes["barchart"].remedy
    assert probes["polygon"] == HEALTHY


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_vendor_that_hangs_is_reported_and_not_waited_for(tmp_path: Path, never: threading.Event) -> None:
    probes = examined(tmp_path, {"tradovate": lambda: never.wait(60)}, source_deadline_s=2.0)
    assert not never.is_set()
    assert probes["tradovate"] == Probe(
        True, False, None, "no answer in time", "try again, or raise NQ_SOURCE_DEADLINE_S"
    )
    assert probes["databento"] == HEALTHY


def test_an_invalid_setting_fails_before_any_request(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="NQ_PRODUCTS"):
        examined(tmp_path, {}, products=("XX",))


# ── the market ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        ("06-10T15:00", "open (regular hours), trade date 2025-06-10, until Tue 2025-06-10 16:00 CT"),
        ("06-10T20:00", "open (outside regular hours), trade date 2025-06-10, until Tue 2025-06-10 16:00 CT"),
        ("06-10T21:30", "closed, trade date 2025-06-10 was the last, opens Tue 2025-06-10 17:00 CT"),
        ("06-07T15:00", "closed, trade date 2025-06-06 was the last, opens Sun 2025-06-08 17:00 CT"),
        ("11-28T18:00", "open (regular hours), trade date 2025-11-28, until Fri 2025-11-28 12:15 CT"),
        # A holiday halt lies inside the session of the next trade date.
        ("07-04T15:00", "open (outside regular hours), trade date 2025-07-07, until Fri 2025-07-04 12:00 CT"),
    ],
)
def test_the_state_of_the_market_is_one_sentence(now: str, sentence: str) -> None:
    assert market_state(datetime.fromisoformat(f"2025-{now}Z")) == sentence


@given(st.datetimes(datetime(2021, 1, 4), datetime(2027, 12, 30), timezones=st.just(UTC)))
def test_the_market_has_a_state_at_any_moment(now: datetime) -> None:
    assert market_state(now).startswith(("open (", "closed, "))


def test_an_unusable_data_folder_names_the_setting(tmp_path: Path) -> None:
    denied = PermissionError(13, "Permission denied", "/data/live")
    probe = examined(tmp_path, {"barchart": failing(denied)})["barchart"]
    assert probe.detail == "cannot use /data/live: Permission denied"
    assert "NQ_DATA_DIR" in probe.remedy


def test_the_object_store_is_examined(
    tmp_path: Path, flaky_bucket: Bucket, s3_faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe_store(load(data_dir=tmp_path)) is None
    settings = load(data_dir=tmp_path, lake_url=flaky_bucket.url, store_timeout_s=1)
    good = probe_store(settings)
    assert good and (good.reachable, good.entitled, good.remedy) == (True, True, "")
    assert flaky_bucket.names() == []
    s3_faults.show(Fault(ignores_conditions=True, method="PUT", times=9))
    careless = probe_store(settings)
    assert careless and careless.entitled is False and "conditional writes" in careless.remedy
    s3_faults.clear()
    s3_faults.show(Fault(status=503, times=1000))
    away = probe_store(settings)
    assert away and away.reachable is False and "SlowDown" in away.detail
