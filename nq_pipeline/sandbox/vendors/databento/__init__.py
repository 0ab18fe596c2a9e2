"""Databento's historical API as a stand-in."""
