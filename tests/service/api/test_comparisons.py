"""Submitting, listing, cancelling and running again over HTTP."""

import json
import threading
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.contract import Comparison, Mode, Verdict
from service.store import AttemptRepository, now
from tests.service.documents import result, tiny

COMPARISONS = "/api/v1/comparisons"


def body(**name):
    return json.loads(tiny(**name).model_dump_json())


def post(client, document=None, **headers):
    return client.post(COMPARISONS, json=body() if document is None else document, headers=headers)


def fields(response) -> list[str]:
    problem = response.json()
    assert set(problem) == {"title", "status", "detail", "errors"}
    assert problem["status"] == response.status_code
    return [error["field"] for error in problem["errors"]]


def test_a_comparison_is_made_and_found_at_its_location(client) -> None:
    made = post(client, body(name="first"))
    assert made.status_code == 201
    answer = client.get(made.headers["location"]).json()
    assert (answer["id"], answer["name"], answer["status"], answer["verdict"]) == (
        made.json()["id"],
        "first",
        "queued",
        None,
    )
    assert Comparison.model_validate(answer["comparison"]) == tiny("first")
    assert answer["created_at"].endswith("Z")
    assert client.get(answer["links"]["self"]).json() == answer


def test_an_empty_object_is_the_default_comparison(client) -> None:
    answer = client.get(post(client, {}).headers["location"]).json()
    assert answer["comparison"]["candidate"]["mode"] == "flash_fsdp"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"workload": {"batch_size": 0}}', "workload.batch_size"),
        ('{"workload": {"lr": NaN}}', "workload.lr"),
        ('{"workload": {"padding": NaN}}', "workload.padding"),
        ('{"workload": {"delta": -Infinity}}', "workload.delta"),
        ('{"workload": {"seed": 1e400}}', "workload.seed"),
        ('{"workload": {"model": {"hidden_size": 7}}}', "workload.model"),
        ('{"tolerances": {"loss": NaN}}', "tolerances.loss"),
        ('{"tolerances": {"loss": 1.7e308}}', "tolerances.loss"),
        ('{"candidate": {"mode": "magic"}}', "candidate.mode"),
        ('{"candidate": {"mode": "oracle", "world_size": 2}}', "candidate"),
        ('{"reference": {"mode": "none"}}', "body"),
        ('{"surprise": 1}', "surprise"),
        ('{"name": "a\\u0000b"}', "name"),
        ('{"name": "\\ud800"}', "name"),
        ("{", "body"),
        ("[]", "body"),
        ("", "body"),
    ],
)
def test_what_is_refused_is_named(client, text, field) -> None:
    response = client.post(COMPARISONS, content=text, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert fields(response) == [field]
    assert field in response.json()["detail"]


def test_a_body_that_is_too_large_is_refused_however_it_is_sent(client, settings) -> None:
    large = b'{"name": "' + b"x" * settings.max_body_bytes + b'"}'
    for content in (large, iter([large[:1000], large[1000:]])):
        response = client.post(COMPARISONS, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert fields(response) == []


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"workload": {"seed": ' + b"9" * 5000 + b"}}", b"\xff\xfe{"])
def test_a_body_that_breaks_the_parser_is_a_client_error(client, content) -> None:
    response = client.post(COMPARISONS, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    fields(response)


def test_a_repeated_request_gets_the_first_ones_comparison(client) -> None:
    first = post(client, **{"Idempotency-Key": "abc"})
    again = post(client, **{"Idempotency-Key": "abc"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    other = post(client, body(name="other"), **{"Idempotency-Key": "abc"})
    assert (other.status_code, fields(other)) == (422, ["Idempotency-Key"])
    assert len(client.get(COMPARISONS).json()["items"]) == 1


@pytest.mark.parametrize("key", ["x" * 256, "a b", ""])
def test_a_key_that_cannot_be_kept_is_refused(client, key) -> None:
    response = post(client, **{"Idempotency-Key": key})
    assert (response.status_code, fields(response)) == (422, ["Idempotency-Key"])


def test_eight_requests_at_once_with_one_key_make_one_comparison(client) -> None:
    barrier, answers = threading.Barrier(8), []

    def send() -> None:
        barrier.wait()
        answers.append(post(client, **{"Idempotency-Key": "k"}))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_following_next_visits_each_comparison_once(client) -> None:
    made = [post(client).json()["id"] for _ in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get(f"{COMPARISONS}?limit=2{cursor and '&cursor=' + cursor}").json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert seen == made[::-1]


def test_a_full_last_page_has_no_next(client) -> None:
    for _ in range(2):
        post(client)
    assert client.get(f"{COMPARISONS}?limit=2").json()["next"] is None


def test_filters_narrow_the_list(client, finish) -> None:
    ghost = post(client, body(name="Alpha")).json()
    hooks = post(client, body(name="beta", reference=Mode.HOOKS, seed=1)).json()
    finish(hooks["id"], result(Verdict.PASSED))

    def found(query: str) -> list[str]:
        return [item["name"] for item in client.get(f"{COMPARISONS}?{query}").json()["items"]]

    assert found("status=queued") == ["Alpha"]
    assert found("verdict=passed") == ["beta"]
    assert found("mode=hooks") == ["beta"]
    assert found("mode=ghost_fsdp") == ["beta", "Alpha"]
    assert found("name=ALPH") == ["Alpha"]
    assert found(f"definition={ghost['definition']}") == ["Alpha"]
    assert found("status=queued&verdict=passed") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("status=lost", "status"),
        ("cursor=!", "cursor"),
        ("cursor=LTE", "cursor"),
        ("definition=x", "definition"),
    ],
)
def test_a_query_that_means_nothing_is_named(client, query, field) -> None:
    response = client.get(f"{COMPARISONS}?{query}")
    assert (response.status_code, fields(response)) == (422, [field])


def test_cancel_of_a_queued_comparison_is_at_once_and_may_be_repeated(client) -> None:
    here = post(client).headers["location"]
    for _ in range(2):
        answer = client.post(f"{here}/cancel")
        assert answer.status_code == 200
        assert (answer.json()["status"], answer.json()["verdict"]) == ("finished", "cancelled")


def test_cancel_of_a_running_comparison_is_asked_for(client, database) -> None:
    made = post(client)
    with database.write() as session:
        AttemptRepository(session).claim(made.json()["id"], "w", now(session), timedelta(seconds=60))
    answer = client.post(f"{made.headers['location']}/cancel")
    assert (answer.status_code, answer.json()["status"], answer.json()["cancel_requested"]) == (
        200,
        "running",
        True,
    )


def test_cancel_of_a_finished_comparison_is_a_conflict(client, finish) -> None:
    made = post(client)
    finish(made.json()["id"])
    response = client.post(f"{made.headers['location']}/cancel")
    assert (response.status_code, fields(response)) == (409, [])


def test_rerun_makes_a_new_comparison_of_the_same_definition(client, finish) -> None:
    made = post(client, body(name="again"))
    finish(made.json()["id"])
    rerun = client.post(f"{made.headers['location']}/rerun", headers={"Idempotency-Key": "r"})
    assert rerun.status_code == 201
    answer = rerun.json()
    assert answer["id"] != made.json()["id"]
    assert (answer["rerun_of"], answer["definition"], answer["name"], answer["status"]) == (
        made.json()["id"],
        made.json()["definition"],
        "again",
        "queued",
    )
    again = client.get(rerun.headers["location"]).json()
    assert again["rerun_of"] == made.json()["id"]
    # Who asks for it again wants to see it run.
    assert again["comparison"] == client.get(made.headers["location"]).json()["comparison"] | {"reuse": False}
    repeat = client.post(f"{made.headers['location']}/rerun", headers={"Idempotency-Key": "r"})
    assert (repeat.status_code, repeat.json()["id"]) == (200, answer["id"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/series"),
        ("GET", "/log"),
        ("GET", "/plots/loss.png"),
        ("POST", "/cancel"),
        ("POST", "/rerun"),
    ],
)
def test_what_is_not_there_is_404_in_json(client, method, path) -> None:
    response = client.request(method, f"{COMPARISONS}/cmp_none{path}")
    assert (response.status_code, fields(response)) == (404, [])
    assert "cmp_none" in response.json()["detail"]


def test_an_unknown_path_and_method_are_problems_too(client) -> None:
    assert fields(client.get("/api/v1/nothing")) == []
    response = client.delete(COMPARISONS)
    assert (response.status_code, fields(response)) == (405, [])
    assert "POST" in response.headers["allow"] or "GET" in response.headers["allow"]


@pytest.mark.parametrize("role", ["reference", "candidate"])
def test_a_folder_as_opacus_needs_a_setting(client, settings, role) -> None:
    document = body()
    document[role]["opacus"] = "path:/home/someone/opacus"
    refused = post(client, document)
    assert refused.status_code == 422
    assert fields(refused) == [f"{role}.opacus"]
    assert "CLIPWATCH_ALLOW_OPACUS_PATHS" in refused.json()["detail"]
    allowing = settings.model_copy(update={"allow_opacus_paths": True})
    with TestClient(create_app(allowing)) as other:
        made = post(other, document)
    assert made.status_code == 201
    # Running it again is asking for it again.
    assert client.post(f"{COMPARISONS}/{made.json()['id']}/rerun").status_code == 422


@pytest.mark.parametrize("source", ["version:1.5.4", "commit:main", "installed"])
def test_released_and_committed_sources_are_taken(client, source) -> None:
    document = body()
    document["candidate"]["opacus"] = source
    assert post(client, document).status_code == 201
