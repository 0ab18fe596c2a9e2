"""`nq serve`: the lake and the live stream over HTTP and WebSocket, read-only."""
