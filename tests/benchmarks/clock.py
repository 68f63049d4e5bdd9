"""Times on a CUDA device. Every time is taken turn by turn with a bf16 matrix product of 8192³, so that a ratio of the
two says nothing about the clocks that the card's power and heat allowed at that moment."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SIDE = 8192


class Time(NamedTuple):
    """Milliseconds of one call on the device, and on the host where it queues the work; the ceiling's TFLOP/s then."""

    device: float
    host: float
    ceiling: float

    def tflops(self, flops: float) -> float:
        return flops / self.device / 1e9


class Clock:
    """Measures calls against the ceiling. The L2 is not flushed: calls repeat over the same inputs."""

    def __init__(self) -> None:
        self._left = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
        self._right = torch.randn_like(self._left)

    def ceiling(self) -> float:
        """TFLOP/s of one bf16 product right now."""
        return 2 * SIDE**3 / _elapsed(lambda: self._left @ self._right) / 1e9

    def ceiling_fp32(self) -> float:
        """TFLOP/s of float32 products without tf32, the median of five."""
        left, right = self._left.float(), self._right.float()
        return 2 * SIDE**3 / statistics.median(_elapsed(lambda: left @ right) for _ in range(5)) / 1e9

    def time(self, call: Callable[[], object], rounds: int = 15) -> Time:
        """Medians over `rounds`, of calls in a CUDA graph: as many as take about two milliseconds."""
        call()
        torch.cuda.synchronize()
        host = statistics.median(_host(call) for _ in range(20))
        repeat = max(1, round(2 / max(_elapsed(call), 1e-3)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeat):
                call()
        graph.replay()
        ceilings, times = [], []
        for _ in range(rounds):
            ceilings.append(self.ceiling())
            times.append(_elapsed(graph.replay) / repeat)
        return Time(statistics.median(times), host, statistics.median(ceilings))


def _elapsed(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _host(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
