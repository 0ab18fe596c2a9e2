"""An object store as a file system for DuckDB. Imported late, because it loads fsspec."""

from __future__ import annotations

from datetime import datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

from obstore.fsspec import FsspecStore

if TYPE_CHECKING:
    from nq_pipeline.settings.groups import StoreSettings


MOST_KNOWN = 100_000
"""Files whose size is remembered; then all are forgotten."""

SMALL_BYTES = 4 << 20
"""Files up to this size are fetched whole."""


class DataFiles(FsspecStore):
    """The data files of the lake's tables.

    DuckDB asks several times for the size of each file while it binds a view over it. A data file never
    changes under its name, so the first answer is remembered. A small file is fetched whole: one request
    instead of one for each of its columns.
    """

    def __init__(self, scheme: str, settings: StoreSettings) -> None:
        limit = timedelta(seconds=settings.timeout_s)
        super().__init__(  # type: ignore[call-overload]
            scheme,
            config=settings.s3_config() if scheme == "s3" else {},
            client_options={"allow_http": settings.plain_http},
            retry_config={"max_retries": 10, "retry_timeout": limit},
            max_cache_size=4,
        )
        self._known: dict[str, dict[str, Any]] = {}

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        if path not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[path] = await super()._info(path, **options)
        return self._known[path]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # type: ignore[override]
        if mode == "rb" and self.info(path)["size"] <= SMALL_BYTES:
            return BytesIO(self.cat_file(path))
        return super()._open(path, mode, **options)

    def modified(self, path: str) -> datetime:
        """When the file was written."""
        at: datetime = self.info(path)["last_modified"]
        return at
