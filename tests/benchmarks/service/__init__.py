"""How fast is the service at its own job? `make bench-service`, or `python -m tests.benchmarks.service --help`.

All of it runs on a private PostgreSQL and a private Redis. What is compared is measured turn by turn, in rounds: other
load on the machine then falls on both sides.
"""
