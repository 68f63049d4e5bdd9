"""What a worker has to train on, and whose turn it is: GPUs by index, and CPU slots, one for each rank.

Who asks gets all that it asked for or waits, and nobody overtakes it: an arm that wants every GPU is not starved by
those that want one. An arm holds nothing while it waits, so no two can wait for each other.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from service.contract import Arm, Device

# A comparison has up to four arms, most of them of one rank.
SLOTS_PER_COMPARISON = 4


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> int:
    """GPUs that CUDA shows to this process."""
    # Late: torch takes seconds to import, and only this question needs it.
    import torch  # noqa: PLC0415

    return torch.cuda.device_count()


def default_slots(concurrency: int) -> int:
    """CPU slots of a worker that conducts `concurrency` comparisons at a time: enough for all arms, if it has cores."""
    return min(cores(), SLOTS_PER_COMPARISON * concurrency)


class Request:
    """A turn in the queue of a pool, then what was asked for. Leaving the context gives up the one or the other."""

    def __init__(self, pool: "Pool", count: int):
        self.count = count
        self.taken: tuple[int, ...] | None = None
        self._pool = pool

    def wait(self, seconds: float) -> bool:
        """Whether it has what it asked for, now or within so many seconds."""
        with self._pool.changed:
            return self._pool.changed.wait_for(lambda: self.taken is not None, seconds)

    @property
    def granted(self) -> bool:
        """Whether it has what it asked for. What is given back is granted to the next at the same moment."""
        with self._pool.changed:
            return self.taken is not None

    @property
    def devices(self) -> Sequence[int] | None:
        """Indices for the launcher; nothing where it need not know them."""
        return self.taken if self._pool.indexed else None

    def leave(self) -> None:
        """Harmless when it has left."""
        self._pool.give_back(self)

    def __enter__(self) -> "Request":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Pool:
    """`size` devices of one kind, handed out in the order of the requests. Safe to use from several threads."""

    def __init__(self, size: int, *, indexed: bool = False):
        self.size, self.indexed = size, indexed
        self.changed = threading.Condition()
        self._free = set(range(size))
        self._queue: deque[Request] = deque()

    @property
    def in_use(self) -> int:
        return self.size - len(self._free)

    def ask(self, count: int) -> Request:
        """A request for `count` devices.

        Raises:
            ValueError: the pool never has as many.
        """
        if not 0 < count <= self.size:
            raise ValueError(f"{count} devices were asked for, of {self.size}")
        request = Request(self, count)
        with self.changed:
            self._queue.append(request)
            self._grant()
        return request

    def give_back(self, request: Request) -> None:
        with self.changed:
            if request in self._queue:
                self._queue.remove(request)
            self._free.update(request.taken or ())
            request.taken = None
            self._grant()

    def _grant(self) -> None:
        while self._queue and self._queue[0].count <= len(self._free):
            request = self._queue.popleft()
            request.taken = tuple(sorted(self._free)[: request.count])
            self._free.difference_update(request.taken)
        self.changed.notify_all()


class DevicePool(Protocol):
    """Where arms wait for their turn."""

    def need(self, arm: Arm) -> int:
        """How many devices a resolved arm takes."""
        ...

    def ask(self, arm: Arm) -> Request:
        """A request for them."""
        ...


class OneAtATime:
    """The places of arms that run one after another, each with all that is there."""

    def __init__(self) -> None:
        self._turn = Pool(1)

    def need(self, arm: Arm) -> int:
        return 1

    def ask(self, arm: Arm) -> Request:
        return self._turn.ask(1)


class Devices:
    """The devices of a worker, which all the comparisons that it conducts share."""

    def __init__(self, slots: int, count_gpus: Callable[[], int] = visible_gpus):
        """
        Args:
            slots: ranks that train on the CPU at a time. An arm of more ranks takes all of them.
            count_gpus: asked with the first arm for a GPU.
        """
        self._slots, self._count_gpus = Pool(slots), count_gpus
        self._gpus: Pool | None = None
        self._lock = threading.Lock()

    def need(self, arm: Arm) -> int:
        assert arm.world_size is not None, "the arm must be resolved"
        return arm.world_size if arm.device is Device.CUDA else min(arm.world_size, self._slots.size)

    def ask(self, arm: Arm) -> Request:
        pool = self._gpu_pool() if arm.device is Device.CUDA else self._slots
        return pool.ask(self.need(arm))

    def _gpu_pool(self) -> Pool:
        with self._lock:
            if self._gpus is None:
                self._gpus = Pool(self._count_gpus(), indexed=True)
            return self._gpus
