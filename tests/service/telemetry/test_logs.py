"""What a line of the log says, and what it never says."""

import json
import logging

import pytest

from service.redact import redact
from service.settings import Settings
from service.telemetry import bound, configure_logging


@pytest.fixture
def logged(capsys):
    """Logs through a real handler and gives back the lines."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def lines(settings: Settings, write) -> list[str]:
        configure_logging(settings)
        write()
        return capsys.readouterr().err.splitlines()

    yield lines
    root.handlers[:] = before
    root.setLevel(level)


def test_json_lines_carry_the_ids_of_their_thread(logged) -> None:
    def write() -> None:
        log = logging.getLogger("service.queue")
        with bound(comparison="cmp_1"):
            with bound(attempt=2):
                log.info("took %d", 3)
            log.info("inside")
        log.info("outside")

    took, inside, outside = [json.loads(line) for line in logged(Settings(log_format="json"), write)]
    assert (took["message"], took["level"], took["logger"]) == ("took 3", "info", "service.queue")
    assert (took["comparison"], took["attempt"]) == ("cmp_1", 2)
    assert took["time"].endswith("+00:00")
    assert (inside["comparison"], "attempt" in inside) == ("cmp_1", False)
    assert "comparison" not in outside


def test_text_lines_too_and_the_level_is_a_setting(logged) -> None:
    def write() -> None:
        with bound(comparison="cmp_1", attempt=1):
            logging.getLogger("x").warning("late")
            logging.getLogger("x").info("unheard")

    assert logged(Settings(log_level="warning"), write) == ["WARNING: late [comparison=cmp_1 attempt=1]"]


SECRETS = [
    ("no answer from postgresql+psycopg://me:hunter2@db:5432/x", "hunter2"),
    ("redis://:hunter2@cache/0", "hunter2"),
    ("git: https://user:gh-pat@host/a.git failed", "gh-pat"),
    ("got cw_0123456789ab_" + "s" * 43, "s" * 43),
    ("Authorization: Bearer abcdefghijklmnop1234", "abcdefghijklmnop1234"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
@pytest.mark.parametrize("style", ["text", "json"])
def test_no_secret_is_logged_neither_in_messages_nor_in_tracebacks(logged, text, secret, style) -> None:
    def write() -> None:
        try:
            raise RuntimeError(text)
        except RuntimeError:
            logging.getLogger("x").exception("failed: %s", text)

    lines = "\n".join(logged(Settings(log_format=style), write))
    assert "RuntimeError" in lines
    assert secret not in lines


def test_what_is_no_secret_stays() -> None:
    for text in ("http://127.0.0.1:8000/a@b", "Authorization: Bearer <token>", "cw_0123456789ab", "a:b@c"):
        assert redact(text) == text
