"""The process of the stand-ins: started, shared, replaced, and ended with its owner."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import SandboxError, SettingsError
from nq_pipeline.market import sessions
from nq_pipeline.runtime import endpoints, gateway_clock, market_clock
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.spec import BarchartSettings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.polygon.spec import PolygonSettings
from nq_pipeline.sources.tradovate.spec import TradovateSettings

OWNER = """
import sys, time
from pathlib import Path
from nq_pipeline.runtime import endpoints
from nq_pipeline.configuration import build_settings
from nq_pipeline.sources.barchart.spec import BarchartSettings
with endpoints(build_settings(data_dir=Path(sys.argv[1]))) as settings:
    print(settings.vendor(BarchartSettings).url, flush=True)
    sys.stdin.readline()
"""


def settings(folder: Path, **more: object) -> Settings:
    return build_settings(data_dir=folder, **more)


def port(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


def health(number: int) -> dict[str, object] | None:
    try:
        reply = requests.get(f"http://127.0.0.1:{number}/health", timeout=5)
    except requests.ConnectionError:
        return None
    answer: dict[str, object] = reply.json()
    return answer


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "nothing changed within 2 minutes"
        time.sleep(0.05)


def owner(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Another process that runs something with stand-ins until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, port(process.stdout.readline())


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=60)


def test_the_market_clock_starts_no_server(tmp_path: Path) -> None:
    assert sessions.is_open(market_clock(settings(tmp_path)).now(), "rth")
    pinned = datetime(2025, 6, 10, 15, tzinfo=UTC)
    assert market_clock(settings(tmp_path, now=pinned)).now() - pinned < timedelta(seconds=5)
    assert not (tmp_path / "sandbox").exists()
    live = build_settings(environment="live")
    assert type(market_clock(live)) is type(live.clock)


def test_the_market_clock_is_the_running_gateways(stand_ins: Settings) -> None:
    pinned = datetime(2025, 6, 10, 15, tzinfo=UTC)
    own = settings(stand_ins.data_dir, now=pinned)
    with endpoints(own) as served:
        running, expected = gateway_clock(served), market_clock(own)
        assert abs(expected.now() - running.now()) < timedelta(seconds=1)
        assert expected.now() > pinned


def test_runs_share_a_process_and_later_ones_reuse_its_port(tmp_path: Path) -> None:
    state = tmp_path / "sandbox" / "sandbox.json"
    state.parent.mkdir()
    state.write_text('{"port')  # damaged, so replaced
    with endpoints(settings(tmp_path)) as first:
        url = first.vendor(BarchartSettings).url
        assert health(port(url)) is not None
        noted = json.loads(state.read_text())
        assert set(noted) == {"pid", "port", "databento_gateway", "started", "version"}
        assert noted["port"] == port(url)
        assert noted["databento_gateway"] == first.vendor(DatabentoSettings).gateway
        with endpoints(settings(tmp_path)) as second:
            assert second.vendor(BarchartSettings).url == url
            assert json.loads(state.read_text())["pid"] == noted["pid"]
    wait_until(lambda: health(port(url)) is None)
    with endpoints(settings(tmp_path)) as third:
        assert third.vendor(BarchartSettings).url == url
        assert json.loads(state.read_text())["pid"] != noted["pid"]


def test_a_shared_server_outlives_its_killed_owner_and_ends(tmp_path: Path) -> None:
    first, number = owner(tmp_path)
    with endpoints(settings(tmp_path)) as shared:
        assert port(shared.vendor(PolygonSettings).url) == number
        first.kill()
        first.communicate(timeout=60)
        for _ in range(10):
            assert health(number) is not None
            time.sleep(0.05)
    wait_until(lambda: health(number) is None)


def test_runs_that_start_together_share_one_process(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        owners = list(pool.map(owner, [tmp_path] * 2))
    assert len({number for _, number in owners}) == 1
    assert health(owners[0][1]) is not None
    for process, _ in owners:
        end(process)
    wait_until(lambda: health(owners[0][1]) is None)


def test_a_state_file_of_another_program_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        stranger.settimeout(20)
        (folder / "sandbox.json").write_text(json.dumps({"pid": os.getpid(), "port": taken}))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_answer_once, stranger)
            with endpoints(settings(tmp_path)) as served:
                assert port(served.vendor(BarchartSettings).url) != taken
                assert health(port(served.vendor(BarchartSettings).url)) is not None


def _answer_once(stranger: socket.socket) -> None:
    connection, _ = stranger.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_a_taken_fixed_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        stranger.settimeout(20)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_answer_once, stranger)
            with pytest.raises(SandboxError, match=f"Port {taken} is taken"):
                endpoints(settings(tmp_path, sandbox_port=taken)).__enter__()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux lists its sockets there")
def test_only_loopback_is_listened_on(stand_ins: Settings) -> None:
    addresses = {
        url.split("/")[2].split(":")[0]
        for url in (stand_ins.vendor(BarchartSettings).url, stand_ins.vendor(TradovateSettings).md_url)
    }
    assert addresses == {"127.0.0.1"}
    sockets = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = "0A"
    number = f"{port(stand_ins.vendor(BarchartSettings).url):04X}"
    bound = {own for own, _, state in sockets if own.endswith(f":{number}") and state == listening}
    assert bound == {f"0100007F:{number}"}


def test_live_settings_pass_through_untouched(tmp_path: Path) -> None:
    live = settings(tmp_path, environment="live")
    with endpoints(live) as same:
        assert same is live
    assert not (tmp_path / "sandbox").exists()


def test_an_explicit_address_keeps_its_credentials(stand_ins: Settings) -> None:
    own = settings(stand_ins.data_dir, polygon_url="http://127.0.0.1:1", polygon_api_key="mine")
    with endpoints(own) as served:
        assert served.vendor(PolygonSettings).url == "http://127.0.0.1:1"
        api_key = served.vendor(PolygonSettings).api_key
        assert api_key is not None and api_key.get_secret_value() == "mine"
        assert served.vendor(BarchartSettings).url != own.vendor(BarchartSettings).url


def test_real_credentials_never_reach_stand_ins(stand_ins: Settings) -> None:
    own = settings(stand_ins.data_dir, databento_api_key="db-a-real-key", tradovate_username="me")
    with endpoints(own) as served:
        api_key = served.vendor(DatabentoSettings).api_key
        username = served.vendor(TradovateSettings).username
        assert api_key is not None and "sandbox" in api_key.get_secret_value()
        assert username is not None and "sandbox" in username.get_secret_value()


def test_addresses_contain_clock_seed_and_faults(stand_ins: Settings) -> None:
    given = {"now": "2025-06-10T15:00:00Z", "sandbox_seed": 9, "sandbox_faults": ("barchart=blocked",)}
    own = settings(stand_ins.data_dir, **given)
    with endpoints(own) as served:
        assert (
            "/with/fault=blocked;now=2025-06-10T15:00:00Z;seed=9/barchart"
            in served.vendor(BarchartSettings).url
        )
        assert (
            "/with/now=2025-06-10T15:00:00Z;seed=9/tradovate/v1/websocket"
            in served.vendor(TradovateSettings).md_url
        )
        status = requests.get(
            served.vendor(PolygonSettings).url + "/v1/marketstatus/now",
            headers={"Authorization": "Bearer x"},
            timeout=60,
        )
        assert status.json()["serverTime"] == "2025-06-10T11:00:00-04:00"


@pytest.mark.parametrize("pair", ["barchart", "barchart=nonsense", "nobody=blocked"])
def test_an_unknown_fault_names_the_setting(tmp_path: Path, pair: str) -> None:
    with pytest.raises(SettingsError, match="NQ_SANDBOX_FAULTS"):
        endpoints(settings(tmp_path, sandbox_faults=(pair,))).__enter__()


def test_a_server_started_by_hand_is_shared_and_keeps_running(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nq_pipeline.sandbox.process import serve;"
        "from nq_pipeline.configuration import build_settings;"
        "serve(build_settings(data_dir=Path(sys.argv[1]), sandbox_faults=('barchart=blocked',)))"
    )
    by_hand = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert by_hand.stdout is not None
        output = by_hand.stdout.readline()
        while "NQ_DATABENTO_URL" not in output:
            output += by_hand.stdout.readline()
        assert "no real data" in output and "NQ_BARCHART_URL=http://127.0.0.1:" in output
        with endpoints(settings(tmp_path)) as served:
            assert served.vendor(BarchartSettings).url.endswith("/with/fault=blocked/barchart")
            assert "/with/" not in served.vendor(PolygonSettings).url
        assert health(port(served.vendor(BarchartSettings).url)) is not None
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.communicate(timeout=60)
    assert by_hand.returncode == 0


@pytest.mark.parametrize("content", ['{"port": -5}', '{"port": 99999999}', '{"port": true}', "[]", "{"])
def test_a_damaged_state_file_is_ignored(tmp_path: Path, content: str) -> None:
    note = tmp_path / "sandbox" / "sandbox.json"
    note.parent.mkdir()
    note.write_text(content)
    assert sessions.is_open(market_clock(settings(tmp_path)).now(), "rth")
