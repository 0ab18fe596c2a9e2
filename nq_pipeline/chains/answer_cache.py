"""A cache of parsed answers, so that a repeated snapshot sends and parses nothing.

The key is the digest of everything that affects a chain. Only `ok` and `partial` answers are cached, and they
expire with the first of their requests. A hit has the snapshot_ts of the original, so writing it adds no
rows.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from nq_pipeline.clock import real_now, real_ns
from nq_pipeline.files import write_atomically
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer, SeriesAnswer

CACHEABLE = (Outcome.OK, Outcome.PARTIAL)
OLD_AFTER_S = 86_400


class AnswerCache:
    """Answers below `root`, one Parquet file and one JSON file each."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, source: str, key: str) -> tuple[ChainAnswer, dict[str, str]] | None:
        """A fresh answer and the ids of the archived requests it was made from; None when there is none.

        A damaged file is a miss.
        """
        try:
            head = orjson.loads((self.root / f"{source}-{key}.json").read_bytes())
            if real_ns() >= head["expires"] or head["version"] != SOURCE_CHAIN.version:
                return None
            body = (self.root / head["frame"]).read_bytes()
            if head["frame"] != _frame_name(source, body):
                return None
            answer = ChainAnswer(
                source=source,
                outcome=Outcome(head["outcome"]),
                reason=head["reason"],
                frame=pl.read_parquet(io.BytesIO(body)),
                series={k: SeriesAnswer(Outcome(o), reason) for k, (o, reason) in head["series"].items()},
                dropped=Counter(head["dropped"]),
                controls=head["controls"],
                cached=True,
                refused=head["refused"],
            )
            return answer, head["used"]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, pl.exceptions.PolarsError):
            return None

    def put(self, key: str, answer: ChainAnswer, used: Mapping[str, str], expires: int) -> None:
        """Cache an answer until `expires` (ns, real time); removes files that are a day old.

        Raises `ValueError` for an outcome that is not `CACHEABLE`: a failure is never served again.
        """
        if answer.outcome not in CACHEABLE:
            raise ValueError(f"an answer that is {answer.outcome} cannot be cached")
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
        for path in self.old_files():
            path.unlink(missing_ok=True)

    def old_files(self) -> list[Path]:
        """The files that were written more than a day ago."""
        limit, old = real_now().timestamp() - OLD_AFTER_S, []
        for path in self.root.glob("*"):
            with suppress(FileNotFoundError):  # another process removed it
                if path.stat().st_mtime < limit:
                    old.append(path)
        return old


def _frame_name(source: str, body: bytes) -> str:
    return f"{source}-{hashlib.sha256(body).hexdigest()[:32]}.parquet"


def answer_key(parts: Mapping[str, Any]) -> str:
    """The digest of everything that affects an answer; `parts` hold no secrets."""
    return hashlib.sha256(orjson.dumps(parts, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]
