"""What an arm puts into its folder leads nobody astray who writes or reads there afterwards."""

import os

from worker.launch.files import append, content, replace


def test_a_link_is_neither_read_nor_written_through(tmp_path):
    secret, link = tmp_path / "secret", tmp_path / "log.txt"
    secret.write_text("the worker's")
    link.symlink_to(secret)
    assert content(link) == b""
    append(link, "added")
    assert (secret.read_text(), link.read_text(), link.is_symlink()) == ("the worker's", "added", False)
    link.unlink()
    link.symlink_to(secret)
    replace(link, "new")
    assert (secret.read_text(), content(link)) == ("the worker's", b"new")


def test_a_pipe_keeps_nobody_waiting(tmp_path):
    pipe = tmp_path / "log.txt"
    os.mkfifo(pipe)
    assert content(pipe) == b""
    append(pipe, "one ")
    append(pipe, "two")
    assert content(pipe) == b"one two"


def test_what_is_not_there_is_empty_until_it_is_written(tmp_path):
    assert content(tmp_path / "new") == b""
    append(tmp_path / "new", "words")
    assert content(tmp_path / "new") == b"words"
