"""Arms with another Opacus than the installed one, under real torchrun."""

import socket
import threading
from pathlib import Path

import opacus
import pytest

from service.contract import Comparison, ErrorKind, Mode, Provider, Verdict
from tests.worker.checkout.repository import Repository
from tests.worker.opacus_sources import DOES_NOT_IMPORT, NATIVE_FLASH, commit_changed_opacus
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.checkout import Checkout
from worker.launch import LocalLauncher
from worker.runner import Stopped, run_comparison
from worker.source import hash_package

INSTALLED_PACKAGE = Path(opacus.__file__).parent


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return Repository(tmp_path_factory.mktemp("sources") / "remote")


@pytest.fixture(scope="module")
def checkout(repository):
    return Checkout(str(repository.folder), repository.folder.with_name("cache"))


def conduct(folder, checkout, reference, candidate, launcher=None, observer=None, stop=None):
    comparison = Comparison(workload=tiny(max_steps=1), reference=reference, candidate=candidate)
    return run_comparison(
        comparison,
        folder,
        launcher=launcher or LocalLauncher(),
        observer=observer or Recording(),
        stop=stop or threading.Event(),
        checkout=checkout,
    )


@pytest.mark.slow
def test_native_flash_against_clipwatchs_on_one_commit(tmp_path, repository, checkout):
    sha = commit_changed_opacus(repository, NATIVE_FLASH)
    native = cpu_arm(Mode.FLASH, opacus="commit:main")
    ours = cpu_arm(Mode.FLASH, opacus=f"commit:{sha[:10]}", provider=Provider.CLIPWATCH)
    observer = Recording()
    outcome = conduct(tmp_path, checkout, native, ours, observer=observer)
    assert outcome.verdict is Verdict.PASSED, outcome.error
    assert observer.phases == ["checkout", "reference", "candidate", "oracle", "judging"]
    # The oracle runs on the installed Opacus.
    starts = {role: outcome.arms[role].record.start for role in ("reference", "candidate")}
    assert {role: start.kernels for role, start in starts.items()} == {"reference": "native", "candidate": "torch"}
    digest = hash_package(repository.folder / "opacus")
    for role, start in starts.items():
        assert start.versions["opacus"] == f"{opacus.__version__}+changed"
        assert start.source == f"commit {sha}, files {digest[:16]}"
        assert outcome.arms[role].spec.arm.opacus == f"commit:{sha}"


def test_a_commit_that_does_not_import_is_an_error_that_says_so(tmp_path, repository, checkout):
    commit_changed_opacus(repository, DOES_NOT_IMPORT)
    outcome = conduct(tmp_path, checkout, cpu_arm(Mode.HOOKS, opacus="commit:main"), cpu_arm(Mode.HOOKS))
    assert outcome.verdict is Verdict.ERROR
    assert outcome.error.message == "reference (hooks): ModuleNotFoundError: No module named 'opacus.optimizers.gone'"


def test_native_flash_of_an_opacus_without_it_is_unsupported(tmp_path, checkout):
    arm = cpu_arm(Mode.FLASH, provider=Provider.NATIVE)
    outcome = conduct(tmp_path, checkout, arm, arm)
    assert outcome.verdict is Verdict.UNSUPPORTED
    words = f"this Opacus ({opacus.__version__}) has no flash of its own, no grad_sample_mode 'flash'"
    assert outcome.error.message == f"reference (flash): {words}"


class Forgetful(LocalLauncher):
    """Starts every arm with the installed Opacus."""

    def start(self, spec, folder, source=None, devices=None):
        return super().start(spec, folder)


def test_an_arm_that_imported_another_opacus_is_an_error(tmp_path, repository, checkout):
    sha = commit_changed_opacus(repository, NATIVE_FLASH)
    arm = cpu_arm(Mode.HOOKS, opacus=f"commit:{sha}")
    outcome = conduct(tmp_path, checkout, arm, arm, launcher=Forgetful())
    assert (outcome.verdict, outcome.error.kind) == (Verdict.ERROR, ErrorKind.SOURCE)
    assert "the arm imported another Opacus" in outcome.error.message
    assert hash_package(INSTALLED_PACKAGE)[:16] in outcome.error.message


def test_a_source_that_cannot_be_checked_out_is_an_error_before_any_arm(tmp_path, repository, checkout):
    commit_changed_opacus(repository, {})
    observer = Recording()
    arm = cpu_arm(Mode.HOOKS)
    outcome = conduct(tmp_path, checkout, arm, cpu_arm(Mode.HOOKS, opacus="commit:nope"), observer=observer)
    assert (outcome.verdict, outcome.error.kind) == (Verdict.ERROR, ErrorKind.SOURCE)
    assert outcome.error.message == f"candidate: {repository.folder} has no branch, tag or commit 'nope'"
    assert observer.phases == ["checkout"]


def test_stop_reaches_the_checkout(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        checkout = Checkout(f"git://127.0.0.1:{silent.getsockname()[1]}/opacus", tmp_path / "cache")
        stop, open_ones = threading.Event(), []
        threading.Thread(target=lambda: (open_ones.append(silent.accept()), stop.set()), daemon=True).start()
        arm = cpu_arm(Mode.HOOKS, opacus="commit:main")
        with pytest.raises(Stopped):
            conduct(tmp_path, checkout, arm, arm, stop=stop)
        open_ones[0][0].close()
