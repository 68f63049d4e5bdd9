"""Does the service lose anything while all that it stands on is killed, stopped, emptied and restarted?

`python -m tests.chaos --jobs 200 --seed 1` applies a seeded schedule of blows to a real PostgreSQL, a real Redis, and
real API, beat and worker processes, and then audits the database, the processes and the disk. The one thing that is
not the real one is the training: `arm.py` plays the record of a real arm back, in an agent and two ranks that are real
processes.
"""
