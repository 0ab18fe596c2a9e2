"""Which schema the plan lets us stream: down from the one wanted, one step a refusal.

The gateway accepts the key and the subscription and refuses a schema only within the stream
(`Not authorized for mbo schema`), so what the plan includes is learnt by asking. A refusal is
kept beside the log for its trade date: neither a reconnection nor a new process asks again, and
the next trade date tries once more, in case the plan has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from nq_pipeline.errors import NotEntitled
from nq_pipeline.lake import files

LADDER = ("mbo", "mbp-1", "trades")
"""From most to least; trades follow from each of them, and every plan with live data has the last."""

RTYPES = {"trades": 0, "mbp-1": 1, "mbo": 160}


class Ladder:
    """The schemas in force. One process at a time, the one that holds the capture's lock.

    Parameters
    ----------
    path
        Where refusals are kept.
    wanted
        What is subscribed to (`options`, `futures`) and the schema wanted for it.
    """

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path, self.wanted = path, dict(wanted)

    def in_force(self, day: date) -> dict[str, str]:
        """The best schema not yet refused on a trade date, for each thing subscribed to.

        Raises
        ------
        NotEntitled
            All are refused.
        """
        refused = self.refused(day)
        return {what: _best(schema, refused) for what, schema in self.wanted.items()}

    def refused(self, day: date) -> dict[str, str]:
        """The schemas refused on a trade date, with what the gateway said."""
        try:
            kept = json.loads(self.path.read_text())
            return dict(kept["refused"]) if kept["trade_date"] == day.isoformat() else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # nothing kept that can be read: at worst the gateway is asked once more

    def refuse(self, schema: str, text: str, day: date) -> None:
        """Keep a refusal, durably, before anything else is tried."""
        refused = {**self.refused(day), schema: text}
        kept = json.dumps({"trade_date": day.isoformat(), "refused": refused}, indent=1)
        files.make_folder(self.path.parent)
        files.write_atomically(self.path, kept.encode())


def _best(wanted: str, refused: Mapping[str, str]) -> str:
    for schema in LADDER[LADDER.index(wanted) :]:
        if schema not in refused:
            return schema
    said = refused[LADDER[-1]]
    raise NotEntitled(
        f"the Databento plan streams none of {', '.join(LADDER[LADDER.index(wanted) :])} ({said}); "
        "take a plan with live data (CME Standard streams trades), or leave the capture off"
    )
