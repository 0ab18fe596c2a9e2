"""Settings: fixed names, precedence, errors that say what to write, secrets that never print."""

from __future__ import annotations

import json
import pickle
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from nq_pipeline import configuration
from nq_pipeline.clock import PinnedClock, SystemClock, from_ns, to_ns
from nq_pipeline.configuration import load
from nq_pipeline.errors import SettingsError, SettingsWarning
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.spec import BarchartSettings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.polygon.spec import PolygonSettings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import NOON, chain

FIXED = {
    "NQ_ENVIRONMENT": ("live", "environment", "live"),
    "NQ_DATA_DIR": ("/elsewhere", "data_dir", Path("/elsewhere")),
    "NQ_NOW": ("2025-06-10T10:00:00-05:00", "now", datetime(2025, 6, 10, 15, tzinfo=UTC)),
    "NQ_SOURCES": ("databento, barchart", "sources", ("databento", "barchart")),
    "NQ_BARCHART_URL": ("http://127.0.0.1:1/", "barchart_url", "http://127.0.0.1:1"),
    "NQ_POLYGON_URL": ("http://localhost:2", "polygon_url", "http://localhost:2"),
    "NQ_TRADOVATE_URL": ("http://[::1]:3/v1", "tradovate_url", "http://[::1]:3/v1"),
    "NQ_TRADOVATE_MD_URL": ("ws://127.0.0.1:4/v1/ws", "tradovate_md_url", "ws://127.0.0.1:4/v1/ws"),
    "NQ_DATABENTO_URL": ("http://127.0.0.1:5", "databento_url", "http://127.0.0.1:5"),
    "NQ_DATABENTO_GATEWAY": ("127.0.0.1:6", "databento_gateway", "127.0.0.1:6"),
    "NQ_CHAIN_WINDOW": ("globex", "chain_window", "globex"),
    "NQ_HORIZON_DAYS": ("30", "horizon_days", 30),
    "NQ_FAR_EXPIRATIONS": ("false", "far_expirations", False),
    "NQ_SOURCE_DEADLINE_S": ("7.5", "source_deadline_s", 7.5),
    "NQ_POLYGON_RPM": ("100", "polygon_rpm", 100),
    "NQ_BARCHART_ENABLED": ("true", "barchart_enabled", True),
}
"""Names that anybody may rely on: (written, field, value)."""

CREDENTIALS = {
    "DATABENTO_API_KEY": "databento_api_key",
    "POLYGON_API_KEY": "polygon_api_key",
    "MASSIVE_API_KEY": "polygon_api_key",
    "TRADOVATE_USERNAME": "tradovate_username",
    "TRADOVATE_PASSWORD": "tradovate_password",
    "TRADOVATE_CID": "tradovate_cid",
    "TRADOVATE_SEC": "tradovate_sec",
    "NQ_BARCHART_COOKIES": "barchart_cookies",
}
MARK = "marked-secret-5f1d"


def value_of(settings: Settings, name: str) -> object:
    """The value of a setting by its name."""
    values = {one.name: getattr(g, one.attribute) for g in settings.groups() for one in g.declared()}
    return values[name]


@pytest.mark.parametrize("name", FIXED)
def test_a_documented_variable_sets_its_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, field, value = FIXED[name]
    assert value_of(load(), field) != value, "the example is the default and shows nothing"
    monkeypatch.setenv(name, written)
    assert value_of(load(), field) == value


def test_the_documented_defaults_hold() -> None:
    settings = load()
    assert settings.environment == "sandbox"
    assert settings.chains.sources == ("barchart", "polygon", "tradovate", "databento")
    assert (settings.chains.window, settings.chains.horizon_days, settings.chains.source_deadline_s) == (
        "rth",
        14,
        20,
    )
    assert settings.environment_dir == Path("data/sandbox")
    assert settings.now is None and isinstance(settings.clock, SystemClock)


