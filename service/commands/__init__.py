"""The commands of `clipwatch` that need no worker install: one module each, imported when the command is called."""
