"""Traces, received as a collector receives them."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

otlp = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="clipwatch[otlp]")

PROGRAM = """
import sys
from fastapi.testclient import TestClient
from opentelemetry import trace
from service.app import create_app
from service.settings import Settings
from service.telemetry import span, start_tracing
settings = Settings(data_dir=sys.argv[1], otlp_endpoint=sys.argv[2])
start_tracing(settings, "api")
with TestClient(create_app(settings)) as client:
    client.get("/api/v1/comparisons/cmp_none")
with span("conduct", comparison="cmp_1"), span("arm", role="reference"):
    pass
trace.get_tracer_provider().shutdown()
"""


def test_spans_of_requests_and_of_a_comparison_reach_the_collector(tmp_path) -> None:
    """In a process of its own: OpenTelemetry's provider is set once and for all."""
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, otlp.ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), f"http://127.0.0.1:{server.server_port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    assert {path for path, _ in received} == {"/v1/traces"}
    resources = [resource for _, request in received for resource in request.resource_spans]
    spans = {span.name: span for resource in resources for scope in resource.scope_spans for span in scope.spans}
    assert {"GET /comparisons/{public_id}", "conduct", "arm"} <= {name.replace("/api/v1", "") for name in spans}
    assert spans["arm"].parent_span_id == spans["conduct"].span_id
    attributes = {one.key: one.value.string_value for one in spans["conduct"].attributes}
    assert attributes == {"clipwatch.comparison": "cmp_1"}
