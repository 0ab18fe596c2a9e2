"""Every sentence the program says when it raises stands on the troubleshooting page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from nq_pipeline import errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
RAISED = {name for name, kind in vars(errors).items() if isinstance(kind, type)} - {"Outcome"}


def sentences() -> Iterator[tuple[str, str]]:
    """(place, sentence) of every error raised or made with words of its own; `…` for what varies."""
    for path in sorted((ROOT / "nq_pipeline").rglob("*.py")):
        if "sandbox" in path.parts and path.name != "process.py":
            continue  # stand-ins answer as vendors do; their errors are the vendors'
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else f"dg.{node.func.attr}"
                if name in RAISED | {"dg.Failure"} and node.args and (said := words(node.args[0])):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", said


def words(node: ast.expr) -> str:
    """The sentence of a literal or an f-string; empty when it is not written there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = [node.value]
    elif isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]  # type: ignore[misc]
    else:
        return ""
    said = " ".join("".join(map(str, parts)).split())
    return said if len(said.replace("…", "").strip(" :;(),.")) > 3 else ""


@pytest.mark.parametrize(("place", "said"), [pytest.param(*pair, id=pair[0]) for pair in sentences()])
def test_every_sentence_of_an_error_is_on_the_page(place: str, said: str) -> None:
    assert said in " ".join(PAGE.read_text().split()), f"{place}: add `{said}` to {PAGE.name}"


def test_sentences_are_found_in_the_code() -> None:
    assert len(list(sentences())) > 100
