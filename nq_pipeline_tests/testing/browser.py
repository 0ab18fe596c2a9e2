"""The Chromium of this machine, and how a test starts it."""

from __future__ import annotations

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *(["--no-sandbox"] if os.getuid() == 0 else []),  # Chromium's own sandbox refuses root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def require_browser() -> None:
    """Skip the test where Playwright or Chromium is missing."""
    pytest.importorskip("playwright", reason="playwright is not installed (make install)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
