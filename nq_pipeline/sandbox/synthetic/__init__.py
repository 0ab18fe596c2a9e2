"""The synthetic market that all stand-ins serve, computed from hashed keys."""
