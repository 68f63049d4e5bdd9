"""`clipwatch worker` whose arms play a record back: `python -m tests.chaos.worker`, RECORD in the environment."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from service.contract import ArmSpec
from tests.chaos.jobs import plan_of
from worker.launch import LocalLauncher, RunningArm
from worker.launch.local import LocalArm
from worker.launch.protocol import LOG, SPEC
from worker.source import describe_source, hash_package

RECORD = "CHAOS_RECORD"
ARM = Path(__file__).with_name("arm.py")
ENDLESS_SECONDS = 600.0


class ReplayLauncher(LocalLauncher):
    """Starts `arm.py` where the local launcher starts torchrun, and ends it as that does."""

    def start(
        self, spec: ArmSpec, folder: Path, source: Path | None = None, devices: Sequence[int] | None = None
    ) -> RunningArm:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC).write_text(spec.model_dump_json())
        planned, seed = plan_of(spec.workload.seed), spec.workload.seed
        plan = {
            "folder": str(folder),
            "record": os.environ[RECORD],
            "verdict": "passed" if folder.name == "reference" else planned,
            "pause": ENDLESS_SECONDS if planned == "endless" else 0.02 + 0.2 * (seed * 7919 % 97) / 97,
            "worker": os.getpid(),
            "source": source and describe_source(spec.arm.opacus, hash_package(source / "opacus")),
        }
        with (folder / LOG).open("wb") as log:
            return LocalArm(
                subprocess.Popen(
                    [sys.executable, "-S", "-E", str(ARM), json.dumps(plan)],
                    cwd=folder,
                    env=self._arm_environment(spec.arm, source),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )


if __name__ == "__main__":
    from worker.tasks import main

    main(ReplayLauncher())
