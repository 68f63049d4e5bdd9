"""Confines an arm on this host and holds it to its limits."""
