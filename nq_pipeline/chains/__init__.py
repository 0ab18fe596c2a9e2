"""One snapshot of option chains, start to end: request, ask, select, store. Begin at `snapshot.py`."""
