"""What a verification leaves behind: a report and small samples, without secrets.

Every secret of the settings is replaced wherever it occurs, also where a vendor repeats it, before
anything is shown or written. In samples, asterisks keep the length of the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from nq_pipeline.lake.objects import Objects
from nq_pipeline.redaction import redact_all
from nq_pipeline.settings import Settings


class Evidence:
    """A folder of evidence, without the secrets of some settings."""

    def __init__(self, objects: Objects, name: str, settings: Settings) -> None:
        self.name = name
        self._objects = objects.within(name)
        self._secrets = settings.secrets

    @property
    def uri(self) -> str:
        """Where the evidence is."""
        return self._objects.uri()

    def redact(self, value: Any) -> Any:
        """A copy of text, bytes or containers of them, without secrets."""
        return redact_all(value, self._secrets)

    def save(self, name: str, content: bytes) -> None:
        """Write a sample, whole or not at all."""
        self._objects.put(name, self.redact(content))

    def report(self, content: Mapping[str, Any]) -> None:
        """Write `report.json`: instants as ISO 8601, money as text."""
        body = orjson.dumps(
            self.redact(content), default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
        )
        self.save("report.json", body)
