"""The sources of option chains, one package per vendor.

A *vendor* is the company and its API: it has settings, credentials, a plan, a `VendorSpec` and, in a run, a
`VendorSession`. A *source* is our code for a vendor: it implements the contract in `base.py` and turns the
vendor's answers into rows of `source_chain`. Both have the same name, which the column `source` holds.

    base.py           the contract: `Source`, its request and its answer
    spec.py           `VendorSpec`: what the rest of the program knows of a vendor
    registry.py       the specs of all vendors, and `load_source`
    failures.py       shared by all sources: errors of answers, probes, control totals
    rows.py           shared by all sources: columns that follow from the request and the series
    plausibility.py   shared by all sources: limits of instants, series and counts
    <vendor>/         `spec.py` with its settings, `source.py`, and its parser

`docs/adding-a-source.md` says how to add one.
"""
