"""Tradovate (experimental): listed contracts over REST, quotes over a websocket."""
