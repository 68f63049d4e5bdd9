"""The commands of `clipwatch` that need no worker: one module each, imported when it is called."""
