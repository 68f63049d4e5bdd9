"""A finished arm is reused for arms with the same content and for no others."""

import gzip
import shutil
from pathlib import Path

import opacus
import pytest

from service.artifacts import ARMS, ArtifactFolder
from service.contract import Kernels, Mode, Provider, Verdict
from service.settings import Settings
from tests.worker.conductor.conducting import Counting, compared, conduct
from tests.worker.workloads import Recording, cpu_arm, tiny
from worker.checkout import Checkout, Source
from worker.launch import LocalLauncher
from worker.launch.devices import HostDevices
from worker.runner.arm_cache import ArmCache
from worker.runner.comparison import specs_of

ALL = ["candidate", "reference"]


@pytest.fixture(scope="module")
def launcher(fork_server):
    return Counting(fork_server)


@pytest.fixture
def artifacts(tmp_path) -> ArtifactFolder:
    return ArtifactFolder(Settings(data_dir=tmp_path / "data"))


@pytest.fixture
def run(launcher, artifacts, tmp_path):
    """Runs a comparison as attempt `cmp/<n>`. The outcome, the arms that ran, and the observer."""
    numbers = iter(range(1, 100))

    def conducted(comparison, **options):
        number = next(numbers)
        launcher.started.clear()
        cache, observer = ArmCache(artifacts, launcher, f"cmp/{number}"), Recording()
        options = {"device_pool": HostDevices(slots=2)} | options
        outcome = conduct(comparison, tmp_path / str(number), launcher, cache=cache, observer=observer, **options)
        return outcome, sorted(launcher.started), observer

    return conducted


def kept_files(tmp_path):
    return sorted((tmp_path / "data" / "artifacts" / ARMS).iterdir())


def test_an_arm_is_reused_and_its_outcome_is_as_if_it_had_run(run, tmp_path):
    first, ran, _ = run(compared())
    assert (first.verdict, ran) == (Verdict.PASSED, ALL)
    assert {role: arm.reused_from for role, arm in first.arms.items()} == dict.fromkeys(ALL)
    assert len(kept_files(tmp_path)) == 2
    other, ran, observer = run(compared(candidate=cpu_arm(Mode.FUNCTORCH)))
    assert (other.verdict, ran) == (Verdict.PASSED, ["candidate"])
    assert (other.arms["reference"].reused_from, other.arms["candidate"].reused_from) == ("cmp/1", None)
    assert other.arms["reference"].record == first.arms["reference"].record
    assert list(other.arms) == ["reference", "candidate"]
    assert observer.steps[:2] == [("reference", 0), ("reference", 1)]
    assert "not run: reused from cmp/1\n" in observer.text
    again, ran, _ = run(compared())
    assert (again.verdict, ran) == (Verdict.PASSED, [])
    assert again.judgement == first.judgement


def test_without_reuse_all_run_and_later_ones_reuse_the_newest(run):
    run(compared())
    outcome, ran, _ = run(compared(reuse=False))
    assert (outcome.verdict, ran) == (Verdict.PASSED, ALL)
    outcome, ran, _ = run(compared())
    assert ran == []
    assert {arm.reused_from for arm in outcome.arms.values()} == {"cmp/2"}


def test_two_equal_arms_are_never_taken_from_one_record_and_a_repeated_one_always_runs(run, tmp_path):
    same = compared(candidate=cpu_arm(Mode.GHOST), repeat=True)
    outcome, ran, _ = run(same)
    assert (outcome.verdict, ran) == (Verdict.PASSED, ["candidate", "reference", "repeat"])
    outcome, ran, _ = run(same)
    assert (outcome.verdict, ran) == (Verdict.PASSED, ["candidate", "repeat"])
    assert outcome.arms["reference"].reused_from == "cmp/1"


def test_a_record_that_cannot_be_read_whole_is_run_again(run, tmp_path):
    run(compared())
    first, second = kept_files(tmp_path)
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    second.write_bytes(gzip.compress(b"{}"))
    outcome, ran, _ = run(compared())
    assert (outcome.verdict, ran) == (Verdict.PASSED, ALL)
    assert run(compared())[1] == []


def test_a_record_under_another_key_is_not_used(run, tmp_path):
    run(compared())
    first, second = kept_files(tmp_path)
    first.write_bytes(second.read_bytes())
    assert len(run(compared())[1]) == 1


