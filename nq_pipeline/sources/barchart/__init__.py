"""Barchart: delayed chains of futures options from the site's own API."""
