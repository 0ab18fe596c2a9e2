"""The layout: no circular imports, unique names, small packages, and nothing heavy loaded early."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nq_pipeline"
HEAVY = {
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
}
MOST_FILES = 15
MOST_LINES = 600
"""A file above 450 lines is a reason to look; above this it needs splitting."""


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed; not at import, which all workers do."""
    return {module_name(file): ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.Module) -> set[str]:
    """Every name that a module imports, also inside functions and for type checking only."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def defining_module(name: str) -> str | None:
    """The module of the package that an imported name comes from."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or None


def loaded_after(code: str) -> set[str]:
    """Top-level modules that are loaded after running this."""
    script = f"{code}\nimport sys\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.splitlines())


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {target for one in imports(tree) if (target := defining_module(one))} - {name}
        for name, tree in modules().items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_public_class_name_stands_for_one_class() -> None:
    names = Counter(
        node.name
        for tree in modules().values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_package_has_few_files() -> None:
    packages = Counter(file.parent for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in packages.items() if n > MOST_FILES} == {}


def test_no_file_is_long() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {str(file.relative_to(ROOT)): n for file, n in lengths.items() if n > MOST_LINES} == {}


def test_only_orchestration_imports_dagster() -> None:
    importers = {
        name for name, tree in modules().items() if any(i.startswith("dagster") for i in imports(tree))
    }
    top = {"nq_pipeline.definitions"}
    assert {name for name in importers - top if not name.startswith("nq_pipeline.orchestration")} == set()


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert loaded_after("import nq_pipeline") & HEAVY == set()


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_after(
        "from nq_pipeline.cli import main\n"
        "for words in ([], ['run'], ['sql'], ['doctor'], ['verify']):\n"
        "    main([*words, '--help'], standalone_mode=False)"
    )
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_settings_load_no_vendor_client() -> None:
    loaded = loaded_after("import nq_pipeline.configuration")
    assert "pydantic" in loaded
    assert loaded & (HEAVY - {"pydantic"}) == set()


def test_the_command_line_does_not_load_dagster() -> None:
    loaded = loaded_after(
        "import nq_pipeline.chains.snapshot, nq_pipeline.chains.quality, nq_pipeline.verify.doctor\n"
        "import nq_pipeline.lake.catalog, nq_pipeline.runtime, nq_pipeline.configuration, nq_pipeline.cli"
    )
    assert "polars" in loaded
    assert "dagster" not in loaded and "databento" not in loaded
