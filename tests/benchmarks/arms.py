"""Seconds of a comparison whose arms run one after another, side by side, and with arms that are reused.

python -m tests.benchmarks.arms [--steps 8] [--slots 2]
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from service.artifacts import ArtifactFolder
from service.contract import Arm, Comparison, Mode, Provider, Workload
from service.settings import Settings
from worker.launch import LocalLauncher
from worker.launch.devices import HostDevices, cores
from worker.runner import run_comparison
from worker.runner.arm_cache import ArmCache
from worker.runner.suite import NullObserver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of the default workload")
    parser.add_argument("--slots", type=int, default=2, help="CPU slots, where there is no GPU")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        _table(Path(top), given.steps, given.slots)


def _table(top: Path, steps: int, slots: int) -> None:
    sequence, beside = LocalLauncher(), LocalLauncher(threads=max(1, cores() // slots))
    device_pool, artifacts = HostDevices(slots), ArtifactFolder(Settings(data_dir=top))

    def row(name: str, launcher: LocalLauncher, provider: Provider, **options: Any) -> None:
        comparison = Comparison(
            workload=Workload(max_steps=steps),
            reference=Arm(mode=Mode.GHOST, world_size=1),
            candidate=Arm(mode=Mode.FLASH, world_size=1, provider=provider),
        )
        observer, stop, begun = NullObserver(), threading.Event(), time.perf_counter()
        outcome = run_comparison(
            comparison, top / name, launcher=launcher, observer=observer, stop=stop, plots=False, **options
        )
        seconds, reused = time.perf_counter() - begun, [role for role, arm in outcome.arms.items() if arm.reused_from]
        print(f"| {name} | {seconds:.1f} | {outcome.verdict} | {', '.join(reused) or '–'} |", flush=True)

    def cache() -> ArmCache:
        return ArmCache(artifacts, beside, "cmp/1")

    print(f"{cores()} cores, {steps} steps of the default workload, ghost and flash with an oracle of one step\n")
    print("| arms | s | verdict | reused |\n| --- | --- | --- | --- |")
    row("one after another", sequence, Provider.AUTO)
    row("side by side", beside, Provider.AUTO, device_pool=device_pool, cache=cache())
    # The same work, but another arm.
    row("a new candidate", beside, Provider.CLIPWATCH, device_pool=device_pool, cache=cache())
    row("nothing new", beside, Provider.AUTO, device_pool=device_pool, cache=cache())


if __name__ == "__main__":
    main()
