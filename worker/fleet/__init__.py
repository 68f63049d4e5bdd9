"""Several hosts: how a worker joins a fleet, runs its part of an arm, and as head reserves other hosts."""
