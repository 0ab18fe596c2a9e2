"""One HTML page per snapshot: the market, where the chain came from, and how the pipeline is doing.

The page needs no network, no server and no script to be read; it opens under file:// and prints.
"""
