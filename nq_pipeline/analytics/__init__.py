"""What is computed from the lake and written back to it."""
