"""kill -9 and power cuts at random moments: what was synced is there, whole, once, and in order."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import databento
import numpy as np
import pytest

from nq_pipeline.capture.log.reader import tail
from nq_pipeline.capture.log.recovery import recover
from nq_pipeline.capture.log.segments import BEGINNING, Position, list_segments
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.dbn.framer import Head
from nq_pipeline_tests.testing.capture_writer import DATASET, capture, parse_report
from nq_pipeline_tests.testing.dbn_streams import Clock, trades

KILLS = [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("power_cut", [False, True], ids=["process killed", "power cut"])
def test_what_was_synced_survives_any_moment(root: Path, kills: int, power_cut: bool) -> None:
    chance = random.Random(kills)
    cursor, found = BEGINNING, 0
    for _ in range(kills):
        promised, synced = killed(root, found, cursor, chance)
        if power_cut:
            lose_unsynced(root, synced, chance)
        recover(root / DATASET)
        for block in tail(root / DATASET, cursor):
            array = block.frame.array(0)
            expected = np.arange(found, found + len(array), dtype=np.uint32)
            assert np.array_equal(array["sequence"], expected), "a trade is missing, or there twice"
            assert array.tobytes() == trades(found, len(array))
            found, cursor = found + len(array), block.end
        assert found >= promised, "a synced trade is missing"
    assert found > 0

    read = 0
    for segment in list_segments(root / DATASET):
        store = databento.DBNStore.from_file(segment.path)
        whole = [r for r in store if isinstance(r, databento.TradeMsg)]
        assert [r.sequence for r in whole] == list(range(read, read + len(whole)))
        read += len(whole)
    assert read == found
    with CaptureLog(root, DATASET, clock=Clock()) as log:
        assert log.recovery is not None
        assert log.recovery.cut == 0, "recovering twice changes nothing"


def killed(root: Path, first: int, synced: Position, chance: random.Random) -> tuple[int, Position]:
    """Let a capture live for a moment; the last that is known to be synced when it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nq_pipeline_tests.testing.capture_writer"])
    hears, says = context.Pipe(duplex=False)
    process = context.Process(target=capture, args=(root, first, chance.random(), says))
    process.start()
    says.close()
    promised = first, synced
    if chance.random() < 0.75:
        assert hears.poll(60), "the capture does not write"
    time.sleep(chance.uniform(0, 0.05))
    process.kill()
    process.join()
    try:
        while hears.poll():
            promised = parse_report(hears.recv_bytes())
    except EOFError:
        pass
    hears.close()
    return promised


def lose_unsynced(root: Path, synced: Position, chance: random.Random) -> None:
    """Do to the bytes behind `synced` what a power cut may: cut anywhere, or no records from one on."""
    found = list_segments(root / DATASET)
    if not found:
        return
    newest = found[-1]
    data = newest.path.read_bytes()
    with newest.path.open("rb") as file:
        durable = [len(Head.read(file).raw)]
    while durable[-1] < len(data) and durable[-1] + 4 * data[durable[-1]] <= len(data):
        durable.append(durable[-1] + 4 * data[durable[-1]])
    if newest.number == synced.segment:
        durable = [at for at in durable if at >= synced.offset]
    match chance.randrange(3):
        case 0:
            os.truncate(newest.path, chance.randint(durable[0], len(data)))
        case 1:
            kept = chance.choice(durable)
            newest.path.write_bytes(data[:kept] + bytes(len(data) - kept))
        case 2:
            kept = chance.choice(durable)
            newest.path.write_bytes(data[:kept] + b"\xff" * (len(data) - kept))
