"""From `Arm.opacus` to a folder, with real git, real pip and real processes."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from tests.waiting import until
from tests.worker.checkout.repository import Repository
from worker.checkout import Checkout, CheckoutError, Interrupted
from worker.source import hash_package

NEVER = threading.Event()


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path / "remote")
    made.commit_opacus("1.0")
    made.git("tag", "v1.0")
    made.git("tag", "--annotate", "v1.0.1", "--message", "a tag with an object of its own")
    made.commit_opacus("2.0")
    return made


@pytest.fixture
def checkout(repository, tmp_path):
    return Checkout(str(repository.folder), tmp_path / "cache")


def version_in(source):
    namespace = {}
    exec((source.folder / "opacus" / "__init__.py").read_text(), namespace)
    return namespace["__version__"]


def complaint(checkout, opacus):
    with pytest.raises(CheckoutError) as caught:
        checkout.get(opacus, NEVER)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ref", "version"),
    [("main", "2.0"), ("main~1", "1.0"), ("main^", "1.0"), ("v1.0", "1.0"), ("v1.0.1", "1.0"), ("tags/v1.0", "1.0")],
)
def test_a_ref_becomes_a_folder_with_the_package_alone(checkout, repository, ref, version):
    source = checkout.get(f"commit:{ref}", NEVER)
    assert version_in(source) == version
    assert source.opacus == "commit:" + repository.git("rev-parse", f"{ref}^{{commit}}")
    assert source.digest == hash_package(source.folder / "opacus")
    assert [path.name for path in source.folder.iterdir() if path.is_dir()] == ["opacus"]
    assert not list(source.folder.glob("*.py"))


def test_a_sha_may_be_short_and_whole(checkout, repository):
    sha = repository.git("rev-parse", "main~1")
    for name in (sha, sha[:9]):
        assert checkout.get(f"commit:{name}", NEVER).opacus == f"commit:{sha}"


def test_a_branch_that_moved_is_seen(checkout, repository):
    assert version_in(checkout.get("commit:main", NEVER)) == "2.0"
    repository.commit_opacus("3.0")
    assert version_in(checkout.get("commit:main", NEVER)) == "3.0"
    repository.git("reset", "--quiet", "--hard", "HEAD~2")
    assert version_in(checkout.get("commit:main", NEVER)) == "1.0"


def test_what_is_in_the_mirror_needs_no_remote(checkout, repository):
    sha = repository.git("rev-parse", "main")
    checkout.get("commit:main", NEVER)
    shutil.rmtree(repository.folder)
    for opacus, version in ((f"commit:{sha}", "2.0"), ("commit:v1.0", "1.0"), ("version:1.0", "1.0")):
        assert version_in(checkout.get(opacus, NEVER)) == version
    assert complaint(checkout, "commit:main").startswith(f"cannot fetch from {repository.folder}: ")


def test_a_pull_request_that_no_branch_leads_to(checkout, repository):
    repository.git("checkout", "--quiet", "--detach")
    sha = repository.commit_opacus("pull")
    repository.git("update-ref", "refs/pull/7/head", sha)
    repository.git("checkout", "--quiet", "main")
    assert version_in(checkout.get("commit:pull/7/head", NEVER)) == "pull"
    assert version_in(checkout.get(f"commit:{sha}", NEVER)) == "pull"


def test_a_source_is_made_once_and_again_when_it_was_changed(checkout):
    first = checkout.get("commit:v1.0", NEVER)
    before = first.folder.stat().st_ino
    (first.folder / "opacus" / "__pycache__").mkdir()
    assert checkout.get("commit:v1.0", NEVER) == first
    assert first.folder.stat().st_ino == before
    (first.folder / "opacus" / "__init__.py").write_text("__version__ = 'not what was committed'")
    assert checkout.get("commit:v1.0", NEVER) == first
    assert version_in(first) == "1.0"


def test_a_source_that_nobody_asked_for_in_long_is_removed_when_another_is_made(checkout, repository, tmp_path):
    old, used = checkout.get("commit:v1.0", NEVER), checkout.get("commit:main", NEVER)
    long_ago = time.time() - 31 * 86_400
    for source in (old, used):
        os.utime(source.folder, (long_ago, long_ago))
    checkout.get("commit:main", NEVER)
    repository.commit_opacus("3.0")
    checkout.get("commit:main", NEVER)
    assert (old.folder.exists(), used.folder.exists()) == (False, True)
    assert checkout.get("commit:v1.0", NEVER) == old


def test_a_commit_that_a_force_push_left_behind_is_had_as_long_as_the_mirror_has_it(checkout, repository, tmp_path):
    sha = repository.commit_opacus("rewritten")
    checkout.get(f"commit:{sha}", NEVER)
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "--quiet", "--prune=now")
    assert version_in(checkout.get(f"commit:{sha}", NEVER)) == "rewritten"
    elsewhere = Checkout(str(repository.folder), tmp_path / "elsewhere")
    assert complaint(elsewhere, f"commit:{sha}") == (
        f"{repository.folder} has no branch, tag or commit {sha!r}: it may have been rewritten by a force-push"
    )


def test_processes_at_once_all_get_whole_sources(repository, tmp_path):
    program = (
        "import sys, threading; from pathlib import Path; from worker.checkout import Checkout\n"
        "remote, cache, opacus = sys.argv[1:]\n"
        "print(Checkout(remote, Path(cache)).get(opacus, threading.Event()).digest)"
    )
    root = str(Path(__file__).parents[3])
    wanted = ["commit:main", "version:1.0", "commit:main", "version:1.0", "commit:v1.0", "commit:main"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(repository.folder), str(tmp_path / "cache"), opacus],
            env={**os.environ, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for opacus in wanted
    ]
    results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * len(wanted), results
    digests = [output.strip() for output, _ in results]
    assert digests[0] == digests[2] == digests[5] != digests[1] == digests[3] == digests[4]
    assert not list((tmp_path / "cache" / "opacus").glob("making-*"))


@pytest.mark.parametrize(
    ("opacus", "words"),
    [
        ("commit:nope", "{remote} has no branch, tag or commit 'nope'"),
        (
            "commit:" + "0" * 40,
            "{remote} has no branch, tag or commit '" + "0" * 40 + "': it may have been rewritten by a force-push",
        ),
        ("commit:abcdef1", "{remote} has no branch, tag or commit 'abcdef1'"),
        ("commit:--upload-pack=touch {marker}", "is not the name of a branch, tag or commit"),
        ("commit:--output={marker}", "is not the name of a branch, tag or commit"),
        ("commit:v1.0..main", "is not the name of a branch, tag or commit"),
        ("commit:main:setup.py", "is not the name of a branch, tag or commit"),
        ("commit::/a commit", "is not the name of a branch, tag or commit"),
        ("commit:../../etc", "is not the name of a branch, tag or commit"),
        ("commit:refs/heads/*", "is not the name of a branch, tag or commit"),
        ("version:--pre", "'--pre' is not a version"),
        ("version:1.0 --index-url=x", "is not a version"),
        ("version:../1.0", "'../1.0' is not a version"),
        ("path:/nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("path:{remote}/opacus", "{remote}/opacus has no package opacus/ with an __init__.py"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(checkout, repository, tmp_path, opacus, words):
    places = {"remote": repository.folder, "marker": tmp_path / "marker"}
    assert words.format(**places) in complaint(checkout, opacus.format(**places))
    assert not (tmp_path / "marker").exists()


def test_a_commit_without_the_package(checkout, repository):
    repository.git("rm", "--quiet", "-r", "opacus")
    sha = repository.commit({})
    assert complaint(checkout, "commit:main") == f"commit {sha} has no folder opacus/"
    repository.commit({"opacus/other.py": ""})
    assert "has no package opacus/ with an __init__.py" in complaint(checkout, "commit:main")


def test_a_commit_cannot_write_outside_its_folder(checkout, repository, tmp_path):
    (repository.folder / "opacus" / "out").symlink_to(tmp_path)
    repository.commit({})
    assert "cannot be unpacked" in complaint(checkout, "commit:main")
    assert not [path for path in (tmp_path / "cache" / "opacus").iterdir() if path.name.startswith(("commit", "mak"))]


def test_no_password_in_an_error(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}/opacus"
        said = complaint(Checkout(f"http://me:secret@{address}", tmp_path), "commit:main")
    assert said.startswith(f"cannot fetch from http://{address}: ")
    assert "secret" not in said


def test_without_git_it_says_so(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert complaint(checkout, "commit:main").endswith(": git is not installed")


def test_stop_ends_a_fetch_that_hangs(tmp_path):
    before = set(psutil.Process().children(recursive=True))
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        checkout = Checkout(f"git://127.0.0.1:{hanging.getsockname()[1]}/opacus", tmp_path)
        stop, ended = threading.Event(), []

        def get():
            with pytest.raises(Interrupted):
                checkout.get("commit:main", stop)
            ended.append(True)

        thread = threading.Thread(target=get, daemon=True)
        thread.start()
        connection, _ = hanging.accept()
        with connection:
            fetching = set(psutil.Process().children(recursive=True)) - before
            assert any("fetch" in process.cmdline() for process in fetching)
            stop.set()
            until(lambda: ended)
    until(lambda: not [process for process in fetching if process.is_running()])


def test_a_folder_is_copied_so_that_later_edits_do_not_reach_it(checkout, repository):
    first = checkout.get(f"path:{repository.folder}", NEVER)
    (repository.folder / "opacus" / "__init__.py").write_text("__version__ = 'edited'")
    second = checkout.get(f"path:{repository.folder}", NEVER)
    assert (version_in(first), version_in(second)) == ("2.0", "edited")
    assert first.digest != second.digest
    assert [path.name for path in second.folder.iterdir() if path.is_dir()] == ["opacus"]


def wheel(folder, version):
    folder.mkdir()
    name = f"opacus-{version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        archive.writestr("opacus/__init__.py", f'__version__ = "{version}"\n')
        archive.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: opacus\nVersion: {version}\n")
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """What pip finds, and nothing else."""
    wheel(tmp_path / "wheels", "7.7.7")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


def test_a_version_is_the_remotes_tag_or_else_what_pip_downloads(checkout, index):
    tagged, released = checkout.get("version:v1.0", NEVER), checkout.get("version:7.7.7", NEVER)
    assert (tagged.opacus, version_in(tagged)) == ("version:1.0", "1.0")
    assert (released.opacus, version_in(released)) == ("version:7.7.7", "7.7.7")
    assert [path.name for path in released.folder.iterdir() if path.is_dir()] == ["opacus"]


def test_a_release_needs_no_remote(tmp_path, index):
    assert version_in(Checkout(str(tmp_path / "gone"), tmp_path / "cache").get("version:7.7.7", NEVER)) == "7.7.7"


def test_a_version_that_does_not_exist(checkout, repository, index):
    said = complaint(checkout, "version:9.9.9")
    assert said.startswith(f"{repository.folder} has no tag v9.9.9; pip cannot download opacus 9.9.9: ")
    assert "7.7.7" in said
