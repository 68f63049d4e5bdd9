"""Who may call what."""

import re
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.auth import Scope, hash_secret, new_token
from service.settings import Settings
from service.store import TokenRepository, now
from tests.service.api.test_comparisons import COMPARISONS, body, fields, post

# What anybody may ask for. The webhook has a signature of its own.
PUBLIC = {"/healthz", "/readyz", "/docs", "/login", "/webhooks/github"}


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture
def make(database):
    """Makes a token; its text."""

    def made(scope: Scope, lasts: timedelta | None = None) -> str:
        token = new_token()
        with database.write() as session:
            moment = now(session)
            until = None if lasts is None else moment + lasts
            TokenRepository(session).add(token.public_id, scope, scope, hash_secret(token.secret), moment, until)
        return token.text

    return made


@pytest.fixture
def guarded(settings: Settings):
    with TestClient(create_app(settings.model_copy(update={"auth": "required"}))) as client:
        yield client


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_every_route_but_a_few_is_guarded(settings) -> None:
    """Deny by default: who adds a route must say who may use it, or add it to `PUBLIC` here."""
    paths = create_app(settings).openapi()["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert path in PUBLIC or operation.get("security") == [{"HTTPBearer": []}], (method, path)


@pytest.mark.parametrize(
    ("scope", "statuses"),
    [(None, (401, 401, 401)), ("read", (200, 403, 403)), ("submit", (200, 201, 403)), ("admin", (200, 201, 200))],
)
def test_a_scope_opens_what_it_says(guarded, make, scope, statuses) -> None:
    headers = bearer(make(Scope(scope))) if scope else {}
    answers = [
        guarded.get(COMPARISONS, headers=headers),
        post(guarded, **headers),
        guarded.get("/api/v1/tokens", headers=headers),
    ]
    assert tuple(answer.status_code for answer in answers) == statuses
    for answer in answers:
        if answer.status_code == 401:
            assert (fields(answer), answer.headers["www-authenticate"]) == ([], "Bearer")


def test_every_door_is_shut_to_strangers(guarded) -> None:
    """By asking, not by looking at the code: routes of the document answer 401, pages lead to the login."""
    documented = {(path, method) for path, methods in guarded.app.openapi()["paths"].items() for method in methods}
    pages = {
        (route.path, method)
        for included in guarded.app.routes
        for route in getattr(getattr(included, "original_router", None), "routes", ())
        if not route.path.startswith("/static")
        for method in route.methods
        if not (included.include_context.include_in_schema and route.include_in_schema)
    }
    assert ("/comparisons/{public_id}", "GET") in pages
    for path, method in documented | pages:
        if path in PUBLIC:
            continue
        filled = re.sub(r"{\w+}", "x", path)
        answer = guarded.request(method, filled, json={}, follow_redirects=False)
        if (path, method) in documented:
            assert answer.status_code == 401, (method, path)
        elif method == "GET":
            assert answer.headers.get("location", "").startswith("/login"), (method, path)
        else:
            assert answer.status_code == 403, (method, path)


@pytest.mark.parametrize("what", ["expired", "revoked", "other secret", "unknown", "malformed", "other scheme"])
def test_a_token_that_is_not_good_opens_nothing(guarded, database, make, what) -> None:
    text = make(Scope.ADMIN, timedelta(seconds=-1) if what == "expired" else None)
    public_id = text.split("_")[1]
    headers = bearer(text)
    if what == "revoked":
        assert guarded.get(COMPARISONS, headers=headers).status_code == 200
        with database.write() as session:
            TokenRepository(session).revoke(public_id, now(session))
    elif what == "other secret":
        headers = bearer(f"cw_{public_id}_{new_token().secret}")
    elif what == "unknown":
        headers = bearer(new_token().text)
    elif what == "malformed":
        headers = bearer(text + "x")
    elif what == "other scheme":
        headers = {"Authorization": f"Basic {text}"}
    answer = guarded.get(COMPARISONS, headers=headers)
    assert answer.status_code == 401
    assert text not in answer.text


def test_only_the_hash_of_a_secret_is_kept_and_its_use_is_noted(guarded, database, make) -> None:
    text = make(Scope.READ)
    guarded.get(COMPARISONS, headers=bearer(text))
    with database.read() as session:
        (row,) = TokenRepository(session).all()
        assert row.last_used_at is not None
        assert text.split("_", 2)[2] not in str(vars(row))


def test_administrators_make_and_revoke_tokens(guarded, make) -> None:
    admin = bearer(make(Scope.ADMIN))
    made = guarded.post("/api/v1/tokens", json={"name": "CI", "scope": "submit"}, headers=admin)
    assert made.status_code == 201
    theirs = bearer(made.json()["token"])
    assert post(guarded, **theirs).status_code == 201
    assert "token" not in guarded.get("/api/v1/tokens", headers=admin).json()[1]
    assert guarded.delete(f"/api/v1/tokens/{made.json()['id']}", headers=admin).status_code == 200
    assert post(guarded, **theirs).status_code == 401
    assert guarded.delete("/api/v1/tokens/none", headers=admin).status_code == 404


def test_where_nobody_is_asked_nobody_makes_tokens_for_later(client) -> None:
    assert client.post("/api/v1/tokens", json={"name": "later", "scope": "admin"}).status_code == 403


def test_a_public_service_shows_and_does_nothing(settings) -> None:
    public = settings.model_copy(update={"auth": "required", "public_read": True})
    with TestClient(create_app(public)) as client:
        assert client.get(COMPARISONS).status_code == 200
        assert "Submit the default" not in client.get("/").text
        assert post(client).status_code == 401


@pytest.mark.parametrize(
    ("host", "auth", "required"),
    [
        ("127.0.0.1", "auto", False),
        ("::1", "auto", False),
        ("localhost", "auto", False),
        ("0.0.0.0", "auto", True),
        ("::", "auto", True),
        ("clipwatch.example", "auto", True),
        ("0.0.0.0", "off", False),
        ("127.0.0.1", "required", True),
    ],
)
def test_only_a_loopback_address_is_open_by_itself(host, auth, required) -> None:
    assert Settings(host=host, auth=auth).auth_required is required


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "192.0.2.1:8000"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"Forwarded": "for=192.0.2.1"},
    ],
)
def test_an_open_service_answers_this_machine_alone(settings, client, headers) -> None:
    for path in ("/healthz", COMPARISONS, "/"):
        assert client.get(path, headers=headers).status_code == 421
    assert client.get(COMPARISONS, headers={"Host": "127.0.0.1:8000"}).status_code == 200
    # A delivery proves by its signature where it comes from.
    assert client.post("/webhooks/github", headers=headers).status_code != 421
    with TestClient(create_app(settings.model_copy(update={"auth": "off"}))) as open_to_all:
        assert open_to_all.get(COMPARISONS, headers=headers).status_code == 200


