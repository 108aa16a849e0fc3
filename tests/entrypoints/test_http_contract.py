"""The API keeps to its own OpenAPI, and its page works in a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.entrypoints.test_cli import EP
from tests.serving import serve, wait_for

pytestmark = pytest.mark.slow
TOKEN = "correct-horse-battery"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_no_request_makes_it_break_its_schema(drawn: Path, tmp_path: Path) -> None:
    with serve(drawn, "--rate-limit", "0", token=TOKEN) as api:
        wait_for(lambda: api.http.get("/readyz").status_code == 200, pause_s=0.5)
        api.wait(api.start(EP, actions=["recluster"])["job_id"])
        done = subprocess.run(
            [Path(sys.executable).with_name("schemathesis"), "run", f"{api.url}/openapi.json", "--header",
             f"Authorization: Bearer {TOKEN}", "--max-examples", "5", "--seed", "1", "--no-color",
             "--request-timeout", "60", "--suppress-health-check", "all",
             # That an episode is there and ready cannot be said in a schema: a valid request may be answered 400 or 422.
             "--checks", "all", "--exclude-checks", "positive_data_acceptance"],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_call_is_described_with_an_example(drawn: Path) -> None:
    with serve(drawn) as api:
        schema = api.get("/openapi.json")

    calls = {(method, path) for path, methods in schema["paths"].items() for method in methods}
    assert {("post", "/jobs/episode_cleanup_async"), ("get", "/jobs/{job_id}/progress"),
            ("post", "/jobs/{job_id}/cancel"), ("post", "/episodes/{ep_id}/preview")} <= calls  # fmt: skip
    for name in ("EpisodeCleanup", "SeasonCleanup", "Options"):
        assert schema["components"]["schemas"][name]["examples"]
    for name in ("JobProgress", "JobDetails", "StartedJob", "Problem"):
        fields = schema["components"]["schemas"][name]["properties"]
        assert all("examples" in f or "$ref" in f or "default" in f for f in fields.values()), name


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing")
        pytest.skip("no chromium here; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_page_starts_a_job_and_shows_its_progress_and_result(drawn: Path, browser: Browser, tmp_path: Path) -> None:
    with serve(drawn, token=TOKEN) as api:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        foreign, complaints = [], []
        page.on("request", lambda r: None if r.url.startswith((api.url, "data:", "blob:")) else foreign.append(r.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(api.url)
        page.get_by_label("Token of this API").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_text("No jobs yet.")).to_be_visible()
        expect(page.get_by_label("Token of this API")).to_be_hidden()
        page.get_by_label("Episode").fill("none-s01e01")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("no such episode")
        page.get_by_label("Episode").fill(EP)
        page.get_by_label("Profile").select_option("high_accuracy")
        for label in ("Write back", "Save crops"):
            page.get_by_label(label).focus()
            page.keyboard.press("Space")
        page.get_by_role("button", name="Preview").click()
        expect(page.get_by_role("dialog")).to_contain_text("what a run would change", timeout=20_000)
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Start").click()
        values: set[float] = set()
        while page.locator(".state").all_inner_texts() != ["succeeded"]:
            # All that there are at this moment: the bar goes with the end of the job.
            values.update(page.get_by_role("progressbar").evaluate_all("bars => bars.map(bar => bar.value)"))
            page.wait_for_timeout(100)
            assert page.locator(".state.failed").count() == 0
        page.get_by_role("button", name=f"Details of {EP}").focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("table")).to_contain_text("clusters")
        expect(dialog.get_by_role("heading", name="Split tracks")).to_be_visible()
        picture = dialog.get_by_role("img").first
        expect(picture).to_be_visible()
        is_drawn = picture.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
        width = page.evaluate("document.documentElement.scrollWidth")
        page.screenshot(path=tmp_path / "page.png", full_page=True)

    assert is_drawn and width <= 390 and len(values) > 1
    assert (foreign, complaints) == ([], [])
