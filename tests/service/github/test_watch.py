"""Branches that moved, and paths that decide, with real git."""

import pytest

from service.git import Changes, GitError
from service.github.watch import Watch
from tests.processes import running
from tests.service.github.conftest import A, deliver, outcomes, pull_request, push
from tests.worker.checkout.repository import Repository


@pytest.fixture
def remote(tmp_path):
    made = Repository(tmp_path / "remote")
    made.commit({"opacus/a.py": "1", "README.md": ""})
    return made


def test_a_branch_that_moved_is_checked_once(settings, database, checks, remote) -> None:
    watch = Watch(database, settings)
    remote.git("branch", "topic")
    first = remote.git("rev-parse", "HEAD")
    assert (watch.look(), watch.look()) == (1, 0)
    assert checks() == [first]
    second = remote.commit({"opacus/a.py": "2"})
    assert (watch.look(), watch.look()) == (1, 0)
    remote.git("reset", "--quiet", "--hard", first)
    assert (watch.look(), watch.look()) == (1, 0)
    assert checks() == [first, second, first]


def test_watch_once_from_the_command_line(settings, database, checks, remote, tmp_path) -> None:
    with running(["watch", "--once"], settings, tmp_path / "watch.log") as program:
        program.says("1 branches moved")
        assert program.process.wait(10) == 0
    assert checks() == [remote.git("rev-parse", "HEAD")]


def test_a_remote_that_is_gone_is_said_in_a_line(settings, tmp_path) -> None:
    with running(["watch", "--once"], settings, tmp_path / "watch.log") as program:
        assert program.process.wait(20) == 3
        program.says("does not appear to be a git repository")


@pytest.mark.parametrize(
    ("changed", "checked"),
    [("opacus/deep/b.py", True), ("README.md", False), ("opacus/tests/t.py", False)],
)
def test_only_paths_that_matter_are_checked(client, checks, database, remote, changed, checked) -> None:
    before = remote.git("rev-parse", "HEAD")
    remote.commit({changed: "new"})
    after = remote.commit({"docs/x.md": changed})
    deliver(client, "push", push(after, before=before))
    assert checks() == ([after] if checked else [])
    assert outcomes(database) == ["checked" if checked else "no path that matters has changed"]


def test_of_a_pull_request_only_what_it_changed_itself_counts(client, checks, remote) -> None:
    remote.git("checkout", "--quiet", "-b", "topic")
    head = remote.commit({"docs/y.md": "only docs"})
    remote.git("checkout", "--quiet", "main")
    base = remote.commit({"opacus/a.py": "what others did"})
    payload = pull_request(sha=head, fork=False)
    payload["pull_request"]["base"]["sha"] = base
    deliver(client, "pull_request", payload)
    assert checks() == []


def test_what_changed_since_a_commit_that_is_gone_is_unknown_and_checked(client, checks, remote, settings) -> None:
    after = remote.commit({"README.md": "new"})
    with pytest.raises(GitError):
        Changes(settings.opacus_remote, settings.cache_folder).between(A, after, since_fork=False)
    deliver(client, "push", push(after, before=A))
    assert checks() == [after]
