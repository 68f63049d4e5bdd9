"""What is live, in a real browser: progress and log while a comparison runs, the verdict without a reload."""

import shutil
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI

from service.contract import Comparison, Verdict
from service.store import ComparisonRepository, Status
from tests.service.web.conftest import Conductor, gate
from tests.waiting import until

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"]
NASTY = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def browser() -> Iterator["api.Browser"]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*SWITCHES, "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    """The app behind a real server on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def page(browser: "api.Browser") -> Iterator["api.Page"]:
    """A page that fails the test if it logged an error, such as a refused script."""
    context = browser.new_context()
    context.set_default_timeout(10_000)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type in ("error", "warning") else None)
    yield page
    context.close()
    assert not errors


def submitted(page: "api.Page", address: str, name: str) -> str:
    """The id of a comparison with this name."""
    document = Comparison(name=name).model_dump(mode="json")
    return page.request.post(f"{address}/api/v1/comparisons", data=document).json()["id"]


def test_a_running_comparison_is_followed_to_its_verdict(page: "api.Page", address: str, conductor: Conductor) -> None:
    page.goto(address)
    page.get_by_role("button", name="Submit the default comparison").click()
    expect = api.expect
    expect(page).to_have_title("… queued: flash vs flash_fsdp · Clipwatch")
    public_id = page.url.rpartition("/")[2]
    page.evaluate("window.stayed = true")

    claim = conductor.claim(public_id)
    conductor.beat(claim, "reference", 3, log=f"first line {NASTY}\n")
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    expect(page.get_by_role("log")).to_contain_text(f"first line {NASTY}")
    conductor.beat(claim, "candidate", 9, log="second line\n", role="candidate")
    expect(page.get_by_role("log")).to_contain_text("second line")
    expect(page.locator("[data-progress=candidate] span")).to_have_text("9 of 32 steps")
    expect(page.locator("#phase")).to_have_text("candidate")
    conductor.beat(claim, "candidate", 10, log="third line\n", role="candidate")
    expect(page.get_by_role("log")).to_contain_text("third line")
    shown = page.get_by_role("log").inner_text().split("\n")
    assert [line for line in shown if line.strip()] == [
        "attempt 1: reference",
        f"first line {NASTY}",
        "attempt 1: candidate",
        "second line",
        "third line",
    ]

    conductor.finish(claim, Verdict.FAILED, [gate("loss", False, 0.5, 1e-4, 7)])
    expect(page).to_have_title("✕ failed: flash × 1 vs flash_fsdp × 3 · Clipwatch")
    expect(page.get_by_role("row", name="loss")).to_contain_text("0.5")
    assert page.evaluate("window.stayed") is True


def test_cancel_from_the_page(page: "api.Page", address: str, conductor: Conductor) -> None:
    page.goto(address)
    page.get_by_role("button", name="Submit the default comparison").click()
    public_id = page.url.rpartition("/")[2]
    claim = conductor.claim(public_id)
    page.get_by_role("button", name="Cancel").click()
    api.expect(page.get_by_role("button", name="Cancelling")).to_be_disabled()
    assert conductor.beat(claim, "reference") is True
    conductor.finish(claim, Verdict.CANCELLED)
    api.expect(page.get_by_role("heading", level=1)).to_contain_text("cancelled")
    api.expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    with conductor.database.read() as session:
        assert ComparisonRepository(session).get(public_id).status == Status.FINISHED


def test_the_list_follows_and_keeps_what_is_typed(page: "api.Page", address: str, conductor: Conductor) -> None:
    public_id = submitted(page, address, "one")
    page.goto(address)
    page.get_by_label("Name contains").fill("typed")
    conductor.finish(conductor.claim(public_id), Verdict.PASSED)
    api.expect(page.get_by_role("row", name="one")).to_contain_text("passed")
    assert page.get_by_label("Name contains").input_value() == "typed"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(
    page: "api.Page", address: str, conductor: Conductor, scheme: str
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    name = "a_name_without_any_space_" * 6
    public_id = submitted(page, address, name)
    conductor.finish(conductor.claim(public_id), Verdict.FAILED, [gate("clipped_grad_norm", False, 0.5, 1e-4, 7)])
    for path in ("/", f"/comparisons/{public_id}"):
        page.goto(address + path)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, path
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
