"""One HTML page per snapshot: the market, where the chain came from, and how the pipeline is.

The page needs no network, no server and no script to be read; it opens under file:// and prints.
"""

from nq_pipeline.report.page import write_report

__all__ = ["write_report"]