def test_the_environment_beats_the_file_and_the_file_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("NQ_HORIZON_DAYS=3\nNQ_POLYGON_RPM=9\nPOLYGON_API_KEY=of-the-file\n")
    monkeypatch.setenv("NQ_HORIZON_DAYS", "5")
    settings = load()
    assert (
        settings.chains.horizon_days,
        settings.vendor(PolygonSettings).rpm,
        settings.vendor(BarchartSettings).delay_s,
    ) == (5, 9, 600)
    assert settings.vendor(PolygonSettings).api_key == SecretStr("of-the-file")


def test_a_line_of_the_file_without_a_value_leaves_the_default(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NQ_HORIZON_DAYS=\nDATABENTO_API_KEY=\nNQ_SOURCES=\nNQ_NOW=\n")
    settings = load()
    assert (settings.chains.horizon_days, settings.vendor(DatabentoSettings).api_key, settings.now) == (
        14,
        None,
        None,
    )
    assert len(settings.chains.sources) == 4


def test_the_example_file_is_read_without_complaint(tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / ".env.example"
    (tmp_path / ".env").write_text(example.read_text())
    settings = load()
    assert settings.environment == "live"
    assert (
        settings.vendor(DatabentoSettings).api_key is None and not settings.vendor(BarchartSettings).enabled
    )


def test_the_sandbox_has_defaults_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox, live = load(), load(environment="live")
    assert (
        sandbox.chains.ask_metered,
        sandbox.vendor(PolygonSettings).rpm,
        sandbox.vendor(BarchartSettings).spacing_s,
    ) == ("always", 0, 0)
    assert (
        live.chains.ask_metered,
        live.vendor(PolygonSettings).rpm,
        live.vendor(BarchartSettings).spacing_s,
    ) == ("missing", 5, 1)
    monkeypatch.setenv("NQ_POLYGON_RPM", "7")
    monkeypatch.setenv("NQ_ASK_METERED", "missing")
    said = load()
    assert (said.environment, said.vendor(PolygonSettings).rpm, said.chains.ask_metered) == (
        "sandbox",
        7,
        "missing",
    )


@pytest.mark.parametrize(
    ("name", "written", "words"),
    [
        ("NQ_ENVIRONMENT", "production", "'sandbox' or 'live'"),
        ("NQ_SOURCES", "barchart,bloomberg", "barchart, polygon, tradovate, databento"),
        ("NQ_SOURCES", "barchart,barchart", "at most once"),
        ("NQ_SOURCES", ",", "name each of"),
        ("NQ_NOW", "2025-06-10T15:00:00", "2025-06-10T15:00:00Z"),
        ("NQ_NOW", "yesterday", "ISO 8601"),
        ("NQ_HORIZON_DAYS", "many", "integer"),
        ("NQ_HORIZON_DAYS", "-1", "greater than or equal to 0"),
        ("NQ_SOURCE_DEADLINE_S", "0", "greater than 0"),
        ("NQ_CHAIN_WINDOW", "night", "'rth', 'globex' or 'always'"),
        ("NQ_BARCHART_URL", "www.barchart.com", "https://host/path"),
        ("NQ_BARCHART_URL", "ftp://www.barchart.com", "https://host/path"),
        ("NQ_POLYGON_URL", "https://", "https://host/path"),
        ("NQ_POLYGON_URL", "https://host:port", "https://host/path"),
        ("NQ_POLYGON_URL", f"https://api.example/?apiKey={MARK}", "without user, password, query"),
        ("NQ_DATABENTO_URL", f"https://user:{MARK}@hist.example", "without user, password, query"),
        ("NQ_TRADOVATE_MD_URL", "https://md.example", "wss://host/path"),
        ("NQ_DATABENTO_GATEWAY", "glbx.example", "host:port"),
        ("NQ_DATABENTO_GATEWAY", "glbx.example:99999", "host:port"),
        ("NQ_BUDGET_DAILY_USD", "-1", "greater than or equal to 0"),
        ("NQ_BUDGET_BY_VENDOR", "bloomberg=1", "barchart=15"),
        ("NQ_BUDGET_BY_VENDOR", "databento=1,databento=2", "twice"),
        ("NQ_BUDGET_BY_PURPOSE", "chains=much", "chains=15"),
        ("NQ_BUDGET_TIMEZONE", "Mars/Olympus", "America/Chicago"),
        ("NQ_SANDBOX_PORT", "70000", "less than or equal to 65535"),
    ],
)
def test_a_bad_value_names_the_variable_and_what_to_write(
    name: str, written: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, written)
    with pytest.raises(SettingsError) as raised:
        load()
    sentence = str(raised.value)
    assert sentence.startswith(f"{name}: ") and words in sentence
    assert "\n" not in sentence and "pydantic" not in sentence and MARK not in sentence


@pytest.mark.parametrize("name", [name for name in FIXED if name.endswith("_URL")])
@pytest.mark.parametrize(
    "host", ["example.com", "127.0.0.1.example.com", "localhost.example", "10.0.0.1", "0.0.0.0", "[::2]"]
)
def test_a_key_travels_unencrypted_only_inside_this_machine(
    name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "ws" if name == "NQ_TRADOVATE_MD_URL" else "http"
    monkeypatch.setenv(name, f"{plain}://{host}/v1")
    with pytest.raises(SettingsError, match=f"{name}: .*this machine only"):
        load()
    monkeypatch.setenv(name, f"{plain}s://{host}/v1")
    load()


def test_a_loopback_user_name_is_not_a_loopback_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_POLYGON_URL", "http://127.0.0.1@example.com/")
    with pytest.raises(SettingsError, match="NQ_POLYGON_URL"):
        load()


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_credential_is_read_and_never_printed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, MARK)
    settings = load()
    secret = value_of(settings, CREDENTIALS[name])
    assert isinstance(secret, SecretStr) and secret.get_secret_value() == MARK
    shown = [
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        str(dict(settings)),
        settings.model_dump_json(),
        json.dumps(settings.model_dump(mode="json")),
        configuration.in_force(settings),
        configuration.markdown(),
    ]
    assert [text for text in shown if MARK in text] == []


def test_an_error_never_quotes_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.setenv(name, MARK)
    monkeypatch.setenv("NQ_HORIZON_DAYS", MARK)
    with pytest.raises(SettingsError) as ours:
        load()
    assert MARK not in str(ours.value)
    assert ours.value.__cause__ is None


def test_the_first_documented_name_of_a_key_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASSIVE_API_KEY", "new")
    assert load().vendor(PolygonSettings).api_key == SecretStr("new")
    monkeypatch.setenv("POLYGON_API_KEY", "old")
    assert load().vendor(PolygonSettings).api_key == SecretStr("old")


# ── the reference ───────────────────────────────────────────────────────────────────────────────


def test_the_reference_names_every_setting_once_with_a_meaning() -> None:
    rows = [line.split(" | ") for line in configuration.markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(configuration.declared()))
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names)
    assert {name for name in FIXED if not any(f"`{name}`" in cell for cell in names)} == set()
    assert {name for name in CREDENTIALS if not any(f"`{name}`" in cell for cell in names)} == set()
    assert all(len(row) == 3 and row[2].removesuffix(" |").strip() for row in rows)


def test_values_in_force_are_lines_of_an_environment_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQ_SOURCES", "databento")
    monkeypatch.setenv("MASSIVE_API_KEY", MARK)
    lines = configuration.in_force(load()).splitlines()
    shown = dict(line.split("=", 1) for line in lines)
    assert shown["NQ_SOURCES"] == "databento"
    assert shown["POLYGON_API_KEY"] == "(set, hidden)"
    assert shown["DATABENTO_API_KEY"] == "(unset)"
    assert shown["NQ_BARCHART_ENABLED"] == "False"
    assert all(name.replace("_", "").isalnum() and name.isupper() for name in shown)


def test_settings_are_frozen_and_can_be_pickled() -> None:
    settings = load(budget_daily_usd="2.50")
    with pytest.raises(ValidationError):
        settings.chains.horizon_days = 3  # type: ignore[misc]
    copied = pickle.loads(pickle.dumps(settings))
    assert copied == settings and copied.spend.budget_daily_usd == Decimal("2.50")


# ── the clock ───────────────────────────────────────────────────────────────────────────────────


def test_a_pinned_clock_stands_still_while_durations_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_NOW", "2025-06-10T10:00:00-05:00")
    clock = load().clock
    assert clock.now() == clock.now() == clock.pinned == datetime(2025, 6, 10, 15, tzinfo=UTC)
    assert clock.now().tzinfo is UTC
    started = clock.monotonic()
    assert any(clock.monotonic() > started for _ in range(1_000_000))


def test_a_clock_cannot_be_pinned_to_an_instant_without_a_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        PinnedClock(datetime(2025, 6, 10))


ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(1678, 1, 1), datetime(2262, 1, 1), timezones=ZONES))
def test_nanoseconds_and_back_are_exact_to_the_microsecond(instant: datetime) -> None:
    assert from_ns(to_ns(instant)) == instant
    assert from_ns(to_ns(instant) + 999) == instant
    assert from_ns(to_ns(instant)).tzinfo is UTC


