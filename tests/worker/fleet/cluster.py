"""A fleet on one machine: hosts in network namespaces, a worker on each, and the servers that they share."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import make_url

from service.actions.comparisons import submit
from service.contract import Arm, Comparison, Device, Kernels, Mode
from service.queue import Notifier, Sweeper
from service.settings import Settings
from service.store import (
    AgentRow,
    ComparisonRepository,
    ComparisonRow,
    Database,
    HostRepository,
    HostStatus,
    ReservationRow,
    now,
)
from tests.namespaces import NIC, SERVERS, Namespace, entering, namespaces
from tests.processes import Program, alive, running
from tests.service.documents import tiny
from tests.waiting import until

READY = "ready."


class FleetCluster:
    """Workers by the number of their host, from 1. All of them have `settings`.

    `database_url` is where hosts reach the database. `program` is what a worker runs, a module and its arguments;
    `environment` what it has beside, by its number.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        places: list[Namespace],
        database_url: str,
        program: Sequence[str] = ("service.cli", "worker"),
        environment: Callable[[int], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self.folder, self.settings, self.places, self._database_url = folder, settings, places, database_url
        self._program, self._environment = program, environment
        self.database, self.notifier = Database(settings.database), Notifier(settings)
        self._sweeper = Sweeper(self.database, self.notifier, settings)
        self.workers = [self._started(number) for number in range(1, len(places) + 1)]

    def wait_until_ready(self) -> None:
        for worker in self.workers:
            worker.says(READY)

    def submit(self, comparison: Comparison) -> str:
        return submit(self.database, self.notifier, self.settings, comparison).row.public_id

    def row(self, public_id: str) -> ComparisonRow:
        with self.database.read() as session:
            found = ComparisonRepository(session).get(public_id)
        assert found is not None
        return found

    def training(self, public_id: str) -> bool:
        """Whether the last attempt's reference has taken a step."""
        attempts = self.row(public_id).attempts
        return any(arm.role == "reference" and arm.step for attempt in attempts[-1:] for arm in attempt.arms)

    def finished(self, public_id: str, seconds: float = 240) -> ComparisonRow:
        """The comparison when it is finished. Meanwhile this sweeps as beat does."""
        self.sweeps_until(lambda: self.row(public_id).status == "finished", seconds)
        return self.row(public_id)

    def sweeps_until(self, condition: Callable[[], bool], seconds: float) -> None:
        until(lambda: self._sweeper.sweep() and condition(), seconds)

    def agents(self, public_id: str) -> list[AgentRow]:
        ids = [attempt.id for attempt in self.row(public_id).attempts]
        with self.database.read() as session:
            return session.query(AgentRow).where(AgentRow.attempt_id.in_(ids)).order_by(AgentRow.id).all()

    def reservations(self) -> dict[int, int]:
        """The node of each host that is reserved, by the number of the host."""
        with self.database.read() as session:
            return {row.host_id: row.node for row in session.query(ReservationRow)}

    def hosts(self) -> list[HostStatus]:
        with self.database.read() as session:
            return HostRepository(session).all(now(session))

    def nodes(self) -> list[int]:
        """Numbers of the hosts that are reserved, the head first."""
        held = [sight for sight in self.hosts() if sight.node is not None]
        return [int(sight.host.name[-1]) for sight in sorted(held, key=lambda sight: sight.node or 0)]

    def ranks(self) -> list[psutil.Process]:
        """Every process that trains on any host."""
        family = [process for worker in self.workers if worker.process.poll() is None for process in worker.family()]
        return [process for process in alive(family) if _says(process, "worker.training")]

    def start_again(self, number: int) -> None:
        """Start the worker of a host whose worker has ended."""
        self.workers[number - 1].output.unlink()
        self.workers[number - 1] = self._started(number)
        self.workers[number - 1].says(READY)

    def close(self) -> None:
        families = [worker.family() for worker in self.workers if worker.process.poll() is None]
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.process.kill()
            worker.process.wait(10)
        for process in alive([process for family in families for process in family]):
            process.kill()
        self.notifier.close()
        self.database.close()

    def _started(self, number: int) -> Program:
        place = self.places[number - 1]
        own = {"cache": str(self.folder / f"cache{number}"), "host_name": f"host{number}", "host_nic": NIC}
        settings = self.settings.model_copy(update=own | {"database_url": self._database_url})
        module, *arguments = self._program
        return Program(
            arguments,
            settings,
            self.folder / f"host{number}.log",
            module=module,
            environment=self._environment(number),
            enter=place.enter,
        )


@contextmanager
def fleet_cluster(count: int, folder: Path, settings: Settings, **worker: Any) -> Iterator[FleetCluster]:
    """A fleet of `count` hosts whose workers have registered. It is removed afterwards."""
    with namespaces(count) as places, within_reach(settings.database, places, folder) as database_url:
        fleet = FleetCluster(folder, settings, places, database_url, **worker)
        try:
            fleet.wait_until_ready()
            yield fleet
        finally:
            fleet.close()


@contextmanager
def within_reach(url: str, places: list[Namespace], folder: Path) -> Iterator[str]:
    """The URL by which hosts reach a database: PostgreSQL over the cable to the servers, SQLite as a file."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        yield url
        return
    port = 5432
    socket = f"{address.query['host']}/.s.PGSQL.{address.port or port}"
    command = [SERVERS, str(port), socket]
    output, enter = folder / "relay.log", entering(places[0].switch)
    with running(command, Settings(), output, module="tests.tcp_proxy", enter=enter) as relay:
        relay.says("listening")
        yield address.set(host=SERVERS, port=port, query={}).render_as_string(hide_password=False)


def fleet_settings(folder: Path, database_url: str, broker_url: str) -> Settings:
    """Settings with which failures are noticed within seconds."""
    return Settings(
        data_dir=folder / "data",
        database_url=database_url,
        broker_url=broker_url,
        launcher="fleet",
        lease_seconds=4,
        heartbeat_seconds=0.2,
        ring_seconds=1,
        fleet_join_seconds=30,
    )


def over_hosts(nodes: int, **changes: int) -> Comparison:
    """`flash` in one process against `flash_fsdp` with one process on each of `nodes` hosts."""
    spread = Arm(mode=Mode.FLASH_FSDP, world_size=nodes, nodes=nodes, device=Device.CPU, kernels=Kernels.TORCH)
    return tiny(reference=Mode.FLASH, **changes).model_copy(update={"candidate": spread})


def over_hosts_first(nodes: int, **changes: int) -> Comparison:
    """As `over_hosts`, but the arm of several hosts runs first."""
    comparison = over_hosts(nodes, **changes)
    return comparison.model_copy(update={"reference": comparison.candidate, "candidate": comparison.reference})


def _says(process: psutil.Process, word: str) -> bool:
    try:
        return word in process.cmdline()
    except psutil.Error:
        return False
