"""Barchart's site as a stand-in."""
