"""One-step generation as a functional core."""
