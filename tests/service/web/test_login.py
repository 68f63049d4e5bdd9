"""Logging in, out, and forms that only the page they were made for can send."""

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.auth import Scope, hash_secret, new_secret, new_token
from service.settings import Settings
from service.store import Database, TokenRepository, WebSessionRepository, now
from tests.service.web.conftest import press

HTML = {"accept": "text/html"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": "required"})


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = Database(settings.database)
    yield opened
    opened.close()


def make(database: Database, scope: Scope) -> str:
    token = new_token()
    with database.write() as session:
        TokenRepository(session).add(
            token.public_id, f"<{scope}>", scope, hash_secret(token.secret), now(session), None
        )
    return token.text


def log_in(client: TestClient, token: str, next: str = "/"):
    page = client.get("/login", params={"next": next})
    form = dict(re.findall(r'name="(csrf|next)" value="([^"]*)"', page.text))
    return client.post("/login", data=form | {"token": token}, follow_redirects=False)


def test_strangers_are_led_to_the_login_and_back(client: TestClient, database: Database) -> None:
    led = client.get("/?status=finished", follow_redirects=False)
    assert (led.status_code, led.headers["location"]) == (303, "/login?next=%2F%3Fstatus%3Dfinished")
    assert client.get("/comparisons/cmp_1", follow_redirects=False).status_code == 303
    answer = log_in(client, make(database, Scope.SUBMIT), "/?status=finished")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?status=finished")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    page = client.get("/")
    assert "&lt;submit&gt;" in page.text
    assert press(client, "/comparisons").status_code == 200
    # What the page's script does: looking with the cookie works, acting through the API with it alone does not.
    assert len(client.get("/api/v1/comparisons").json()["items"]) == 1
    assert client.post("/api/v1/comparisons", json={}).status_code == 401


def test_over_tls_the_cookie_never_leaves_it(settings: Settings, database: Database) -> None:
    with TestClient(create_app(settings), base_url="https://testserver", headers=HTML) as client:
        answer = log_in(client, make(database, Scope.READ))
        assert "; secure" in answer.headers["set-cookie"].lower()
        assert "max-age" in answer.headers["strict-transport-security"]


def test_a_wrong_token_is_said_to_be_and_not_repeated(client: TestClient) -> None:
    text = new_token().text
    answer = log_in(client, text)
    assert answer.status_code == 401
    assert "unknown, revoked or expired" in answer.text
    assert text not in answer.text


def test_logging_in_changes_the_secret_and_only_its_hash_is_kept(client: TestClient, database: Database) -> None:
    client.get("/login")
    before = client.cookies["clipwatch"]
    log_in(client, make(database, Scope.READ))
    after = client.cookies["clipwatch"]
    assert after != before
    with database.read() as session:
        sessions = WebSessionRepository(session)
        assert sessions.token(hash_secret(after), now(session)) is not None
        assert sessions.token(after, now(session)) is None
        assert sessions.token(hash_secret(before), now(session)) is None


@pytest.mark.parametrize("over", ["logout", "revoked", "expired"])
def test_a_session_that_is_over_opens_nothing(client: TestClient, database: Database, over: str) -> None:
    token = make(database, Scope.READ)
    log_in(client, token)
    secret = client.cookies["clipwatch"]
    assert client.get("/", follow_redirects=False).status_code == 200
    if over == "logout":
        press(client, "/logout")
        client.cookies.set("clipwatch", secret)
    elif over == "revoked":
        with database.write() as session:
            TokenRepository(session).revoke(token.split("_")[1], now(session))
    else:
        secret = new_secret()
        with database.write() as session:
            row = TokenRepository(session).usable(token.split("_")[1], now(session))
            WebSessionRepository(session).begin(row.id, hash_secret(secret), now(session), timedelta(seconds=-1))
        client.cookies.clear()
        client.cookies.set("clipwatch", secret)
    assert client.get("/", follow_redirects=False).status_code == 303
    assert client.get("/api/v1/comparisons").status_code == 401


@pytest.mark.parametrize("action", ["/comparisons", "/comparisons/cmp_1/cancel", "/comparisons/cmp_1/rerun", "/logout"])
def test_a_form_of_another_page_is_refused(client: TestClient, database: Database, action: str) -> None:
    log_in(client, make(database, Scope.SUBMIT))
    with TestClient(client.app, headers=HTML) as other:
        theirs = re.search(r'name="csrf" value="(\w+)"', other.get("/login").text).group(1)
    for csrf in ({}, {"csrf": ""}, {"csrf": theirs}, {"csrf": "ü"}):
        assert client.post(action, data=csrf).status_code == 403
    assert client.get("/api/v1/comparisons").json()["items"] == []
    assert client.get("/", follow_redirects=False).status_code == 200


def test_who_may_only_look_has_no_buttons_and_cannot_press_them(client: TestClient, database: Database) -> None:
    log_in(client, make(database, Scope.READ))
    assert 'action="/comparisons"' not in client.get("/").text
    refused = press(client, "/comparisons")
    assert refused.status_code == 403
    assert "scope submit" in refused.text


@pytest.mark.parametrize("next", ["https://evil.example", "//evil.example", "/\\evil.example", "evil", "/a\r\nb: c"])
def test_a_login_leads_nowhere_else(client: TestClient, database: Database, next: str) -> None:
    assert log_in(client, make(database, Scope.READ), next).headers["location"] == "/"
