"""Links and pipes that an arm puts into its folder do not mislead the worker."""

import os

from worker.arm_files import append, read_end, replace


def test_a_link_is_neither_read_nor_written_through(tmp_path):
    secret, link = tmp_path / "secret", tmp_path / "log.txt"
    secret.write_text("the worker's")
    link.symlink_to(secret)
    assert read_end(link) == b""
    append(link, "added")
    assert (secret.read_text(), link.read_text(), link.is_symlink()) == ("the worker's", "added", False)
    link.unlink()
    link.symlink_to(secret)
    replace(link, "new")
    assert (secret.read_text(), read_end(link)) == ("the worker's", b"new")


def test_a_pipe_does_not_block(tmp_path):
    pipe = tmp_path / "log.txt"
    os.mkfifo(pipe)
    assert read_end(pipe) == b""
    append(pipe, "one ")
    append(pipe, "two")
    assert read_end(pipe) == b"one two"


def test_a_missing_file_is_empty_until_it_is_written(tmp_path):
    assert read_end(tmp_path / "new") == b""
    append(tmp_path / "new", "words")
    assert read_end(tmp_path / "new") == b"words"
