"""Signals that ask a command to end."""

import queue
import signal
import threading


def stop_event() -> threading.Event:
    """An event that SIGINT and SIGTERM set. To be called in the main thread.

    A signal handler may interrupt code that holds the event's lock, or another run of itself (`make` and the terminal
    both signal a whole group of processes). So the handler takes no lock: a thread of its own sets the event.
    """
    stop = threading.Event()
    received_signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen() -> None:
        received_signals.get()
        stop.set()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received_signals.put(number))
    return stop
