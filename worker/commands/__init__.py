"""The commands that a worker install adds to `clipwatch`."""
