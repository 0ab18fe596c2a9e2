"""Assets by subject."""
