"""What the pages say, as a browser without JavaScript gets them."""

import math
import re
from html import unescape

import pytest
from fastapi.testclient import TestClient

from service.contract import GATES as ALL_GATES
from service.contract import Arm, Comparison, Mode, Subject, Verdict, Workload
from tests.service.web.conftest import PNG, Conductor, gate, press, submit

NASTY = "<script>alert('1')</script> & \"co\""
GATES = [
    gate("steps", True, 0.0, 0.0),
    gate("loss", False, 2e-4, 1e-4, 7),
    gate("parameter_norm", True, 1e-6, 1e-4),
    gate("clipped_grad_norm", False, math.nan, 1e-3, 8),
]


def text_of(html: str) -> str:
    """The words of a page, with one space between them."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def title_of(html: str) -> str:
    return unescape(re.search(r"<title>(.*?)</title>", html, re.S).group(1))


def get(client: TestClient, url: str, status: int = 200) -> str:
    response = client.get(url)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    return response.text


def test_an_empty_list_says_what_to_do(client: TestClient) -> None:
    html = get(client, "/")
    assert "No comparison was submitted yet. Submit the default comparison above, or POST" in text_of(html)
    assert 'action="/comparisons"' in html


def test_the_list_shows_arms_workload_state_and_name(client: TestClient, conductor: Conductor) -> None:
    first = submit(client, Comparison(name="nightly"))
    conductor.finish(conductor.claim(first), Verdict.FAILED, GATES)
    second = submit(client, Comparison(workload=Workload(noise_multiplier=0)))
    html = get(client, "/")
    assert html.index(second) < html.index(first)
    text = text_of(html)
    assert "… queued flash vs flash_fsdp 32 steps of 32 × 64 tokens · 3 layers of 512 · σ 0 just now" in text
    assert "✕ failed flash × 1 vs flash_fsdp × 3 nightly" in text
    assert 'data-refresh="2"' in html
    conductor.finish(conductor.claim(second), Verdict.PASSED)
    assert "data-refresh" not in get(client, "/")


def test_filters_are_kept_in_the_url_and_through_pages(client: TestClient, conductor: Conductor) -> None:
    for number in range(27):
        submit(client, Comparison(name=f"run {number}"))
    ghost = submit(client, Comparison(reference=Arm(mode=Mode.GHOST)))
    conductor.finish(conductor.claim(ghost), Verdict.PASSED)

    def ids(html: str) -> list[str]:
        return re.findall(r'href="/comparisons/(cmp_\w+)"', html)

    assert ids(get(client, "/?status=finished&verdict=passed&mode=ghost&name=&definition=&cursor=")) == [ghost]
    assert ids(get(client, "/?verdict=failed")) == []
    assert ids(get(client, "/?name=RUN+26"))[0] != ghost
    page_one = get(client, "/?status=queued&name=run")
    assert "<option selected>queued</option>" in page_one
    assert 'value="run"' in page_one
    following = unescape(re.search(r'href="([^"]+)" rel="next"', page_one).group(1))
    assert "status=queued" in following
    assert "name=run" in following
    page_two = get(client, following)
    assert len(ids(page_one)) == 25
    assert len(ids(page_two)) == 2
    assert not set(ids(page_one)) & set(ids(page_two))
    assert 'rel="next"' not in page_two
    assert 'href="/?status=queued&amp;name=run">Newest' in page_two


def test_a_failed_comparison_says_where_it_broke(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client)
    conductor.finish(conductor.claim(public_id), Verdict.FAILED, GATES)
    html = get(client, f"/comparisons/{public_id}")
    assert title_of(html) == "✕ failed: flash × 1 vs flash_fsdp × 3 · Clipwatch"
    text = text_of(html)
    rows = [text_of(row) for row in re.findall(r"<tr.*?</tr>", html, re.S)]
    gates = [row for row in rows if re.match(r"(steps|loss|parameter_norm|clipped_grad_norm) ", row)]
    assert gates[0] == "loss loss broke <here>. ✕ failed 0.0002 2 × limit 0.0001 7"
    assert gates[1] == "clipped_grad_norm clipped_grad_norm broke <here>. ✕ failed NaN 0.001 8"
    assert gates[2].startswith("steps number of steps ✓ passed 0")
    assert gates[3] == "parameter_norm norm of all parameters, each step ✓ passed 1e-06 1.0% of limit 0.0001 –"
    assert "Look at <b>this</b>" in text
    assert "parameters 14 640 138 14 640 138" in text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "arm flash × 1 flash_fsdp × 3 oracle × 1" in text
    assert "kernels torch torch torch" in text
    assert "opacus 1.6.0" in text
    assert "training time 1 min 15 s 1 min 15 s" in text
    assert "ε 1.5 at δ = 1e-05" in text


def test_an_arm_that_was_not_run_leads_to_the_comparison_that_ran_it(client: TestClient, conductor: Conductor) -> None:
    first, second = submit(client), submit(client)
    conductor.finish(conductor.claim(first), Verdict.PASSED)
    assert "reused from" not in get(client, f"/comparisons/{first}")
    conductor.finish(conductor.claim(second), Verdict.PASSED, reused={"candidate": f"{first}/1"})
    html = get(client, f"/comparisons/{second}")
    assert f'<a href="/comparisons/{first}">{first}</a>, attempt 1' in html


def test_gates_are_grouped_by_what_they_are_about(client: TestClient, conductor: Conductor) -> None:
    about = {"subject": Subject.CANDIDATE, "parameter": "blocks.0.<norm>"}
    gates = [*GATES[2:3], gate("oracle_clipped_grad", False, 1.0, 1e-4, 1, **about)]
    gates.append(gate("epsilon_oracle", True, 0.0, 0.01, subject=Subject.REFERENCE))
    public_id = submit(client)
    conductor.finish(conductor.claim(public_id), Verdict.FAILED, gates)
    html = get(client, f"/comparisons/{public_id}")
    headings = [text_of(row) for row in re.findall(r'<tr class="group">.*?</tr>', html, re.S)]
    assert headings == [
        "Candidate against oracle and theory",
        "Candidate against reference",
        "Reference against oracle and theory",
    ]
    assert "oracle_clipped_grad blocks.0.<norm> oracle_clipped_grad broke <here>." in text_of(html)
    assert "step 1 · parameter blocks.0.<norm>" in text_of(html)
    assert "ε against Google's dp-accounting" in text_of(html)


def test_every_gate_that_passed_shows_its_title(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client)
    conductor.finish(conductor.claim(public_id), Verdict.PASSED, [gate(name, True, 0.0, 1.0) for name in ALL_GATES])
    text = text_of(get(client, f"/comparisons/{public_id}"))
    for name, info in ALL_GATES.items():
        assert f"{name} {info.title}" in text


def test_plots_are_shown_and_lead_to_the_svg(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client)
    conductor.finish(conductor.claim(public_id), Verdict.PASSED, GATES[:1])
    html = get(client, f"/comparisons/{public_id}")
    (source,) = re.findall(r'<img src="([^"]+)"', html)
    assert client.get(source).content == PNG
    assert f'<a href="/api/v1/comparisons/{public_id}/plots/loss.svg"><img' in html


def test_infinite_epsilon_reads_as_such(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client)
    conductor.finish(conductor.claim(public_id), Verdict.PASSED, GATES[:1], epsilon=math.inf)
    assert "ε ∞ at δ = 1e-05" in text_of(get(client, f"/comparisons/{public_id}"))


def test_the_history_strip_is_in_order_and_marks_this_run(client: TestClient, conductor: Conductor) -> None:
    verdicts = [Verdict.PASSED, Verdict.ERROR, Verdict.FAILED]
    ids = [submit(client) for _ in verdicts]
    for public_id, verdict in zip(ids, verdicts, strict=True):
        conductor.finish(conductor.claim(public_id), verdict)
    other = submit(client, Comparison(workload=Workload(seed=1)))
    conductor.finish(conductor.claim(other), Verdict.PASSED)
    html = get(client, f"/comparisons/{ids[1]}")
    squares = re.findall(r'class="square (\w+)" href="/comparisons/(\w+)"( aria-current="page")?', html)
    assert squares == [
        ("passed", ids[0], ""),
        ("error", ids[1], ' aria-current="page"'),
        ("failed", ids[2], ""),
    ]


def test_names_logs_and_workers_are_text_never_markup(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client, Comparison(name=NASTY))
    conductor.beat(conductor.claim(public_id), "reference", 3, log=f"step 3 {NASTY}\n")
    page, listing = get(client, f"/comparisons/{public_id}"), get(client, "/")
    searched = get(client, "/?name=%3Cscript%3E%22")
    for html in (page, listing, searched):
        assert "<script>" not in html
    assert NASTY in text_of(listing)
    assert f"step 3 {NASTY}" in text_of(page)
    assert "worker <1>" in text_of(page)
    assert 'value="&lt;script&gt;&#34;"' in searched


def test_no_inline_scripts_or_styles_and_nothing_from_elsewhere(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client)
    conductor.finish(conductor.claim(public_id), Verdict.FAILED, GATES)
    for url in ("/", f"/comparisons/{public_id}", "/nowhere"):
        html = client.get(url).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?! src=\"/static/)", html)
        assert not re.search(r'(src|href|action)="(?!/|#)', html)
        for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', html):
            assert client.get(asset).status_code == 200


def test_progress_log_and_cancel_while_it_runs(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client)
    waiting = get(client, f"/comparisons/{public_id}")
    assert title_of(waiting).startswith("… queued: flash vs flash_fsdp")
    assert "Waiting for a worker" in text_of(waiting)
    claim = conductor.claim(public_id)
    conductor.beat(claim, "reference", 5, log="hello\n")
    conductor.beat(claim, "candidate", 2, log="other\n", role="candidate")
    html = get(client, f"/comparisons/{public_id}")
    text = text_of(html)
    assert title_of(html).startswith("▶ running")
    assert "reference 5 of 32 steps candidate 2 of 32 steps" in text
    assert '<progress id="progress-reference" value="5" max="32">' in html
    assert "attempt 1: reference hello attempt 1: candidate other" in text
    response = press(client, f"/comparisons/{public_id}/cancel", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, f"/comparisons/{public_id}")
    assert conductor.beat(claim, "reference", 6) is True
    assert "<button disabled>Cancelling" in get(client, f"/comparisons/{public_id}")
    conductor.finish(claim, Verdict.CANCELLED)
    assert "/cancel" not in re.sub(r"/api/\S+", "", get(client, f"/comparisons/{public_id}"))


def test_a_long_log_shows_its_end(client: TestClient, conductor: Conductor) -> None:
    public_id = submit(client)
    claim = conductor.claim(public_id)
    for number in range(450):
        conductor.beat(claim, "reference", 1, log=f"line {number}.\n")
    html = get(client, f"/comparisons/{public_id}")
    assert "line 449." in html
    assert "line 250." in html
    assert "line 249." not in html
    after = int(re.search(r'data-after="(\d+)"', html).group(1))
    conductor.beat(claim, "reference", 1, log="the next\n")
    chunks = client.get(f"/api/v1/comparisons/{public_id}/log?after={after}").json()["chunks"]
    assert [chunk["text"] for chunk in chunks] == ["the next\n"]


def test_buttons_submit_and_run_again(client: TestClient, conductor: Conductor) -> None:
    first = press(client, "/comparisons")
    assert first.status_code == 200
    assert title_of(first.text).startswith("… queued: flash vs flash_fsdp")
    public_id = re.search(r"cmp_\w+", str(first.url)).group()
    again = press(client, f"/comparisons/{public_id}/rerun")
    assert str(again.url) != str(first.url)
    assert f'rerun of <a href="/comparisons/{public_id}">' in again.text
    conductor.finish(conductor.claim(public_id), Verdict.PASSED)
    assert "✓ passed" in press(client, f"/comparisons/{public_id}/cancel").text


def test_other_sites_cannot_press_our_buttons(client: TestClient) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert press(client, "/comparisons", headers={"sec-fetch-site": site}).status_code == status
    assert len(client.get("/api/v1/comparisons").json()["items"]) == 2


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("/nowhere", 404, "Not Found"),
        ("/comparisons/cmp_<i>", 404, "there is no comparison cmp_<i>"),
        ("/?status=odd", 422, "status: "),
        ("/?cursor=odd!", 422, "cursor: "),
    ],
)
def test_errors_are_pages_for_browsers_and_problems_for_programs(client, url, status, words) -> None:
    html = get(client, url, status)
    assert title_of(html).startswith(str(status))
    assert words in text_of(html)
    assert client.get(url, headers={"accept": "application/json"}).json()["status"] == status


def test_the_api_answers_browsers_in_json_too(client: TestClient) -> None:
    assert client.get("/api/v1/comparisons/cmp_x").json()["status"] == 404


def test_the_api_description_knows_no_pages(client: TestClient) -> None:
    known = ("/api/", "/healthz", "/readyz", "/metrics", "/webhooks/", "/badge/")
    assert all(path.startswith(known) for path in client.get("/openapi.json").json()["paths"])
