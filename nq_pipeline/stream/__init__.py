"""The live stream: trades and quotes from the capture log's tail, gaps and snapshots from the lake.

    capture log ──► log_tail ──┐
                               ├─► hub ──► every subscriber, each with a bounded queue
    lake commits ──► events ───┘

A batch has a cursor. A subscriber that returns with the cursor of the last batch it received gets everything
after it, once: across reconnects, restarts of the server and restarts of the capture. `replay` sends recorded
spans as the same batches.
"""
