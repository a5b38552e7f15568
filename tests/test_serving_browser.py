"""The page of search.py serve in a real browser: Debian's Chromium."""

import os
import signal
import tempfile
import time

import pytest
from test_search import CLASSES, index_command, write_checkpoint

pytest.importorskip("flask", reason="no Flask; pip install -r requirements-serve.txt")
pytestmark = pytest.mark.scripts
HOSTILE = "<img src=x onerror=document.title='run'>.avi"


def wait(condition, what, seconds=60):
    """Wait until `condition()` is true. The page's policy forbids Playwright's own way."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def use_own_temporary_folder():
    """Patch: other servers on this machine also have their files in the system's."""
    tempfile.tempdir = os.environ["TMPDIR"]


@pytest.fixture
def served(browser, drawn_videos, tmp_path, run_script, start_script):
    """(address, folder of the videos, folder of the server's files) of a running server."""
    root = tmp_path / "videos"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for video in sorted((drawn_videos / name).iterdir())[:4]:
            (root / name / video.name).write_bytes(video.read_bytes())
    (root / CLASSES[0] / HOSTILE).write_bytes(video.read_bytes())
    checkpoint, temporary = write_checkpoint(tmp_path / "best.pt"), tmp_path / "temporary"
    temporary.mkdir()
    run_script(*index_command(checkpoint, root, tmp_path / "index"))
    command = "search.py", "serve", "--index", tmp_path / "index", "--port", 0, "--device", "cpu"
    command, environment = (*command, "--workers", 2), {"TMPDIR": str(temporary)}
    process = start_script(*command, patch=use_own_temporary_folder, **environment)
    wait(lambda: process.stdout or process.status() is not None, "no address")
    assert process.stdout.startswith("http://127.0.0.1:"), process.output()
    [folder] = temporary.glob("video-search-*")
    yield process.stdout.strip(), root, folder
    process.signal(signal.SIGTERM)
    assert process.wait() == 0 and "Traceback" not in process.output(), process.output()
    assert not folder.exists(), "uploads are deleted at the end"


class Page:
    """A page of the server that keeps what must not happen."""

    def __init__(self, browser, address, width=1400, **options):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.problems, self.address = [], address
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self.check_request)

    def check_request(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.problems.append(request.url)

    def wait(self, expression, seconds=60):
        return wait(lambda: self.page.evaluate(expression), expression, seconds)

    def results(self):
        self.wait("!document.getElementById('found').hidden && results.children.length > 1")
        return self.page.locator("#results li").all()


def test_a_person_finds_compares_and_goes_back(browser, served):
    """Upload, results in order, keys, Back, and an AVI that plays."""
    address, root, _ = served
    tab = Page(browser, address)
    page = tab.page
    page.goto(address)
    tab.wait("document.querySelectorAll('#cards li').length === 3")
    query = sorted((root / CLASSES[1]).iterdir())[0]
    page.set_input_files("#file", query)
    results = tab.results()
    assert len(results) == 13
    assert results[0].locator("small").last.inner_text() == f"{CLASSES[1]}/{query.name}"
    distances = [int(one.locator("small").first.inner_text().split()[0]) for one in results]
    assert distances[0] == 0 and distances == sorted(distances)
    assert any(HOSTILE in one.inner_text() for one in results) and page.title() != "run"
    tab.wait("!histogram.hidden && histogram.querySelectorAll('rect').length === 13")
    tab.wait("player.currentTime > 0.2")
    first = page.evaluate("player.currentTime")
    tab.wait(f"Math.abs(player.currentTime - {first}) > 0.2")
    found = page.url

    page.locator("body").press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.closest('li') === results.children[1]")
    page.keyboard.press("Enter")
    tab.wait("compare.open && left.currentTime > 0.2 && other.currentTime > 0.2")
    page.keyboard.press(" ")
    tab.wait("left.paused && other.paused")
    page.keyboard.press("ArrowRight")
    tab.wait("document.getElementById('compare-title').textContent.startsWith('3:')")
    page.keyboard.press("Escape")
    tab.wait("!compare.open")
    assert page.url == found
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "name"
    page.keyboard.type(query.stem[:-2])
    page.keyboard.press("Enter")
    tab.wait("results.children.length < 13 && location.search.includes('name=')")
    page.go_back()
    tab.wait("results.children.length === 13")
    page.get_by_role("button", name=CLASSES[2]).click()
    tab.wait("results.children.length === 4")
    page.locator("#results a").first.click()
    tab.wait("compare.open")
    page.get_by_role("button", name="Search with this", exact=True).click()
    tab.wait("location.search.startsWith('?row=') && !compare.open")
    tab.results()
    page.keyboard.press("Escape")
    tab.wait("!start.hidden")
    page.go_back()
    tab.wait("start.hidden && results.children.length > 3")
    assert tab.problems == []
    page.close()


def test_the_page_fits_and_a_bad_video_is_explained(browser, served):
    address, root, _ = served
    for width, scheme in ((390, "dark"), (900, "light"), (1400, "dark")):
        tab = Page(browser, address, width, color_scheme=scheme, reduced_motion="reduce")
        tab.page.goto(address)
        tab.wait("document.querySelectorAll('#cards img').length === 3")
        tab.wait("[...document.images].every(image => image.naturalWidth > 0)")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.page.locator("#cards a").first.click()
        tab.results()
        tab.wait("player.readyState >= 2")
        assert tab.page.evaluate("player.paused"), "reduced motion"
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.problems == []
        tab.page.close()
    tab = Page(browser, address)
    tab.page.goto(address)
    bad = root.parent / "bad.avi"
    bad.write_bytes(b"no video")
    tab.wait("document.querySelectorAll('#cards li').length === 3")
    tab.page.set_input_files("#file", bad)
    tab.wait("document.getElementById('status').textContent.includes('cannot be opened')")
    tab.page.close()
