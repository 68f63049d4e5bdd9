"""`python -m tests.chaos --jobs 200 --seed 1`: a chaos run; status 1 when anything was lost or doubled."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import Report, run_chaos, train_record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--blows", type=float, default=0.4, help="blows per job")
    parser.add_argument("--poison", type=int, default=1, help="jobs that kill every worker that takes them")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    record = train_record(folder)
    failed = False
    for seed in options.seed:
        report = run_chaos(record, options.jobs, seed, _say, blows=options.blows, poison=options.poison)
        print(f"\n\n{describe(options.jobs, seed, report)}", flush=True)
        failed = failed or bool(report.audit.violations)
    if failed:
        print(f"Output of the programs: {folder}")
    else:
        shutil.rmtree(folder)
    return int(failed)


def _say(text: str) -> None:
    end, start = ("", "\r") if sys.stderr.isatty() else ("\n", "")
    print(f"{start}{text:60}", end=end, file=sys.stderr, flush=True)


def describe(jobs: int, seed: int, report: Report) -> str:
    """The report as Markdown."""
    audit = report.audit
    lines = [
        f"| seed {seed} | |",
        "| --- | --- |",
        f"| jobs, lost, doubled | {jobs}, {audit.lost}, {audit.doubled} |",
        f"| violations | {len(audit.violations)} |",
        f"| verdicts | {_counts(audit.verdicts)} |",
        f"| attempts | {_counts(audit.attempts)} |",
        f"| programs started | {report.starts} |",
        *(f"| {blow} | {count} |" for blow, count in sorted(report.blows.items())),
        f"| seconds | {report.seconds:.0f} |",
    ]
    return "\n".join([*lines, "", *(f"* {violation}" for violation in audit.violations)])


def _counts(counter: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    sys.exit(main())
