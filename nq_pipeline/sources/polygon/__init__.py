"""Polygon (now Massive): chains of an index and a fund, as proxies."""
