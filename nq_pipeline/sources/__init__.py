"""One file per vendor: ask, parse, normalise. `base.py` is the contract every vendor keeps."""
