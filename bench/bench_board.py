"""The live board in Chromium: from a trade's arrival to the screen, and memory over time.

    python -m bench.bench_board                 a minute at 2,000 trades a second
    python -m bench.bench_board --minutes 15    a soak

Gateway, capture, board and browser run in their own processes, like `nq sandbox`, `nq capture` and
`nq board`. The latency of a trade is the time from its `ts_recv`, when the gateway sends it, to the beginning
of the frame after the one that drew it. It includes the gateway's ticks of 10 ms, the sync of the capture
log, the board and the browser. Every trade counts.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np

from bench.bench_capture import ChildProcess, captured, report

HOST = "127.0.0.1"
LOAD = 2_000
PATIENCE_S = 60.0
WARM_UP_S = 5.0
WATCH = """
() => {
  const table = document.getElementById("tape");
  window.shown = [];
  new MutationObserver(() => {
    const count = Number(table.getAttribute("aria-rowcount"));
    requestAnimationFrame(() => window.shown.push([count, performance.timeOrigin + performance.now()]));
  }).observe(table, { attributes: true });
}
"""
"""Notes how many trades the page has drawn by when, milliseconds of the machine's clock."""


def board(data: Path, market: int, monotonic: float) -> None:
    """Serve a board until the input ends; the clock shows `market` (ns) at the time `monotonic`."""
    from nq_pipeline.board.app import build_app
    from nq_pipeline.clock import ShiftedClock, from_ns
    from nq_pipeline.configuration import build_settings
    from nq_pipeline.serve.server import run_server

    clock = ShiftedClock(from_ns(market) + timedelta(seconds=time.monotonic() - monotonic))
    stop = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    app = build_app(build_settings(data_dir=data), clock=clock, host=HOST, stop=stop)
    run_server(
        app,
        host=HOST,
        port=0,
        token=None,
        stop=stop,
        on_ready=lambda port: report(address=f"http://{HOST}:{port}"),
    )
    report(cpu_s=time.process_time())


def tape_times(address: str, into: dict[int, tuple[float, float]], stop: threading.Event) -> None:
    """Read the trades of the tape as a second client: their numbers, and when they were made and received.

    Times are milliseconds, those of the trade by the market's clock, those of the receipt by the machine's.
    """
    from nq_pipeline_tests.testing.boards import board_messages

    for message in board_messages(address):
        for batch in message.get("tape", []):
            received = time.time() * 1e3
            made = enumerate(batch["time"], batch["first"])
            into.update((number, (ms, received)) for number, ms in made)
        if stop.is_set():
            return


def memory_mb(process: int) -> float:
    """The resident memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def watch(minutes: float) -> None:
    """Latency of every trade, and memory of board and page."""
    from playwright.sync_api import sync_playwright

    from nq_pipeline_tests.testing.browser import CHROMIUM, FLAGS

    with captured(LOAD) as (served, running, folder), ExitStack() as ends:
        market, monotonic = served.reports[0]["market"], served.reports[0]["monotonic"]
        serving = ChildProcess("board", folder.parents[2], market, monotonic, module="bench.bench_board")
        ends.callback(serving.kill)
        address = serving.wait_for(lambda r: "address" in r)["address"]
        driver = ends.enter_context(sync_playwright())
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--js-flags=--expose-gc"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(address)
        page.wait_for_selector("#price-chart svg", timeout=1e3 * PATIENCE_S, state="attached")
        page.wait_for_timeout(1e3 * WARM_UP_S)
        times: dict[int, tuple[float, float]] = {}
        stop = threading.Event()
        reader = threading.Thread(target=tape_times, args=(address, times, stop))
        reader.start()
        page.evaluate(WATCH)
        shown: list[list[float]] = []
        memory: list[tuple[float, float]] = []
        ends_at = time.monotonic() + 60 * minutes
        while time.monotonic() < ends_at:
            page.wait_for_timeout(2_000)
            shown += page.evaluate("window.shown.splice(0)")
            heap = page.evaluate("(window.gc(), performance.memory.usedJSHeapSize)") / 1e6
            memory.append((memory_mb(serving.pid), heap))
        note = page.locator("#tape-note").inner_text()
        browser.close()
        stop.set()
        reader.join()
        wall_less_monotonic = time.time() - time.monotonic()
        serving.end()
        cpu_s = serving.reports[-1]["cpu_s"]
        logged = running.reports[-1]["lag_p99_ms"]
    seen, at = np.array(shown).T
    numbers = np.array([number for number in sorted(times) if shown[0][0] <= number < shown[-1][0]])
    arrived, received = np.array([times[number] for number in numbers]).T
    arrived += 1e3 * (monotonic + wall_less_monotonic) - market / 1e6
    drawn = at[np.searchsorted(seen, numbers, side="right")]
    print(f"{LOAD:,} trades/s for {minutes:g} minutes, {len(numbers):,} trades, from arrival")
    for name, until in (("to a client that only reads", received), ("to the screen", drawn)):
        p50, p99 = np.percentile(until - arrived, [50, 99])
        print(f"  {name}: median {p50:.0f} ms, p99 {p99:.0f} ms, longest {(until - arrived).max():.0f} ms")
    print(f"  to the capture's log (its own figure): p99 {logged:.0f} ms")
    first, last = memory[min(len(memory) - 1, 5)], memory[-1]
    print(f"  processor time of the board: {cpu_s:.0f} s")
    print(f"  memory of the board: {first[0]:.0f} MB, at the end {last[0]:.0f} MB")
    print(f"  memory of the page's objects: {first[1]:.1f} MB, at the end {last[1]:.1f} MB")
    print(f"  the page says: {note}")


def main() -> None:
    watch(1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["board", data, market, monotonic]:
            board(Path(data), int(market), float(monotonic))
        case options:
            parser = argparse.ArgumentParser(prog="python -m bench.bench_board")
            parser.add_argument("--minutes", type=float, default=1.0)
            watch(parser.parse_args(options).minutes)
