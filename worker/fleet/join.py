"""What a worker is in a fleet: a host that others may reserve, and a head that reserves others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.queue import Notifier
from service.settings import Settings
from service.store import Database
from worker.fleet.head import Fleet
from worker.fleet.membership import Membership, describe_host
from worker.fleet.node_agent import Agents
from worker.launch import LocalLauncher


@dataclass(frozen=True)
class FleetMember:
    """`fleet` for its conductor, `agents` for the bells in its own `queue`."""

    fleet: Fleet
    agents: Agents
    queue: str


@contextmanager
def membership(database: Database, settings: Settings, launcher: LocalLauncher) -> Iterator[FleetMember | None]:
    """Takes part in the fleet while it is entered; nothing where the settings ask for no fleet.

    Raises:
        HostError: the settings of this host do not fit what it is.
    """
    if settings.launcher != "fleet":
        yield None
        return
    notifier = Notifier(settings)
    try:
        with Membership(database, describe_host(settings, launcher), settings) as here:
            fleet = Fleet(database, notifier, settings, launcher, here)
            yield FleetMember(fleet, Agents(database, settings, launcher, here), here.host.queue)
    finally:
        notifier.close()
