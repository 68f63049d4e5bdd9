"""This host as a member of the fleet: its description, and the heartbeat that shows that it is up."""

import logging
import math
import os
import signal
import socket
from datetime import timedelta

import psutil

from service.contract import Arm, Device, Mode
from service.settings import Settings
from service.store import Database, Host, HostRepository, now
from worker.heartbeat import Heartbeat
from worker.launch import Launcher, LaunchError

log = logging.getLogger(__name__)

HOST_QUEUE = "clipwatch.host"


class HostError(LaunchError):
    """The settings of this host do not fit the host. One line."""


def describe_host(settings: Settings, launcher: Launcher) -> Host:
    """This host as the settings describe it. What they leave out is taken from the system.

    Raises:
        HostError: no interface fits the settings, or several do.
    """
    name = settings.host_name or socket.gethostname()[:63]
    nic, address = _interface(settings.host_nic, settings.host_address)
    each = launcher.resolve(Arm(mode=Mode.FLASH_FSDP))
    gpus = (each.world_size or 0) if each.device is Device.CUDA else 0
    return Host(name, address, nic, gpus, f"{HOST_QUEUE}.{name}")


def _interface(nic: str, address: str) -> tuple[str, str]:
    """A network interface, and the IPv4 address at which other hosts reach it."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        (name, each.address)
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family is socket.AF_INET and name in up
    ]
    if nic and address:
        # The address may be a public one that is translated to that of the interface.
        fit = [(name, address) for name, _ in found if name == nic]
    elif nic or address:
        fit = [pair for pair in found if nic in ("", pair[0]) and address in ("", pair[1])]
    else:
        fit = [(name, own) for name, own in found if not own.startswith("127.")]
    if fit and (nic or address or len(fit) == 1):
        return fit[0]
    there = ", ".join(f"{name} {own}" for name, own in found)
    wanted = " ".join(filter(None, (nic, address)))
    problem = f"no interface is {wanted}" if wanted else "there is not exactly one interface beside the loopback"
    raise HostError(f"{problem}: set CLIPWATCH_HOST_NIC or CLIPWATCH_HOST_ADDRESS; up are {there}")


class Membership:
    """Registers this host while the context is entered, and renews the registration from a thread.

    When another worker registers under the same name, this worker has lost the name: the process gets a SIGTERM.
    """

    def __init__(self, database: Database, host: Host, settings: Settings) -> None:
        self.host = host
        self.incarnation = ""
        self._database, self._lease = database, timedelta(seconds=settings.lease_seconds)
        # It tries for ever: a host that cannot reach the database takes no work and loses none.
        self._heartbeat = Heartbeat(
            f"host {host.name}",
            self._renew,
            seconds=settings.heartbeat_seconds,
            lease_seconds=math.inf,
            on_lost=self._end_process,
        )

    def __enter__(self) -> "Membership":
        worker = f"{socket.gethostname()}:{os.getpid()}"
        with self._database.write() as session:
            self.incarnation = HostRepository(session).register(self.host, worker, now(session), self._lease)
        log.info("host %s: %s on %s, %d GPUs", self.host.name, self.host.address, self.host.nic, self.host.gpus)
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.stop()
        try:
            with self._database.write() as session:
                HostRepository(session).leave(self.incarnation, now(session))
        except Exception as error:
            log.warning("host %s: cannot leave the fleet, its lease will expire: %s", self.host.name, error)

    def _renew(self) -> bool:
        with self._database.write() as session:
            return HostRepository(session).heartbeat(self.incarnation, now(session), self._lease)

    def _end_process(self) -> None:
        log.error("another worker has registered as host %s: this worker ends", self.host.name)
        os.kill(os.getpid(), signal.SIGTERM)
