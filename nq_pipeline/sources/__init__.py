"""The sources of option chains, one package per vendor.

A *vendor* is the company and its API. A *source* is our code for it: it implements the contract in `base.py`
and turns the vendor's answers into rows of `source_chain`. Both have the name that the column `source` holds.

`spec.py` has what the rest of the program knows about a vendor, `registry.py` lists the vendors, and
`failures.py` and `rows.py` are shared by all sources. `docs/adding-a-source.md` says how to add one.
"""
