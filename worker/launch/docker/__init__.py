"""Runs each arm in a container of a Docker engine on this host."""
