"""The page of results: in a real browser, and with names that try to be HTML."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from reports.page import link_file, preview, write_page

HOSTILE = [
    "<script>document.title='run'</script>.avi",
    "\"onerror='document.title=1' x=\".avi",
    "</small></li><img src=x onerror=\"document.title='run'\">.avi",
    "a&amp;b 'quoted' [1] \udcff\n.avi",
    "x" * 200 + "/" + "y" * 200 + ".avi",
]


def moving_frames(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (6, 40, 60, 3), np.uint8)


def hostile_searches():
    results = [
        {
            "path": name,
            "class": name[:20],
            "distance": rank,
            "preview": preview(moving_frames(rank)),
        }
        | ({"is_right": rank % 2 == 0, "href": f"videos/{rank}"} if rank < 3 else {})
        for rank, name in enumerate(HOSTILE)
    ]
    plain = [{"path": "run/jump.avi", "class": None, "distance": 1, "preview": None}]
    return [
        {"path": HOSTILE[0], "class": None, "preview": None, "results": results},
        {
            "path": "query two",
            "class": "jump",
            "preview": preview(moving_frames()),
            "results": plain,
        },
    ]


def test_previews_are_animated_webp():
    uri = preview(moving_frames())
    assert uri.startswith("data:image/webp;base64,UklGR")
    data = base64.b64decode(uri.partition(",")[2])
    assert data.count(b"ANMF") == 6


class PageReader(HTMLParser):
    """The tags of a page, and the text inside each kind of tag."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("h1", "h2", "h3", "small", "span", "th", "style", "script"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if self.open[-1:] == [tag]:
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data


SUMMARY = {
    "figures": [("mAP", "0.500")],
    "classes": [(HOSTILE[2], 0.5)],
    "depth": 10,
    "pairs": [(HOSTILE[2], "b", 0.25)],
    "confusion": [(HOSTILE[2], [0.75, 0.25]), ("b", [0.0, 1.0])],
}


def write_hostile_page(path):
    write_page(path, HOSTILE[0], hostile_searches(), HOSTILE[1], HOSTILE[2], SUMMARY)


def test_the_page_is_self_contained_and_escapes_every_name(tmp_path):
    write_hostile_page(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", text)
    page = PageReader(text)
    names = [name.replace("\udcff", "\\udcff") for name in HOSTILE]
    assert page.texts["h1"] == [names[0]] and page.texts["th"].count(names[2]) == 2
    assert page.texts["h3"][0].strip() == names[0]
    small = [found.strip() for found in page.texts["small"]]
    assert all(name in small for name in names[3:]), "the others are links"
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["videos/0", "videos/1", "videos/2"]
    assert any(found == HOSTILE[0][:20] for found in page.texts["span"])
    assert small.count("1 · 1 bit") == 1, "one bit is no plural"
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(list(attributes) == ["data-preview", "alt"] for attributes in pictures)
    assert all(attributes["alt"] for attributes in pictures)


def test_links_lead_from_the_page_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "videos/a b#c?d%20\udcff.avi"
    for path in (name, str(tmp_path / name)):
        link = link_file(path, tmp_path / "pages")
        assert link["href"] == "./../videos/a%20b%23c%3Fd%2520%FF.avi" and link["path"] == name
    assert link_file("javascript:alert(1)", tmp_path)["href"].startswith("./")


def test_each_preview_is_in_the_page_once(tmp_path):
    searches = hostile_searches() * 10
    write_page(tmp_path / "page.html", "title", searches)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<img") == 60 and text.count("data:image/webp") == 5


def test_the_content_policy_allows_the_style_and_script_of_the_page_alone(tmp_path):
    write_page(tmp_path / "page.html", "title", hostile_searches())
    page = PageReader((tmp_path / "page.html").read_text(encoding="utf-8"))
    policy = next(tag["content"] for _, tag in page.tags if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.texts[tag][-1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert isinstance(json.loads(page.texts["script"][0]), list), "data, which is not run"


@pytest.mark.scripts
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_in_a_browser_results_show_and_the_filter_works(browser, tmp_path, width, scheme):
    write_hostile_page(tmp_path / "page.html")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url)
            if not request.url.startswith(("file:", "data:")) else None)  # fmt: skip
    page.goto((tmp_path / "page.html").as_uri())

    assert page.title() == HOSTILE[0], "a name has run as a script"
    results = page.locator(".results li")
    assert results.count() == 6
    page.wait_for_function("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("li.right").count() == 2 and page.locator("li.wrong").count() == 1
    assert results.last.locator("small").last.inner_text() == "run/jump.avi"
    shown = results.locator("small:last-child").all_inner_texts()
    assert shown[0].strip() == HOSTILE[0] and shown[2].strip() == HOSTILE[2]

    visible = page.locator(".results li:visible")
    page.fill("input", "JUMP run")
    assert visible.count() == 1 and page.locator("section.search:visible").count() == 1
    assert page.locator("output").inner_text() == "1 of 2 queries"
    page.fill("input", "<script>")
    assert visible.count() == 5, "the query's own name counts too"
    page.fill("input", "")
    assert visible.count() == 6
    page.get_by_role("button", name="with errors").click()
    assert page.locator("section.search:visible").count() == 1 and visible.count() == 5
    page.get_by_role("button", name="all").click()
    assert visible.count() == 6
    assert messages == []


@pytest.mark.scripts
def test_with_reduced_motion_the_previews_are_stills(browser, tmp_path):
    write_hostile_page(tmp_path / "page.html")
    for motion, start in (("reduce", "data:image/png"), ("no-preference", "data:image/webp")):
        page = browser.new_page(reduced_motion=motion)
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("[...document.images].every(i => i.naturalWidth > 0)")
        sources = page.locator("img").evaluate_all("all => all.map(i => i.src)")
        assert len(sources) == 6 and all(source.startswith(start) for source in sources)


@pytest.mark.scripts
def test_an_injected_script_would_not_run(browser, tmp_path):
    """The content policy holds even if a name were not escaped."""
    write_page(tmp_path / "page.html", "title", hostile_searches())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    hostile = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    (tmp_path / "page.html").write_text(text.replace("<section", hostile + "<section", 1), "utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_timeout(200)
    assert page.title() == "title" and page.locator(".results li").count() == 6
