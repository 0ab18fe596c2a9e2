"""Proof of the feed: checks an owner wants to see pass before trusting it, with evidence."""
