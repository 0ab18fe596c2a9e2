"""`nq board`: a page on loopback that follows the live capture.

    stream ──► sections (state) ──► feed ──► browsers, by server-sent events
    lake   ──► what happened before the board started, and what changes rarely

The board reads what the capture has synced; it never asks the capture for anything.
"""
