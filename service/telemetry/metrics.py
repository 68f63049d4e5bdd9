"""Metrics for Prometheus. They are read from the database at each request, so that all API processes agree."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily

from service.store import Statistics


def metrics_text(statistics: Statistics) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(statistics))
    return generate_latest(registry)


class _Collector:
    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        found = self._statistics
        yield GaugeMetricFamily(
            "clipwatch_queue_oldest_seconds", "Age of the oldest queued comparison; 0 for none", found.oldest_queued
        )
        yield _labelled("clipwatch_comparisons", "Comparisons in the database", ("status",), found.by_status)
        yield _labelled("clipwatch_verdicts", "Finished comparisons in the database", ("verdict",), found.by_verdict)
        yield _labelled("clipwatch_attempts", "Attempts; expired: lost leases", ("state",), found.attempts)
        yield _labelled("clipwatch_worker_running", "Attempts that a worker runs", ("worker",), found.running)
        recent = ("suite", "mode", "verdict")
        yield _labelled("clipwatch_recent_verdicts", "Comparisons that finished in the last day", recent, found.recent)
        yield _labelled(
            "clipwatch_recent_seconds_sum",
            "Seconds from start to end of the comparisons that finished in the last day",
            recent,
            found.seconds,
        )


def _labelled(name: str, what: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
