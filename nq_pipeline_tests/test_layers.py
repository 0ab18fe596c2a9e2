"""Imports only go down, only the top floor knows Dagster, and nothing heavy is imported early."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nq_pipeline"
HEAVY = (
    "dagster",
    "polars",
    "pandas",
    "databento",
    "duckdb",
    "pyarrow",
    "pydantic",
    "requests",
    "numpy",
    "scipy",
)
DOMAIN = sorted(
    folder.name
    for folder in PACKAGE.iterdir()
    if folder.is_dir() and folder.name not in ("orchestration", "__pycache__")
)


def test_the_floors_of_the_house_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def imported(code: str) -> set[str]:
    """Top-level modules that are loaded after running this."""
    script = f"{code}\nimport sys\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.splitlines())


@pytest.mark.parametrize(
    "words", [["--help"], *([name, "--help"] for name in ("run", "sql", "doctor", "verify"))]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    loaded = imported(f"from nq_pipeline.cli import main\nmain({words}, standalone_mode=False)")
    assert "click" in loaded
    assert loaded & set(HEAVY) == set()


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert imported("import nq_pipeline") & set(HEAVY) == set()


def test_whatever_the_command_line_loads_dagster_is_not_among_it() -> None:
    loaded = imported(
        "import nq_pipeline.chains.snapshot, nq_pipeline.verify.doctor, nq_pipeline.lake.catalog\n"
        "import nq_pipeline.runtime, nq_pipeline.configuration"
    )
    assert "polars" in loaded
    assert "dagster" not in loaded and "databento" not in loaded


@pytest.mark.parametrize("room", DOMAIN)
def test_no_room_below_the_top_floor_imports_dagster_even_inside_a_function(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    guilty = [
        file.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if name.partition(".")[0] == "dagster"
    ]
    assert guilty == []
