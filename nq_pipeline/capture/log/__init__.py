"""The capture log: the gateway's records on disk before anything else is done with them.

    capture/.lock                                                one capture at a time
    capture/GLBX.MDP3/trade_date=2025-06-10/1749562200000000000-00000017-00000015.dbn

A segment is a DBN file as `databento.DBNStore` reads it: one header, then whole records as the gateway
sent them. Records are only appended, and synced in groups. A segment belongs to one gateway session. If
a session continues in another segment, that segment begins with the session's symbol mappings, so each
can be read alone. The second number of the name orders the segments of all trade dates, whatever the
clock did; the third is the number of the segment with which the session began.

A segment is synced before the next one begins, so only the newest can have a torn tail. A wrong length or
rtype reveals bytes that were never synced. DBN has no checksums, so damage inside a record goes unnoticed.
"""
