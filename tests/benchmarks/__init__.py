"""Speed on a GPU: programs, not tests. `make gpu-bench` runs them and writes their tables to docs/results."""
