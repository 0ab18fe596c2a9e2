"""The troubleshooting page explains every error class, with its outcome and exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nq_pipeline.errors import NqError, SourceError

PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text()


def subclasses(kind: type[NqError]) -> Iterator[type[NqError]]:
    for child in kind.__subclasses__():
        if child.__module__ == NqError.__module__:
            yield child
            yield from subclasses(child)


@pytest.mark.parametrize("kind", list(subclasses(NqError)), ids=lambda kind: kind.__name__)
def test_the_page_explains_every_error(kind: type[NqError]) -> None:
    assert f"`{kind.__name__}`" in PAGE


@pytest.mark.parametrize("kind", list(subclasses(SourceError)), ids=lambda kind: kind.__name__)
def test_the_page_names_the_outcome_of_a_vendor_error(kind: type[SourceError]) -> None:
    assert f"| `{kind.__name__}` | `{kind.outcome}` |" in PAGE


def test_the_page_lists_every_exit_code() -> None:
    codes = re.findall(r"^\| (\d) \| ", PAGE, re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "4", "5", "6"]
