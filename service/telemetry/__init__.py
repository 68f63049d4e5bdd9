"""Telemetry: logs with the ids of the comparison and attempt that they are about, metrics, and optional traces."""

from service.telemetry.logs import bound, configure_logging
from service.telemetry.metrics import metrics_text
from service.telemetry.traces import Traced, span, start_tracing

__all__ = ["Traced", "bound", "configure_logging", "metrics_text", "span", "start_tracing"]
