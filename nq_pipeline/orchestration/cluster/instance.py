"""Whether the Dagster instance can be used here: its database's driver, and whose lake its runs write.

An instance of one machine keeps SQLite files and is not looked at. One in PostgreSQL is shared by hosts, and
a host that wrote another lake would split the data without anyone noticing.
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from nq_pipeline.errors import UiError
from nq_pipeline.ui.supervisor import uses_postgres

DRIVER = "postgresql+psycopg2"


def check_instance(home: Path | None = None) -> None:
    """Refuse an instance that does not go with this host, if it is in PostgreSQL.

    Parameters
    ----------
    home
        The folder with its `dagster.yaml`; by default DAGSTER_HOME.

    Raises
    ------
    UiError
        It cannot be opened, or its storage lacks the driver that dagster-postgres needs.
    """
    folder = home or Path(os.environ.get("DAGSTER_HOME") or ".")
    file = folder / "dagster.yaml"
    if not uses_postgres(folder):
        return
    try:
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            _check_driver(instance, file)
    except UiError:
        raise
    except Exception as error:  # the libraries below have no common class
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UiError(f"the Dagster instance of {file} cannot be opened: {reason}") from None


def _check_driver(instance: dg.DagsterInstance, file: Path) -> None:
    url = getattr(instance.event_log_storage, "postgres_url", None)
    scheme = DRIVER if url is None else str(url).partition("://")[0]
    if scheme != DRIVER:
        raise UiError(
            f"the PostgreSQL storage of {file} is addressed as `{scheme}://`, for which SQLAlchemy takes a "
            f"driver that dagster-postgres cannot use; write `{DRIVER}://…` as its postgres_url, or "
            f"`scheme: {DRIVER}` beside its hostname"
        )
