"""Arms forked from a server that has torch imported already."""
