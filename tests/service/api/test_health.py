"""Health, readiness, and errors of what lies beneath."""

from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from service.store import Database, downgrade
from tests.service.api.test_comparisons import fields, post


def test_a_healthy_service_is_ready(client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (
        200,
        {"database": "ok", "migrations": "ok", "broker": "ok"},
    )


def test_without_tables_it_lives_but_is_not_ready(client, settings) -> None:
    database = Database(settings.database)
    downgrade(database, "base")
    database.close()
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "clipwatch migrate" in ready.json()["checks"]["migrations"]


def test_a_dead_broker_makes_it_unready_but_a_comparison_is_taken(tmp_path, database_url) -> None:
    settings = Settings(data_dir=tmp_path, database_url=database_url, broker_url="redis://127.0.0.1:1/0")
    with TestClient(create_app(settings)) as client:
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "refused" in ready.json()["checks"]["broker"]
        assert post(client).status_code == 201


def test_a_dead_database_is_503_and_says_so(tmp_path) -> None:
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    with TestClient(create_app(Settings(data_dir=tmp_path, database_url=url))) as client:
        assert client.get("/readyz").json()["checks"]["database"] != "ok"
        response = client.get("/api/v1/comparisons")
        assert (response.status_code, fields(response)) == (503, [])
        assert response.headers["retry-after"]


def test_every_route_documents_its_errors(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        if not path.startswith("/api/"):
            continue
        for method, operation in methods.items():
            documented = set(operation["responses"])
            assert {"422", "503"} <= documented, (method, path)
            assert {"401", "403", "429"} <= documented, (method, path)
            assert ("404" in documented) == ("{" in path), (method, path)
            for status in documented - {"200", "201"}:
                problem = operation["responses"][status]["content"]["application/json"]["schema"]
                assert problem == {"$ref": "#/components/schemas/Problem"}, (method, path, status)
    assert client.get("/docs").status_code == 200
