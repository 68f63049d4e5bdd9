"""Runs arms by forking a process that has imported torch already."""
