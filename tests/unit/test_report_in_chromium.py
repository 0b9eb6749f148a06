"""The pages in a real browser, Chromium without a window; skipped where it is not installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_runs import make_complete_run

from limbeck.report.page import write_comparison, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--dump-dom"),
    *("--virtual-time-budget=2000", "--disable-dev-shm-usage"),
]
FRAME = """<!DOCTYPE html><iframe width="390" height="800" src="copy.html"></iframe><script>
addEventListener("message", (event) => { document.documentElement.dataset.seen = event.data; });
</script>"""  # a window cannot be so narrow
DRIVER = """
window.addEventListener("load", () => {
  const seen = {};
  const slider = document.querySelector("input[type=range]");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  seen.first = [...document.querySelectorAll(".frames li")].map((frame) => frame.hidden);
  seen.text = slider.getAttribute("aria-valuetext");
  const dialog = document.querySelector("dialog");
  document.querySelector(".enlarge").click();
  const image = dialog.querySelector("img");
  seen.open = dialog.open;
  seen.alt = image.alt;
  const width = image.clientWidth;
  dialog.dispatchEvent(new KeyboardEvent("keydown", { key: "+" }));
  seen.larger = image.clientWidth > width;
  dialog.querySelector("[aria-label='Next picture']").click();
  seen.next = image.alt;
  dialog.querySelector("[aria-label=Close]").click();
  seen.closed = !dialog.open;
  seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  seen.width = window.innerWidth;
  parent.postMessage(JSON.stringify(seen), "*");
});
"""


def open_page(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's document after its script has run, and what the browser wrote to the console."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--window-size=1200,800", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    """The report of a run, and five runs side by side."""
    runs = [make_complete_run(tmp_path / f"run {number}", config={"ipc": number}) for number in range(5)]
    return [write_report(runs[0]), write_comparison(runs, tmp_path / "five.html")]


def test_a_page_runs_its_script_and_reports_no_error(pages: list[Path], tmp_path: Path) -> None:
    for page in pages:
        document, console = open_page(page, tmp_path / "profile")
        assert console == []
        assert document.count('type="range"') == (1 if page.name == "report.html" else 5)
        pictures = re.findall(r"<img src=[^>]* in the order of the classes", document)
        assert document.count('class="enlarge"') == len(pictures) > 0
        assert 'dialog class="zoom"' in document


def test_slider_and_zoom_at_a_phones_width(pages: list[Path], tmp_path: Path) -> None:
    """The policy of the page admits its own script alone; a copy without it takes the one that drives it here."""
    for page in pages:
        text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
        copy = tmp_path / "copy.html"
        copy.write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
        (tmp_path / "phone.html").write_text(FRAME, encoding="utf-8")
        document, console = open_page(tmp_path / "phone.html", tmp_path / "profile")
        assert console == []
        (result,) = re.findall(r'data-seen="([^"]*)"', document)
        result = result.replace("&quot;", '"')
        for words in (
            '"first":[false,true,true',
            '"open":true',
            '"larger":true',
            '"closed":true',
            '"wide":false',
            '"width":390',
        ):
            assert words in result, result
        assert "Step 0" in result
        assert result.count("images in the order of the classes") == 2


def test_a_script_that_is_not_the_pages_own_is_refused(pages: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "hostile.html"
    text = pages[0].read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title = 'taken'</script></body>"), encoding="utf-8")
    document, console = open_page(page, tmp_path / "profile")
    assert "<title>taken</title>" not in document
    assert any("Content Security Policy" in line for line in console)
