"""The commands that a worker install adds to `clipwatch`: one module each, imported when it is called."""

# Each command's short help, so that `clipwatch --help` imports none of them.
SHORT_HELP = {
    "compare": "Train a workload in two modes and judge whether they agree.",
    "selftest": "Prove that suites find faults: run them (parity and clipping by default) against arms with a fault in "
    "them.",
    "suite": "Suites of comparisons: what a commit is checked with.",
    "train": "Train a workload in one mode and record it.",
    "worker": "Serve comparisons from the queue.",
}
