"""`clipwatch train`: trains a workload in one mode and records it.

Exit status: 0 trained, 2 usage, 3 error, 130 interrupted.
"""

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from service.commands.errors import CommandError
from service.contract import Arm, ArmSpec, Mode, Workload
from worker.commands.console import ProgressObserver, print_arms, stderr_console
from worker.commands.interrupts import fresh_folder, interruptible
from worker.commands.run_output import arm_document, run_options
from worker.commands.source_options import source_options, with_source
from worker.commands.workload_options import (
    arm_from,
    arm_options,
    choice,
    workload_from,
    workload_options,
)

if TYPE_CHECKING:
    from worker.runner import ArmOutcome


@click.command()
@workload_options
@click.option("--mode", type=choice(Mode), default="flash", show_default=True, help="How gradients are clipped.")
@arm_options("nodes")  # one host, which this command runs on
@source_options()
@run_options
def train(**options: Any) -> None:
    """Train a workload in one mode and record it."""
    from worker.runner.prepare import CannotPrepare

    workload = workload_from(options)
    arm = arm_from(options["mode"], options)
    arm, folder = with_source(arm, options), fresh_folder(options["output"])
    try:
        outcome = interruptible(lambda stop: _train(workload, arm, folder, stop))
    except CannotPrepare as fault:
        raise CommandError(str(fault)) from fault
    if options["as_json"]:
        click.echo(json.dumps(arm_document(outcome)))
    else:
        print_arms(Console(), {"": outcome})
        click.echo(f"Record and log: {folder}")
    if outcome.error is not None:
        raise CommandError(outcome.error.message)


def _train(workload: Workload, arm: Arm, folder: Path, stop: threading.Event) -> "ArmOutcome":
    from service.settings import get_settings
    from worker.launch import LocalLauncher
    from worker.runner.follow import run_arm
    from worker.runner.prepare import make_checkout, prepare

    launcher, checkout = LocalLauncher(), make_checkout(get_settings())
    with ProgressObserver(stderr_console(), {"arm": f"training {arm.mode}"}).shown() as observer:
        ready = prepare({"arm": arm}, launcher=launcher, checkout=checkout, observer=observer, stop=stop)["arm"]
        observer.phase("arm")
        spec = ArmSpec(workload=workload, arm=ready.arm)
        return run_arm("arm", spec, folder, launcher=launcher, observer=observer, stop=stop, source=ready.source)
