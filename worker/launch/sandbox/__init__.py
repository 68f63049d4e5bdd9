"""Confines an arm on this host, holds it to its limits, and ends all that it started."""
