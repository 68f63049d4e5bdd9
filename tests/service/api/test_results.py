"""Gates, series, plots, log and history over HTTP."""

from datetime import timedelta

import pytest

from service.artifacts import ArtifactFolder
from service.contract import Verdict
from service.store import AttemptRepository, LogRepository, now
from tests.service.api.test_comparisons import body, fields, post
from tests.service.documents import result


@pytest.fixture
def finished(client, finish) -> str:
    made = post(client)
    finish(made.json()["id"])
    return made.headers["location"]


def test_a_finished_comparison_has_gates_findings_attempts_and_links(client, finished) -> None:
    answer = client.get(finished).json()
    assert (answer["status"], answer["verdict"]) == ("finished", "failed")
    assert [(gate["metric"], gate["passed"], gate["observed"], gate["first_step"]) for gate in answer["gates"]] == [
        ("loss", False, "NaN", 2),
        ("parameter_norm", True, 0.1 + 0.2, None),
        ("epsilon", True, "Infinity", None),
        ("grad_norms", False, None, None),
        ("oracle_clipped_grad", False, 1.0, 1),
    ]
    assert {gate["subject"] for gate in answer["gates"][:4]} == {"comparison"}
    assert (answer["gates"][4]["subject"], answer["gates"][4]["parameter"]) == ("candidate", "blocks.0.mlp_norm.weight")
    assert [(one["subject"], one["step"], one["parameter"], one["rank"]) for one in answer["findings"]] == [
        ("reference", 2, "head.weight", 1)
    ]
    (attempt,) = answer["attempts"]
    assert (attempt["number"], attempt["state"], attempt["verdict"]) == (1, "finished", "failed")
    reference = attempt["arms"][0]
    assert [arm["reused_from"] for arm in attempt["arms"]] == ["cmp_earlier/2", None]
    assert (reference["role"], reference["step"], reference["num_steps"]) == ("reference", 2, 2)
    assert (reference["start"]["versions"]["torch"], reference["end"]["epsilon"]) == ("2.13.0", "Infinity")
    assert answer["plots"] == [
        {"name": "loss.png", "media_type": "image/png", "size": 3, "url": f"{finished}/plots/loss.png"}
    ]


def test_series_have_every_metric_and_the_sample_norms_on_request(client, finished) -> None:
    answer = client.get(f"{finished}/series").json()
    assert answer["attempt"] == 1
    assert answer["arms"]["reference"]["metrics"]["loss"] == [1.5, "NaN"]
    assert answer["arms"]["reference"]["metrics"]["step"] == [1, 2]
    assert answer["arms"]["reference"]["grad_norms"] is None
    assert answer["arms"]["candidate"] == {"metrics": {}, "grad_norms": None}
    full = client.get(f"{finished}/series?grad_norms=true").json()
    assert full["arms"]["reference"]["grad_norms"] == [[0.5, "NaN", "Infinity", 2.0]] * 2


def test_a_queued_comparison_has_no_series_and_no_log_yet(client) -> None:
    here = post(client).headers["location"]
    assert client.get(f"{here}/series").json()["arms"] == {}
    assert client.get(f"{here}/log").json() == {"chunks": [], "next": 0, "finished": False}
    assert client.get(f"{here}/log?format=text").text == ""


def test_a_plot_comes_with_its_media_type_and_may_not_run_scripts(client, settings, finished, tmp_path) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(b"PNG")
    ArtifactFolder(settings).put(picture, "attempts/1/loss.png")
    response = client.get(f"{finished}/plots/loss.png")
    assert (response.status_code, response.content, response.headers["content-type"]) == (200, b"PNG", "image/png")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["other.png", "..%2F..%2Fclipwatch.db", "%2e%2e/%2e%2e/clipwatch.db", "loss.png"])
def test_a_plot_that_is_not_there_is_404(client, finished, name) -> None:
    response = client.get(f"{finished}/plots/{name}")
    assert (response.status_code, fields(response)) == (404, [])


def test_the_log_can_be_followed_to_its_end(client, database, settings) -> None:

    made = post(client)
    here = made.headers["location"]

    def write(claim, role, text) -> None:
        with database.write() as session:
            LogRepository(session).append(claim.attempt_id, [(role, text)], settings.max_log_chars)

    with database.write() as session:
        claim = AttemptRepository(session).claim(made.json()["id"], "w", now(session), timedelta(seconds=60))
    write(claim, "reference", "one\n")
    first = client.get(f"{here}/log").json()
    assert [(chunk["attempt"], chunk["role"], chunk["text"]) for chunk in first["chunks"]] == [
        (1, "reference", "one\n")
    ]
    assert first["finished"] is False
    write(claim, "candidate", "two ε\n")
    with database.write() as session:
        AttemptRepository(session).record(claim.token, result(), now(session))
    second = client.get(f"{here}/log?after={first['next']}").json()
    assert [chunk["text"] for chunk in second["chunks"]] == ["two ε\n"]
    assert second["finished"] is True
    assert client.get(f"{here}/log?after={second['next']}").json()["chunks"] == []
    text = client.get(f"{here}/log?format=text")
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.text == "=== attempt 1: reference\none\n=== attempt 1: candidate\ntwo ε\n"


def test_the_text_of_a_long_log_is_whole_and_says_what_was_left_out(client, database, settings) -> None:

    made = post(client)
    with database.write() as session:
        claim = AttemptRepository(session).claim(made.json()["id"], "w", now(session), timedelta(seconds=60))
        LogRepository(session).append(claim.attempt_id, [("reference", f"{n:09}\n") for n in range(1000)], 8_000)
    text = client.get(f"{made.headers['location']}/log?format=text").text
    lines = text.splitlines()
    assert lines[0] == "=== attempt 1: reference"
    assert [line for line in lines if line.startswith("[")] == ["[… 2000 characters left out …]"]
    assert [int(line) for line in lines if line.isdigit()] == [*range(400), *range(600, 1000)]


def test_history_is_that_of_one_definition_newest_first_and_paged(client, finish) -> None:
    made = [post(client).json() for _ in range(3)]
    other = post(client, body(seed=7)).json()
    for one, verdict in zip([*made, other], ["passed", "failed", "passed", "passed"], strict=True):
        finish(one["id"], result(Verdict(verdict)))
    queued = post(client).json()
    address = f"/api/v1/history?definition={made[0]['definition']}&limit=2"
    first = client.get(address).json()
    second = client.get(f"{address}&cursor={first['next']}").json()
    items = first["items"] + second["items"]
    assert [item["id"] for item in items] == [one["id"] for one in reversed(made)]
    assert [item["verdict"] for item in items] == ["passed", "failed", "passed"]
    assert second["next"] is None
    assert queued["id"] not in [item["id"] for item in items]
    assert len(items[0]["gates"]) == 5
    assert items[0]["versions"] == {"reference": {"torch": "2.13.0", "opacus": "1.6.0"}}


def test_history_needs_a_definition(client) -> None:
    response = client.get("/api/v1/history")
    assert (response.status_code, fields(response)) == (422, ["definition"])
