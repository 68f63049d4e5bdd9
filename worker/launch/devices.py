"""The devices of a worker and the queue for them: GPUs by index, and CPU slots, one for each rank.

An arm gets all devices that it asked for, or waits and holds none, so no two arms can wait for each other. The queue
is first in, first out: an arm that needs every GPU is not starved by arms that need one.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from service.contract import Arm, Device

# A comparison has up to four arms, most of them of one rank.
SLOTS_PER_COMPARISON = 4


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> int:
    """The number of GPUs that CUDA shows to this process."""
    # Late: torch takes seconds to import, and only this function needs it.
    import torch  # noqa: PLC0415

    return torch.cuda.device_count()


def gpu_names(indices: Sequence[int], environment: Mapping[str, str]) -> list[str]:
    """The names by which CUDA knows the GPUs of these indices, where `environment` may make only some visible."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return [visible.split(",")[index].strip() if visible else str(index) for index in indices]


def default_slots(concurrency: int) -> int:
    """CPU slots of a worker that conducts `concurrency` comparisons: enough for all their arms, if it has the cores."""
    return min(cores(), SLOTS_PER_COMPARISON * concurrency)


class Request:
    """A request for `count` devices: first a place in the queue, then devices. Leaving the context gives it up."""

    def __init__(self, queue: "DeviceQueue", count: int):
        self.count = count
        self.taken: tuple[int, ...] | None = None
        self._queue = queue

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`. Whether the devices have been granted."""
        with self._queue.changed:
            return self._queue.changed.wait_for(lambda: self.taken is not None, seconds)

    @property
    def granted(self) -> bool:
        """Whether the devices have been granted. Devices are granted as soon as another request gives them back."""
        with self._queue.changed:
            return self.taken is not None

    @property
    def devices(self) -> Sequence[int] | None:
        """The indices of the GPUs, for the launcher. None for CPU slots, which have no indices."""
        return self.taken if self._queue.indexed else None

    def leave(self) -> None:
        """Leave the queue, or give the devices back. Harmless when this was done already."""
        self._queue.give_back(self)

    def __enter__(self) -> "Request":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class DeviceQueue:
    """Grants `size` devices of one kind in the order of the requests. Safe to use from several threads."""

    def __init__(self, size: int, *, indexed: bool = False):
        self.size, self.indexed = size, indexed
        self.changed = threading.Condition()
        self._free = set(range(size))
        self._waiting: deque[Request] = deque()

    @property
    def in_use(self) -> int:
        return self.size - len(self._free)

    def ask(self, count: int) -> Request:
        """A request for `count` devices.

        Raises:
            ValueError: there are fewer devices than that.
        """
        if not 0 < count <= self.size:
            raise ValueError(f"{count} devices were asked for, of {self.size}")
        request = Request(self, count)
        with self.changed:
            self._waiting.append(request)
            self._grant()
        return request

    def give_back(self, request: Request) -> None:
        with self.changed:
            if request in self._waiting:
                self._waiting.remove(request)
            self._free.update(request.taken or ())
            request.taken = None
            self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0].count <= len(self._free):
            request = self._waiting.popleft()
            request.taken = tuple(sorted(self._free)[: request.count])
            self._free.difference_update(request.taken)
        self.changed.notify_all()


class DevicePool(Protocol):
    """The devices that arms share."""

    def need(self, arm: Arm) -> int:
        """How many devices a resolved arm needs."""
        ...

    def ask(self, arm: Arm) -> Request:
        """Request the devices that a resolved arm needs."""
        ...


class OneAtATime:
    """Runs arms one after another, each on all devices."""

    def __init__(self) -> None:
        self._turn = DeviceQueue(1)

    def need(self, arm: Arm) -> int:
        return 1

    def ask(self, arm: Arm) -> Request:
        return self._turn.ask(1)


class HostDevices:
    """The devices of this host, which all comparisons of a worker share."""

    def __init__(self, slots: int, count_gpus: Callable[[], int] = visible_gpus):
        """
        Args:
            slots: ranks that train on the CPU at a time. An arm of more ranks takes all slots.
            count_gpus: called when the first arm needs a GPU.
        """
        self._slots, self._count_gpus = DeviceQueue(slots), count_gpus
        self._gpus: DeviceQueue | None = None
        self._lock = threading.Lock()

    def need(self, arm: Arm) -> int:
        assert arm.world_size is not None, "the arm must be resolved"
        return arm.world_size if arm.device is Device.CUDA else min(arm.world_size, self._slots.size)

    def ask(self, arm: Arm) -> Request:
        queue = self._gpu_queue() if arm.device is Device.CUDA else self._slots
        return queue.ask(self.need(arm))

    def _gpu_queue(self) -> DeviceQueue:
        with self._lock:
            if self._gpus is None:
                self._gpus = DeviceQueue(self._count_gpus(), indexed=True)
            return self._gpus
