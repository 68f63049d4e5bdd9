"""Joins the fleet: from then on other hosts can reserve this host, and this host can reserve others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.queue import Notifier
from service.settings import Settings
from service.store import Database
from worker.fleet.head import Fleet
from worker.fleet.membership import Membership, describe_host
from worker.fleet.node_agent import NodeAgent
from worker.launch import LocalLauncher


@dataclass(frozen=True)
class FleetMember:
    """What a worker in a fleet uses: `fleet` to reserve hosts, `agent` to run the node tasks that `queue` names."""

    fleet: Fleet
    agent: NodeAgent
    queue: str


@contextmanager
def join_fleet(database: Database, settings: Settings, launcher: LocalLauncher) -> Iterator[FleetMember | None]:
    """Be a member of the fleet while the context is entered. None if the settings ask for no fleet.

    Raises:
        HostError: the settings of this host do not fit the host.
    """
    if settings.launcher != "fleet":
        yield None
        return
    notifier = Notifier(settings)
    try:
        with Membership(database, describe_host(settings, launcher), settings) as membership:
            fleet = Fleet(database, notifier, settings, launcher, membership)
            agent = NodeAgent(database, settings, launcher, membership)
            yield FleetMember(fleet, agent, membership.host.queue)
    finally:
        notifier.close()
