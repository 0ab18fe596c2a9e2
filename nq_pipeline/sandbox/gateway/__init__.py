"""Databento's live gateway as a stand-in, with scripted faults."""
