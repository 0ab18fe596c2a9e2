"""Whether the Dagster instance can be used here: its database's driver, and whose lake its runs write.

An instance of one machine keeps SQLite files and is not checked. One in PostgreSQL is shared by hosts, and
a host that wrote another lake would split the data without anyone noticing.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import dagster as dg

from nq_pipeline.configuration import load
from nq_pipeline.errors import NqError, SettingsError, UiError
from nq_pipeline.redaction import redact, secret_spellings
from nq_pipeline.ui.supervisor import uses_postgres
from nq_pipeline.workspace import Workspace

DRIVER = "postgresql+psycopg2"


def check_instance(home: Path | None = None) -> None:
    """Refuse an instance in PostgreSQL that this host must not use.

    Parameters
    ----------
    home
        The folder with its `dagster.yaml`; by default DAGSTER_HOME.

    Raises
    ------
    UiError
        It cannot be opened, its storage lacks the driver that dagster-postgres needs, or it belongs to a
        lake that this host does not see.
    """
    folder = home or Path(os.environ.get("DAGSTER_HOME") or ".")
    file = folder / "dagster.yaml"
    if not uses_postgres(folder):
        return
    try:
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            _check_driver(instance, file)
            _check_lake(instance, file)
    except NqError:
        raise
    except Exception as error:  # the libraries below have no common class
        reason = _without_password(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise UiError(f"the Dagster instance of {file} cannot be opened: {reason}") from None


def _without_password(text: str) -> str:
    """A driver's sentence without what it may quote of the database's address."""
    secrets = [value for name, value in os.environ.items() if name.startswith("DAGSTER_") and "PASS" in name]
    return re.sub(r"://\S*@", "://***@", redact(text, secret_spellings(secrets)))


def _check_driver(instance: dg.DagsterInstance, file: Path) -> None:
    url = getattr(instance.event_log_storage, "postgres_url", None)
    scheme = DRIVER if url is None else str(url).partition("://")[0]
    if scheme != DRIVER:
        raise UiError(
            f"the PostgreSQL storage of {file} is addressed as `{scheme}://`, for which SQLAlchemy takes a "
            f"driver that dagster-postgres cannot use; write `{DRIVER}://…` as its postgres_url, or "
            f"`scheme: {DRIVER}` beside its hostname"
        )


def _check_lake(instance: dg.DagsterInstance, file: Path) -> None:
    """Remember the lake of the first host, and refuse a host that sees another."""
    try:
        settings = load()
    except SettingsError:  # every run and tick says it in one sentence
        return
    workspace, key = Workspace.of(settings), f"nq/lake/{settings.environment}"
    here = {"lake": workspace.identify_lake(), "place": workspace.objects.uri("lake")}
    storage = instance.run_storage
    if not storage.get_cursor_values({key}).get(key):
        storage.set_cursor_values({key: json.dumps(here)})
    known = json.loads(storage.get_cursor_values({key})[key])
    if known["lake"] != here["lake"]:
        raise UiError(
            f"the Dagster instance of {file} belongs to the lake {known['place']}, and this host would write "
            f"to {here['place']}; set NQ_LAKE_URL to the same store on every host, or use another database"
        )


if __name__ == "__main__":
    try:
        check_instance()
    except NqError as error:
        sys.exit(f"nq: {error}")