# ── unknown variables ─────────────────────────────────────────────────────────────────────────


def test_an_unknown_variable_is_reported_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "NQ_HORIZON_DAY=3\nDATABENTO_KEY=marked-secret\nDATABENTO_LOG=1\nOTHER=1\n"
    )
    monkeypatch.setenv("NQ_SOURCE", "barchart")
    monkeypatch.setenv("NQ_WHATEVER", "1")
    with pytest.warns(SettingsWarning) as told:
        assert load().chains.horizon_days == 14
    assert [str(one.message).partition(" is not a setting and has no effect; ")[::2] for one in told] == [
        ("DATABENTO_KEY, in .env,", "did you mean DATABENTO_API_KEY?"),
        ("NQ_HORIZON_DAY, in .env,", "did you mean NQ_HORIZON_DAYS?"),
        ("NQ_SOURCE, in the environment,", "did you mean NQ_SOURCES?"),
        ("NQ_WHATEVER, in the environment,", "`nq settings` lists those that are"),
    ]
    assert not any("marked-secret" in str(one.message) for one in told)


@pytest.mark.filterwarnings("error::nq_pipeline.errors.SettingsWarning")
def test_no_known_variable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (name for one in configuration.declared() for name in one.variables):
        monkeypatch.setenv(name.lower(), "")
    load()


