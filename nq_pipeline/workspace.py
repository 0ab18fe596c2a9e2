"""The data of one environment: its folder `<NQ_DATA_DIR>/<environment>`, and the paths and stores in it.

With NQ_LAKE_URL, the lake, the raw archive, purchased history, reports and evidence are objects below
`<NQ_LAKE_URL>/<environment>`; the capture log, the caches, the SQLite ledger and the catalog stay in the
folder. Nothing here creates a folder or opens a file; the first writer does. Sandbox and live data never
share a workspace.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nq_pipeline.errors import NoLake

if TYPE_CHECKING:
    from nq_pipeline.lake.archive import RawArchive
    from nq_pipeline.lake.objects import Objects, RemoteObjects
    from nq_pipeline.lake.store import Lake
    from nq_pipeline.settings import Settings

LAKE_ID = "lake_id"
"""The name of the object that identifies a lake; it lies beside `lake/`."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The paths and stores of one environment.

    Attributes
    ----------
    root
        The environment's folder on this machine.
    remote
        The environment's objects in an object store; None if they are files below `root`.
    delta
        Whether the lake's tables below `root` are Delta tables.
    """

    root: Path
    remote: RemoteObjects | None = None
    delta: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Workspace:
        """The workspace of the environment that the settings name."""
        if settings.store.url is None:
            return cls(settings.environment_dir, delta=settings.store.format == "delta")
        from nq_pipeline.lake.objects import RemoteObjects

        remote = RemoteObjects(f"{settings.store.url}/{settings.environment}", settings.store)
        return cls(settings.environment_dir, remote)

    @property
    def objects(self) -> Objects:
        """Everything that several machines can share, by name, such as `raw/runs/<run_id>.json`."""
        from nq_pipeline.lake.objects import LocalObjects

        return self.remote or LocalObjects(self.root)

    def identify_lake(self) -> str:
        """The identity of this environment's lake, made at first use; the same for all that see this lake.

        Raises `StoreError` or `OSError` when it can be neither read nor written.
        """
        objects = self.objects
        with suppress(FileNotFoundError):
            return objects.get(LAKE_ID).decode().strip()
        objects.put_if_absent(LAKE_ID, f"{uuid.uuid4().hex}\n".encode())
        return objects.get(LAKE_ID).decode().strip()

    @property
    def lake(self) -> Lake:
        """The Parquet tables."""
        from nq_pipeline.lake.store import Lake

        objects = self.remote and self.remote.within("lake")
        return Lake(self.root / "lake", objects=objects, delta=self.delta)

    @property
    def existing_lake(self) -> Lake:
        """The lake, for commands that only read; `NoLake` if nothing was ever written here."""
        lake = self.lake
        found: object = None
        with suppress(FileNotFoundError):  # any other reason is shown as it is
            found = self.remote.folders("lake") if self.remote else lake.root.stat()
        if not found:
            place = self.remote.uri() if self.remote else self.root.absolute()
            remedy = "NQ_LAKE_URL to the address" if self.remote else "NQ_DATA_DIR to the folder"
            raise NoLake(
                f"there is no lake in {place}; create one with `nq run`, or set {remedy} that has one"
            )
        return lake

    @property
    def archive(self) -> RawArchive:
        """The vendors' answers, unchanged."""
        from nq_pipeline.lake.archive import RawArchive

        return RawArchive(self.objects.within("raw"), self.root / "raw")

    @property
    def history(self) -> Path:
        """Purchased historical data, unchanged; with an object store, copies of what this machine used."""
        return self.root / "raw" / "databento" / "history"

    @property
    def shared_history(self) -> Objects | None:
        """Purchased historical data of all machines; None if `history` has it."""
        return self.remote and self.remote.within("raw/databento/history")

    @property
    def capture(self) -> Path:
        """The capture log: one folder per dataset, and the lock of the running capture."""
        return self.root / "capture"

    @property
    def segment_copies(self) -> Objects | None:
        """Copies of the capture logs of all machines; None without an object store."""
        return self.remote and self.remote.within("capture")

    @property
    def cache(self) -> Path:
        """The caches of answers and of the catalog's views, and the vendors' circuit breakers."""
        return self.root / "cache"

    @property
    def ledger(self) -> Path:
        """The SQLite spend ledger, unless another database is configured."""
        return self.root / "ledger.sqlite"

    @property
    def leases(self) -> Path:
        """Which leases are held by processes of this machine."""
        return self.root / ".leases"

    @property
    def catalog(self) -> Path:
        """The published DuckDB catalog."""
        return self.root / "nq.duckdb"

    @property
    def reports(self) -> Objects:
        """One HTML page per snapshot."""
        return self.objects.within("reports")

    @property
    def evidence(self) -> Objects:
        """One folder per run of `nq verify`."""
        return self.objects.within("evidence")
