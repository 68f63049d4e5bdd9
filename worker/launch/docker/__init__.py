"""Arms in containers of a Docker engine."""
