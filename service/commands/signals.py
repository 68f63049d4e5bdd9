"""How a command is asked to end."""

import queue
import signal
import threading


def stop_event() -> threading.Event:
    """An event that SIGINT and SIGTERM set; to be called in the main thread.

    A handler may interrupt another one, as when `make` and a terminal tell a whole group of processes, or whoever holds
    the event's lock. So it takes no lock itself: a thread of its own sets the event.
    """
    stop = threading.Event()
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen() -> None:
        heard.get()
        stop.set()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: heard.put(received))
    return stop
