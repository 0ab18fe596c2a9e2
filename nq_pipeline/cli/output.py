"""What commands print: text for people, strict JSON for programs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings


def load(**overrides: Any) -> Settings:
    """The settings; read late, because the modules of all vendors take long to import."""
    from nq_pipeline import configuration

    return configuration.load(**overrides)


def note_sandbox(settings: Settings) -> None:
    if settings.environment == "sandbox":
        click.echo("SANDBOX: stand-ins on this machine serve a synthetic market; no price is real.")


def progress(line: str) -> None:
    click.echo(f"  {line}", err=True)


def printable(text: str) -> str:
    """Remove terminal control characters from text that may come from a vendor."""
    return "".join(c if c.isprintable() else " " for c in text)


def to_json(value: Any) -> str:
    """Strict JSON: instants in ISO 8601, infinite numbers and NaN as null."""
    import orjson

    return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode()


def console() -> Any:
    from rich.console import Console

    # Text from a vendor is never interpreted as markup.
    return Console(highlight=False, soft_wrap=False, markup=False, emoji=False)


@contextmanager
def status(line: str) -> Iterator[Callable[[str], None]]:
    """Show a line on a terminal's stderr while the context lasts; yields what replaces it."""
    from rich.console import Console

    terminal = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not terminal.is_terminal:
        yield lambda line: None
        return
    with terminal.status(line) as shown:
        yield shown.update


def url(host: str, port: int) -> str:
    """The address of a server of ours."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def program() -> str:
    """The command that starts this program: `nq`, or its path if it is not on PATH."""
    if shutil.which("nq"):
        return "nq"
    script = Path(sys.argv[0])
    try:
        return os.path.relpath(script) if script.name == "nq" else "nq"
    except OSError:  # the current folder was removed
        return str(script)
