"""This host as a member of a fleet: what it is, and the heartbeat that says that it is there."""

import logging
import os
import signal
import socket
import threading
from datetime import timedelta

import psutil

from service.contract import Arm, Device, Mode
from service.settings import Settings
from service.store import Database, Host, HostRepository, now
from worker.launch import Launcher

log = logging.getLogger(__name__)

HOST_QUEUE = "clipwatch.host"


class HostError(ValueError):
    """The settings of this host do not fit what it is. One line."""


def describe_host(settings: Settings, launcher: Launcher) -> Host:
    """This host: what the settings say of it, and what they leave out as the system has it.

    Raises:
        HostError: there is no such interface, or the one to take cannot be known.
    """
    name = settings.host_name or socket.gethostname()[:63]
    nic, address = _interface(settings.host_nic, settings.host_address)
    each = launcher.resolve(Arm(mode=Mode.FLASH_FSDP))
    gpus = (each.world_size or 0) if each.device is Device.CUDA else 0
    return Host(name, address, nic, gpus, f"{HOST_QUEUE}.{name}")


def _interface(nic: str, address: str) -> tuple[str, str]:
    """An interface and the IPv4 address that others reach it by."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        (name, each.address)
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family is socket.AF_INET and name in up
    ]
    if nic and address:
        fit = [(name, address) for name, _ in found if name == nic]  # another address may be translated to ours
    elif nic or address:
        fit = [pair for pair in found if nic in ("", pair[0]) and address in ("", pair[1])]
    else:
        fit = [(name, own) for name, own in found if not own.startswith("127.")]
    if fit and (nic or address or len(fit) == 1):
        return fit[0]
    there = ", ".join(f"{name} {own}" for name, own in found)
    wanted = " ".join(filter(None, (nic, address))) or "one that goes without saying"
    raise HostError(f"no interface that is {wanted}: set CLIPWATCH_HOST_NIC or CLIPWATCH_HOST_ADDRESS; up are {there}")


class Membership:
    """Registers this host while it is entered, and renews it from a thread.

    When another worker registers under the same name, this one has lost it: the process is told to end.
    """

    def __init__(self, database: Database, host: Host, settings: Settings) -> None:
        self.host = host
        self.incarnation = ""
        self._database, self._seconds = database, settings.heartbeat_seconds
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="host", daemon=True)

    def __enter__(self) -> "Membership":
        worker = f"{socket.gethostname()}:{os.getpid()}"
        with self._database.write() as session:
            self.incarnation = HostRepository(session).register(self.host, worker, now(session), self._lease)
        log.info("host %s: %s on %s, %d GPUs", self.host.name, self.host.address, self.host.nic, self.host.gpus)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        try:
            with self._database.write() as session:
                HostRepository(session).leave(self.incarnation, now(session))
        except Exception as error:
            log.warning("host %s: its lease ends by itself: %s", self.host.name, error)

    def _keep(self) -> None:
        while not self._closed.wait(self._seconds):
            try:
                with self._database.write() as session:
                    kept = HostRepository(session).heartbeat(self.incarnation, now(session), self._lease)
            except Exception as error:
                log.warning("host %s: no heartbeat: %s", self.host.name, error)
                continue
            if not kept:
                log.error("another worker has registered as host %s: this one ends", self.host.name)
                os.kill(os.getpid(), signal.SIGTERM)
                return
