"""The vendors' HTTP and WebSocket interfaces as stand-ins."""
