"""A process that captures numbered trades, to be watched or killed by tests.

python -m nq_pipeline_tests.testing.capture_writer ROOT hold           hold the lock until the input ends
python -m nq_pipeline_tests.testing.capture_writer ROOT fill LIMIT     write until the disk refuses, or a
                                                             file reaches LIMIT bytes (0: none)
"""

from __future__ import annotations

import random
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from nq_pipeline.capture.log.segments import Position
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.errors import LogFailed
from nq_pipeline.market import sessions
from nq_pipeline_tests.testing.dbn_streams import NOON, Clock, begun, mapping, one_frame, trades

DATASET = "GLBX.MDP3"

sessions.trade_date(NOON)  # loads the calendar once for all processes forked from one that has imported this


def capture(root: Path, first: int, seed: float, says: Connection) -> None:
    """Trades from number `first` on, without end, in batches; tells what is synced after each sync."""
    chance = random.Random(seed)
    framer = begun()
    with CaptureLog(root, DATASET, clock=Clock(), sync_every_s=0.005, segment_bytes=200_000) as log:
        log.append(one_frame(mapping(1, "NQU5"), framer))
        written = first
        while True:
            batch = chance.choice([1, 1, 3, 20, 500])
            log.append(one_frame(trades(written, batch), framer))
            written += batch
            if chance.random() < 0.2:
                synced = log.sync()
                says.send_bytes(f"{written} {synced}".encode())


def parse_report(line: bytes) -> tuple[int, Position]:
    """The number of the next trade and the position up to which all before it is synced."""
    written, position = line.decode().split()
    return int(written), Position.parse(position)


def hold(root: Path) -> None:
    with CaptureLog(root, DATASET, clock=Clock()):
        print("ready", flush=True)
        sys.stdin.read()


def fill(root: Path, limit: int) -> None:
    """Say how many trades were synced, and how the log refused: on the first call and on later ones."""
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    framer, written = begun(), 0
    log = CaptureLog(root, DATASET, clock=Clock(), sync_every_s=0)
    try:
        while True:
            log.append(one_frame(trades(written, 100), framer))
            written += 100
    except LogFailed as refused:
        print(written, flush=True)
        print(refused, flush=True)
    for later in (lambda: log.append(one_frame(trades(written, 1), framer)), log.sync, log.check, log.close):
        try:
            later()
        except LogFailed as refused:
            print(refused, flush=True)


def main() -> None:
    match sys.argv[1:]:
        case [root, "hold"]:
            hold(Path(root))
        case [root, "fill", limit]:
            fill(Path(root), int(limit))


if __name__ == "__main__":
    main()
