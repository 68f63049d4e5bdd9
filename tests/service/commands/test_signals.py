"""A program that gets many signals to end at once ends."""

import signal
import subprocess
import sys
from itertools import cycle, islice

import pytest

SERVING = """
import sys
from service.commands.signals import stop_event

stop = stop_event()
print("ready", flush=True)
while not stop.wait(0.01):
    pass
print("leaving", flush=True)
while sys.stdin.read(1):
    pass
"""


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGTERM]])
def test_signals_at_once(numbers):
    with subprocess.Popen([sys.executable, "-c", SERVING], stdin=-1, stdout=-1, text=True) as program:
        try:
            assert program.stdout.readline() == "ready\n"
            for number in islice(cycle(numbers), 3000):
                program.send_signal(number)
            program.stdin.close()
            assert program.wait(10) == 0
            assert program.stdout.read() == "leaving\n"
        finally:
            program.kill()