@pytest.mark.parametrize(
    "name", ["source=evil", "a*", "a?", "[ab]", "{a,b}", "back\\slash", "byte\udcff", "x/" * 1900 + "x"]
)
def test_a_data_folder_that_readers_misread_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQ_DATA_DIR", str(tmp_path / name))
    with pytest.raises(SettingsError, match=r"NQ_DATA_DIR: .*choose") as refused:
        load()
    str(refused.value).encode()  # it can be printed


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="since Python 3.13 a loop of links is a path as any other"
)
def test_a_data_folder_in_a_loop_of_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("NQ_DATA_DIR", str(tmp_path / "loop"))
    with pytest.raises(SettingsError, match=r"NQ_DATA_DIR: .*loop"):
        load()


def test_the_default_data_folder_is_refused_in_an_odd_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source=evil").mkdir()
    monkeypatch.chdir(tmp_path / "source=evil")
    with pytest.raises(SettingsError, match="has ="):
        load()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to("source=evil")
    with pytest.raises(SettingsError, match="has ="):
        load()


@pytest.mark.parametrize("name", ['it\'s "here"; --', "Ünïcode 数据", "$HOME ~ #%&", "line\nbreak"])
def test_other_odd_folder_names_hold_a_lake(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQ_DATA_DIR", str(tmp_path / name))
    environment = load().environment_dir
    Workspace(environment).lake.append(SOURCE_CHAIN, chain(SOURCE_CHAIN, snapshot=NOON), run_id="run")
    with duckdb.connect(catalog.publish(Workspace(environment).lake), read_only=True) as published:
        assert published.sql("select source, count(*) from source_chain group by 1").fetchall() == [
            ("barchart", 3)
        ]
    assert Workspace(environment).lake.scan(SOURCE_CHAIN).collect().height == 3
