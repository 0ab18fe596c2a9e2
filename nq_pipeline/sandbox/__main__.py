"""`python -m nq_pipeline.sandbox FOLDER PORT [exact]`: stand-ins that end when their owner closes stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from nq_pipeline.errors import SandboxError
from nq_pipeline.sandbox.process import serve_owned

if __name__ == "__main__":
    try:
        serve_owned(Path(sys.argv[1]), int(sys.argv[2]), exact="exact" in sys.argv[3:])
    except SandboxError as error:
        sys.exit(str(error))
