"""The files around the package name what exists: commands, targets, folders and versions."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from nq_pipeline.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_compose_runs_commands_that_exist() -> None:
    services = read_yaml("compose.yaml")["services"]
    assert services
    for name, service in services.items():
        assert service["command"][0] in main.commands, name


def test_the_image_copies_files_that_exist() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert sources
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, f"{source} is kept out of the build by .dockerignore"


def test_the_workflow_runs_targets_on_every_supported_python() -> None:
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["test"]
    commands = [step["run"].split() for step in job["steps"] if "run" in step]
    assert [words[0] for words in commands] == ["make"] * len(commands)
    assert {words[1] for words in commands} <= targets()
    supported = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert job["strategy"]["matrix"]["python"] == supported


@pytest.mark.parametrize(
    "hook", read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"], ids=lambda h: h["id"]
)
def test_a_commit_hook_is_a_check_of_make_lint(hook: dict[str, Any]) -> None:
    program = Path(hook["entry"].split()[0]).name
    assert f"$(BIN)/{program}" in (ROOT / "Makefile").read_text()


def test_every_dependency_is_pinned_once() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    names = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    assert len(names) == len(set(names))
    asked = [
        *PROJECT["dependencies"],
        *(d for extra in PROJECT["optional-dependencies"].values() for d in extra),
    ]
    wanted = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", d)[0]).lower() for d in asked} - {"nq-pipeline"}
    assert wanted <= set(names)


def test_the_changelog_has_the_version() -> None:
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_benchmark_of_the_views_follows_them(capsys: pytest.CaptureFixture[str]) -> None:
    import_module("bench.bench_asof").main(days=2, snapshots=2, contracts=60, repeats=1)
    assert "history of a contract: catalog" in capsys.readouterr().out
