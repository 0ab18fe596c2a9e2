"""Whole answers kept for their lifetime, so that a repeat neither asks nor parses again.

requests-cache keeps single HTTP exchanges and the raw archive keeps the rest; this keeps what a
vendor's chain came to, under the digest of everything that shaped it. Only `ok` and `partial`
answers are kept, and never past the lifetime of their oldest exchange. A hit has the snapshot_ts
of the original, so writing it adds no rows.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from nq_pipeline.files import write_atomically
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer, SeriesAnswer

KEPT = (Outcome.OK, Outcome.PARTIAL)


class AnswerCache:
    """Answers below `root`, one Parquet file and one JSON file each."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, source: str, key: str) -> tuple[ChainAnswer, dict[str, str]] | None:
        """A fresh answer and the archived requests it came from, or None.

        What cannot be read, or is not the bytes that were kept, is a miss.
        """
        try:
            kept = orjson.loads((self.root / f"{source}-{key}.json").read_bytes())
            if time.time_ns() >= kept["expires"] or kept["version"] != SOURCE_CHAIN.version:
                return None
            body = (self.root / kept["frame"]).read_bytes()
            if kept["frame"] != _frame_name(source, body):
                return None
            answer = ChainAnswer(
                source=source,
                outcome=Outcome(kept["outcome"]),
                reason=kept["reason"],
                frame=pl.read_parquet(io.BytesIO(body)),
                series={k: SeriesAnswer(Outcome(o), reason) for k, (o, reason) in kept["series"].items()},
                dropped=Counter(kept["dropped"]),
                controls=kept["controls"],
                cached=True,
                refused=kept["refused"],
            )
            return answer, kept["used"]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, pl.exceptions.PolarsError):
            return None

    def put(self, key: str, answer: ChainAnswer, used: Mapping[str, str], expires: int) -> None:
        """Keep an answer until `expires` (ns, real time); what is a day old goes.

        Raises `ValueError` for any other outcome than `KEPT`: a failure is never served again.
        """
        if answer.outcome not in KEPT:
            raise ValueError(f"an answer that is {answer.outcome} is never served again")
        buffer = io.BytesIO()
        answer.frame.write_parquet(buffer, compression="lz4")
        body = buffer.getvalue()
        name = _frame_name(answer.source, body)
        write_atomically(self.root / name, body)
        head: dict[str, Any] = {
            "version": SOURCE_CHAIN.version,
            "expires": expires,
            "frame": name,
            "outcome": str(answer.outcome),
            "reason": answer.reason,
            "series": {k: [str(s.outcome), s.reason] for k, s in answer.series.items()},
            "dropped": dict(answer.dropped),
            "controls": dict(answer.controls),
            "refused": dict(answer.refused),
            "used": dict(used),
        }
        write_atomically(self.root / f"{answer.source}-{key}.json", orjson.dumps(head))
        self.sweep()

    def sweep(self, older_than_s: float = 86_400) -> int:
        """Remove files not written for a day; returns how many."""
        limit = time.time() - older_than_s
        removed = 0
        for path in self.root.glob("*"):
            with suppress(FileNotFoundError):  # another process swept it
                if path.stat().st_mtime < limit:
                    path.unlink()
                    removed += 1
        return removed


def _frame_name(source: str, body: bytes) -> str:
    return f"{source}-{hashlib.sha256(body).hexdigest()[:32]}.parquet"


def answer_key(parts: Mapping[str, Any]) -> str:
    """The digest of everything that shapes an answer (no secrets among it)."""
    return hashlib.sha256(orjson.dumps(parts, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]
