"""Runs `clipwatch compare` on GPUs over world sizes, noise and dtypes and writes the table of docs/results.

    python -m tests.gpu.parity --world-sizes 1,2,4 --noise 1,0 --output docs/results/parity.md

Each row is one run of the command printed under the table; exit status 1 if any verdict is not `passed`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

DTYPES = {"fp32": "1e-5", "bf16": "1e-3"}
METRICS = ("loss", "grad_norms", "clipped_grad_norm", "parameter_norm", "epsilon")
COMMAND = (
    "clipwatch compare --batch-size 32 --num-samples 1000 --seq-len 64 --num-epochs 1 --lr 1e-3 "
    "--noise-multiplier {noise} --max-grad-norm 1.0 --seed 42 --tolerance {tolerance} --world-size {world_size} "
    "--dtype {dtype} --device {device} --reference {reference} --candidate {candidate} --json"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-sizes", default="1")
    parser.add_argument("--noise", default="1,0")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--pairs", default="flash:flash_fsdp", help="reference:candidate, separated by commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--extra", default="", help="more options of `clipwatch compare`, in one word")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows, worst = [], 0
    axes = (arguments.pairs, arguments.dtypes, arguments.noise, arguments.world_sizes)
    for pair, dtype, noise, world_size in product(*(axis.split(",") for axis in axes)):
        reference, candidate = pair.split(":")
        settings = {"noise": noise, "tolerance": DTYPES[dtype], "world_size": world_size, "dtype": dtype}
        settings |= {"device": arguments.device, "reference": reference, "candidate": candidate}
        document = compare(f"{COMMAND.format(**settings)} {arguments.extra}")
        worst = max(worst, document["verdict"] != "passed")
        rows.append(row(document))
        print(rows[-1], flush=True)
    text = report(rows, document)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    print(text)
    return worst


def compare(command: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "service.cli", *command.split()[1:], "--output", f"{folder}/run"]
        done = subprocess.run(words, stdout=subprocess.PIPE, env=os.environ, check=False)
        if not done.stdout:
            raise SystemExit(f"{command}: exit status {done.returncode} and no result")
        document = json.loads(done.stdout)
        for role in document["arms"]:
            if document["error"]:
                print(Path(folder, "run", role, "log.txt").read_text()[-3000:], file=sys.stderr)
            record = Path(folder, "run", role, "record.jsonl").read_text().splitlines()
            steps = [json.loads(line) for line in record]
            steps = [step for step in steps if step["event"] == "step"]
            times = sorted(step["step_time"] for step in steps)
            document["arms"][role]["median"] = times[len(times) // 2] * 1e3 if times else float("nan")
            document["arms"][role]["norms"] = [float(norm) for step in steps for norm in step["grad_norms"] or []]
    return document


def row(document: dict) -> str:
    comparison = document["comparison"]
    arms = document["arms"]
    gates = {gate["metric"]: gate for gate in (document["judgement"] or {"gates": []})["gates"]}
    names = [f"{arm['arm']['mode']} × {arm['arm']['world_size']}" for arm in arms.values()]
    cells = [comparison["candidate"]["dtype"], f"{comparison['workload']['noise_multiplier']:g}"]
    cells += [*names, "–", "–"][:2]
    cells += [f"{float(gates[m]['observed']):.1e}" if m in gates else "–" for m in METRICS]
    cells += [relative([arm["norms"] for arm in arms.values()]), f"{float(document['limits']['loss']):g}"]
    cells += [str(arm["end"] and arm["end"]["epsilon"])[:6].replace("Infini", "∞") for arm in list(arms.values())[:1]]
    cells += [" / ".join(f"{arm['median']:.1f}" for arm in arms.values()), f"**{document['verdict']}**"]
    return "| " + " | ".join(cells) + " |"


def relative(norms: list[list[float]]) -> str:
    """Largest relative difference of a per-sample norm."""
    if len(norms) != 2 or not norms[0] or len(norms[0]) != len(norms[1]):
        return "–"
    return f"{max(abs(a - b) / a for a, b in zip(*norms, strict=True)):.1e}"


def report(rows: list[str], document: dict) -> str:
    start = next(iter(document["arms"].values()))["start"] or {"device": "?", "versions": {}, "num_parameters": 0}
    versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
    head = [
        "dtype",
        "σ",
        "reference",
        "candidate",
        *(f"Δ {m}" for m in METRICS),
        "Δ grad_norms, relative",
        "tolerance",
        "ε",
    ]
    head += ["median step ms", "verdict"]
    table = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *rows]
    about = f"{start['device']}; {versions}; {start['num_parameters']:,} parameters; kernels {start.get('kernels')}."
    words = [shlex.quote(word) for word in sys.argv[1:] if not word.endswith(".md") and word != "--output"]
    made = f"Made by `{' '.join(['python -m tests.gpu.parity', *words])}`, one row a run of (with `--extra` added):"
    return "\n".join([about, "", *table, "", made, "", f"    {COMMAND}", ""])


if __name__ == "__main__":
    sys.exit(main())
