"""The files in which an arm's failures are described: their order, and that an arm cannot misuse them."""

import os

import pytest
from pydantic import ValidationError

from service.contract import ArmError, ErrorKind
from worker import error_files


def crash(message: str) -> ArmError:
    return ArmError(kind=ErrorKind.CRASH, message=message)


def test_errors_are_read_in_the_order_in_which_they_happened(tmp_path):
    error_files.write(tmp_path, 1, crash("second"), at=20.0)
    error_files.write(tmp_path, error_files.CLUSTER, crash("third"))
    error_files.write(tmp_path, 0, crash("first"), at=10.5)
    found = error_files.read(tmp_path)
    assert [failure.error.message for failure in found] == ["first", "second", "third"]
    assert [failure.at for failure in found[:2]] == [10.5, 20.0]
    names = {"error-rank0.json", "error-rank1.json", "error-rank-cluster.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(map(error_files.is_error_file, names))
    assert not error_files.is_error_file("record.jsonl")


@pytest.mark.parametrize("trap", ["link", "pipe", "folder"])
def test_what_the_arm_has_put_in_the_place_of_an_error_is_replaced(tmp_path, trap):
    folder, secret = tmp_path / "arm", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("the worker's")
    place = folder / "error-rank-watch.json"
    if trap == "link":
        place.symlink_to(secret)
    elif trap == "pipe":
        os.mkfifo(place)
    else:
        (place / "more").mkdir(parents=True)
    error_files.write(folder, error_files.SUPERVISOR, crash("too much memory"))
    assert [failure.error.message for failure in error_files.read(folder)] == ["too much memory"]
    assert secret.read_text() == "the worker's"


def test_an_error_that_cannot_be_written_is_lost(tmp_path):
    error_files.write(tmp_path / "gone", 0, crash("x"))
    assert error_files.read(tmp_path / "gone") == []


def test_a_file_that_is_no_error_is_refused(tmp_path):
    (tmp_path / "error-rank0.json").write_text('{"kind": "none of ours"}')
    with pytest.raises(ValidationError):
        error_files.read(tmp_path)