def test_the_files_of_an_opacus_count_and_not_where_they_come_from(run, tmp_path):
    run(compared())
    folder = tmp_path / "mine"
    shutil.copytree(Path(opacus.__file__).parent, folder / "opacus", ignore=shutil.ignore_patterns("__pycache__"))
    options = {"checkout": Checkout("nowhere", tmp_path / "cache")}
    from_a_folder = compared(candidate=cpu_arm(Mode.HOOKS, opacus=f"path:{folder}"))
    outcome, ran, _ = run(from_a_folder, **options)
    assert (outcome.verdict, ran) == (Verdict.PASSED, [])
    assert outcome.arms["candidate"].record.start.source.startswith("path, files ")
    with (folder / "opacus" / "version.py").open("a") as file:
        file.write("# a change\n")
    outcome, ran, _ = run(from_a_folder, **options)
    assert (outcome.verdict, ran) == (Verdict.PASSED, ["candidate"])


def test_an_arm_that_failed_is_not_kept(run, tmp_path):
    unsupported = compared(candidate=cpu_arm(Mode.FLASH, provider=Provider.NATIVE))
    outcome, _, _ = run(unsupported, device_pool=None)
    assert outcome.verdict is Verdict.UNSUPPORTED
    assert len(kept_files(tmp_path)) == 1
    outcome, ran, _ = run(unsupported)
    assert (outcome.verdict, ran) == (Verdict.UNSUPPORTED, ["candidate"])


def test_records_that_cannot_be_kept_change_no_verdict(launcher, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    artifacts = ArtifactFolder(Settings(data_dir=tmp_path, artifacts_url=str(tmp_path / "file")))
    cache = ArmCache(artifacts, launcher, "cmp/1")
    assert conduct(compared(), tmp_path / "run", launcher, cache=cache).verdict is Verdict.PASSED


class TestKey:
    """Which arms have the same key."""

    SPEC = specs_of(compared())["reference"]

    @pytest.fixture
    def source(self, tmp_path):
        """Make a source of the given files."""

        def make(name: str, **files: str) -> Source:
            for file, text in ({"__init__.py": "", "engine.py": "x = 1"} | files).items():
                path = tmp_path / name / "opacus" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return Source(f"path:{name}", tmp_path / name, "1" * 64)

        return make

    def key(self, artifacts, spec=SPEC, source=None, **place) -> str | None:
        return ArmCache(artifacts, LocalLauncher(**place), "cmp/1").key(spec, source)

    def changed(self, **arm):
        return self.SPEC.model_copy(update={"arm": self.SPEC.arm.model_copy(update=arm)})

    def test_it_is_the_same_whatever_it_is_called_and_wherever_it_lies(self, artifacts, source):
        key = self.key(artifacts, source=source("one"))
        assert len(key) == 64
        assert self.key(artifacts, self.changed(opacus="version:1.6.0"), source("other")) == key
        elsewhere = {"PATH": "/other", "HOME": "/home/other", "CUDA_VISIBLE_DEVICES": "1"}
        assert self.key(artifacts, environment=elsewhere) == self.key(artifacts, environment={})

    def test_everything_that_could_change_a_number_changes_it(self, artifacts, source):
        keys = [
            self.key(artifacts),
            self.key(artifacts, self.changed(mode=Mode.HOOKS)),
            self.key(artifacts, self.changed(kernels=Kernels.TRITON)),
            self.key(artifacts, self.SPEC.model_copy(update={"workload": tiny(seed=7)})),
            self.key(artifacts, self.SPEC.model_copy(update={"exact": True})),
            self.key(artifacts, environment={"OMP_NUM_THREADS": "7"}),
            self.key(artifacts, environment={"OMP_NUM_THREADS": "7", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}),
            self.key(artifacts, program=("python", "other.py")),
            self.key(artifacts, source=source("one")),
            self.key(artifacts, source=source("changed", **{"engine.py": "x = 2"})),
            # Python would run these in place of engine.py, whose hash stays as it was.
            self.key(artifacts, source=source("extension", **{"engine.abi3.so": "x"})),
            self.key(artifacts, source=source("bytecode", **{"__pycache__/engine.cpython-311.pyc": "x"})),
        ]
        assert len(set(keys)) == len(keys)

    def test_none_if_a_file_is_a_link(self, artifacts, source, tmp_path):
        made = source("one")
        (tmp_path / "one" / "opacus" / "optimizers").symlink_to(tmp_path)
        assert self.key(artifacts, source=made) is None

    def test_none_if_the_launcher_does_not_know_its_hardware(self, artifacts, launcher):
        faulty = launcher.with_fault("tests.worker.faulty_training:nan_loss")
        assert ArmCache(artifacts, faulty, "cmp/1").key(self.SPEC, None) is None
