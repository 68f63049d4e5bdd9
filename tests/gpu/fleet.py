"""Compares `flash` on one GPU with `flash_fsdp` over several hosts: network namespaces, a worker and torchrun in each.

    python -m tests.gpu.fleet --nodes 2 --gpus 1 [--output docs/results/fleet.md]

`--gpus` is that of each host: host 1 sees the first so many, host 2 the next. With `--share` all hosts see the same:
two hosts of two GPUs on a machine that has two. NCCL speaks over sockets on the hosts' own interfaces: with different
NCCL_HOSTIDs it takes no two of them for one machine. Everything is as in production but the servers: Celery workers on
a broker of plain files, and SQLite. Needs Linux, root and nsenter.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from service.contract import Arm, Comparison, Device, Dtype, Mode, Workload
from service.settings import Settings
from service.store import ArmRow, AttemptRepository, ComparisonRow, Database, LogRepository, migrate
from tests.namespaces import missing
from tests.worker.fleet.cluster import FleetCluster, fleet_cluster

WORKER = "--worker"


def main() -> int:
    arguments = _parser().parse_args()
    if reason := missing():
        raise SystemExit(reason)
    comparison = _comparison(arguments)
    with tempfile.TemporaryDirectory(prefix="cw-fleet-") as top:
        folder = Path(top)
        settings = Settings(data_dir=folder, database_url=f"sqlite:///{folder / 'fleet.db'}", launcher="fleet")
        _migrated(settings)
        worker = {
            "program": ("tests.gpu.fleet", WORKER),
            "environment": lambda number: _environment(number, arguments),
        }
        with fleet_cluster(arguments.nodes, folder, settings, **worker) as house:
            public_id = house.submit(comparison)
            begun = time.monotonic()
            done = house.finished(public_id, arguments.seconds)
            text = _report(house, done, arguments, time.monotonic() - begun)
            print(text)
            if arguments.log or done.verdict != "passed":
                print(_log(house, done))
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 0 if done.verdict == "passed" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=1, help="of each host; ranks of each host with --device cpu")
    parser.add_argument("--share", action="store_true", help="all hosts have the same GPUs")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=[each.value for each in Dtype], default="fp32")
    parser.add_argument("--num-samples", type=int, default=Workload().num_samples)
    parser.add_argument("--seconds", type=float, default=500, help="how long the comparison may take")
    parser.add_argument("--log", action="store_true", help="print the log of the arms also when they passed")
    parser.add_argument("--output", type=Path)
    return parser


def _comparison(arguments: argparse.Namespace) -> Comparison:
    shared = {"device": Device(arguments.device), "dtype": Dtype(arguments.dtype)}
    ranks = arguments.nodes * arguments.gpus
    return Comparison(
        name=f"flash × 1 against flash_fsdp {arguments.nodes} × {arguments.gpus}",
        workload=Workload(num_samples=arguments.num_samples),
        reference=Arm(mode=Mode.FLASH, world_size=1, **shared),
        candidate=Arm(mode=Mode.FLASH_FSDP, world_size=ranks, nodes=arguments.nodes, **shared),
    )


def _environment(number: int, arguments: argparse.Namespace) -> dict[str, str]:
    first = 0 if arguments.share else (number - 1) * arguments.gpus
    visible = range(first, first + arguments.gpus)
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, visible)),
        "NCCL_HOSTID": f"host{number}",
        "NCCL_NVLS_ENABLE": "0",
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "NET",
    }


def _migrated(settings: Settings) -> None:
    database = Database(settings.database)
    migrate(database)
    database.close()


def _report(house: FleetCluster, done: ComparisonRow, arguments: argparse.Namespace, seconds: float) -> str:
    attempt = done.attempts[-1]
    with house.database.read() as session:
        arms = AttemptRepository(session).arms(attempt.id)
    command = " ".join(["python -m tests.gpu.fleet", *sys.argv[1:]])
    lines = [f"`{command}`: verdict **{done.verdict}** after {seconds:.0f} s, attempt {attempt.number}.", ""]
    lines += [f"Error: {done.error}", ""] if done.error else []
    lines += ["| arm | ranks | hosts | device | last loss | median step, s |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [_arm_line(arm, arguments.nodes if arm.role == "candidate" else 1) for arm in arms]
    lines += ["", "| node | meets at | exit status of its torchrun |", "| --- | --- | --- |"]
    agents = house.agents(done.public_id)
    lines += [f"| {agent.node} | {agent.head}:{agent.port} | {agent.exit_status} |" for agent in agents]
    lines += ["", "| gate | observed | limit | passed |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {gate.subject}: {gate.metric} | {gate.observed} | {gate.limit} | {gate.passed} |" for gate in attempt.gates
    ]
    return "\n".join(lines)


def _arm_line(arm: ArmRow, hosts: int) -> str:
    start, series = arm.start or {}, arm.series or {}
    times = sorted(series.get("step_time", []))
    losses = series.get("loss", [])
    cells = [arm.role, start.get("world_size"), hosts, start.get("device"), *losses[-1:], *times[len(times) // 2 :][:1]]
    return f"| {' | '.join(map(str, cells))} |"


def _log(house: FleetCluster, done: ComparisonRow) -> str:
    with house.database.read() as session:
        return "".join(chunk.text for chunk in LogRepository(session).after(done.id, limit=100_000))


if __name__ == "__main__":
    if sys.argv[1:] == [WORKER]:
        from worker.tasks import main as serve

        serve()
    else:
        sys.exit(main())
