"""Traces by OpenTelemetry, sent to `CLIPWATCH_OTLP_ENDPOINT`. Without that setting spans do nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.settings import Settings


def start_tracing(settings: Settings, process: str) -> None:
    """Sends the spans of this process to the endpoint of the settings, if it is set.

    Raises:
        RuntimeError: it is set and clipwatch[otlp] is not installed.
    """
    if not settings.otlp_endpoint:
        return
    try:
        # Imported here because it is an optional extra.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise RuntimeError("CLIPWATCH_OTLP_ENDPOINT needs clipwatch[otlp]") from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"clipwatch-{process}"}))
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """A context whose duration is recorded as a span."""
    named = {f"clipwatch.{key}": value for key, value in attributes.items()}
    with trace.get_tracer("clipwatch").start_as_current_span(name, attributes=named):
        yield


class Traced:
    """Middleware that records a span of every request. Its name is the route; the path has ids in it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with trace.get_tracer("clipwatch").start_as_current_span(scope["method"]) as current:

            async def record(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = getattr(scope.get("route"), "path", None)
                    if route:
                        current.update_name(f"{scope['method']} {route}")
                    current.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, record)