def test_another_site_cannot_have_a_browser_act(client) -> None:
    assert client.post(COMPARISONS, json=body(), headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post(COMPARISONS, json=body(), headers={"Sec-Fetch-Site": "same-origin"}).status_code == 201


def test_who_asks_too_often_waits_and_others_do_not(settings, make) -> None:
    slow = settings.model_copy(update={"auth": "required", "rate_limit": "3/minute"})
    one, other = bearer(make(Scope.READ)), bearer(make(Scope.READ))
    with TestClient(create_app(slow)) as client:
        statuses = [client.get(COMPARISONS, headers=one).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        refused = client.get(COMPARISONS, headers=one)
        assert fields(refused) == []
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert client.get(COMPARISONS, headers=other).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_guessing_is_stopped_before_the_database_is_asked(guarded, make) -> None:
    statuses = [guarded.get(COMPARISONS, headers=bearer(new_token().text)).status_code for _ in range(21)]
    assert statuses == [401] * 20 + [429]
    assert guarded.get(COMPARISONS, headers=bearer(make(Scope.READ))).status_code == 429


def test_processes_count_together_in_redis_and_alone_when_it_is_gone(settings, make, redis_url) -> None:
    shared = settings.model_copy(update={"auth": "required", "rate_limit": "3/minute"})
    headers = bearer(make(Scope.READ))
    for url, passed in ((redis_url.replace("redis+socket", "redis+unix"), 3), ("redis://127.0.0.1:1/0", 4)):
        there = shared.model_copy(update={"rate_limit_url": url})
        with TestClient(create_app(there)) as one, TestClient(create_app(there)) as two:
            statuses = [client.get(COMPARISONS, headers=headers).status_code for client in (one, two) for _ in range(2)]
        assert statuses.count(200) == passed, url


def test_every_answer_tells_browsers_what_not_to_do(client) -> None:
    for path in (COMPARISONS, "/", "/healthz", "/nothing", "/static/clipwatch.css", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY", path
        assert "default-src 'none'" in headers["content-security-policy"], path


def test_no_error_repeats_a_password(tmp_path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/db"
    broker = "redis://:hunter2@127.0.0.1:1/0"
    with TestClient(create_app(Settings(data_dir=tmp_path, database_url=url, broker_url=broker))) as client:
        for path in ("/readyz", COMPARISONS, "/"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "hunter2" not in answer.text + str(answer.headers)
