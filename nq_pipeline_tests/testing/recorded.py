"""Where recorded vendor payloads are; they are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("NQ_SHARED", Path(__file__).parents[3] / "shared")) / "fixtures"
