"""Search results as one HTML page that needs no network, no server and no other file."""

import base64
import hashlib
from html import escape

import cv2
import numpy as np

from utils.files import write_text

PREVIEW_HEIGHT = 96  # pixels

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #59636e; --card: #f6f8fa;
  --right: #1a7f37; --wrong: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #9198a1; --card: #151b23;
  --right: #3fb950; --wrong: #f85149; } }
* { box-sizing: border-box; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 1200px; }
h1 { font-size: 1.3rem; margin: 0; min-width: 0; }
h1, li, td { overflow-wrap: anywhere; }
header { position: sticky; top: 0; z-index: 1; background: Canvas; padding: .6rem 0; display: flex;
  flex-wrap: wrap; gap: .4rem 1rem; align-items: center; border-bottom: 1px solid var(--line); }
input { font: inherit; padding: .35rem .6rem; flex: 1 1 12rem; min-width: 0; max-width: 24rem; }
section { padding: 1rem 0; border-bottom: 1px solid var(--line); }
.query { display: flex; gap: .8rem; align-items: center; margin-bottom: .8rem; }
.query h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 45%), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
li.right { border: 2px solid var(--right); } li.wrong { border: 2px solid var(--wrong); }
.right b { color: var(--right); } .wrong b { color: var(--wrong); }
img, .none { display: block; width: 100%; height: 7rem; object-fit: contain; border-radius: 4px;
  background: #0001; margin-bottom: .3rem; }
.query img, .query .none { width: 10rem; height: 8rem; flex: none; margin: 0; }
.none { display: grid; place-items: center; color: var(--soft); }
small { color: var(--soft); display: block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums; }
[hidden] { display: none !important; }
"""

SCRIPT = """
const box = document.querySelector("input"), shown = document.querySelector("output");
function filter() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const section of document.querySelectorAll("section.search")) {
    let any = false;
    for (const item of section.querySelectorAll("li")) {
      const text = (section.querySelector("h2").textContent + " " + item.textContent).toLowerCase();
      item.hidden = !words.every(word => text.includes(word));
      any ||= !item.hidden;
      count += !item.hidden;
    }
    section.hidden = !any && words.length > 0;
  }
  shown.textContent = count + " of " + document.querySelectorAll("li").length + " results";
}
box.addEventListener("input", filter);
filter();
"""


def preview(frames):
    """A short looping picture as a data URI: animated WebP of (T, H, W, 3) uint8 RGB frames."""
    height, width = frames.shape[1:3]
    size = (max(1, round(width * PREVIEW_HEIGHT / height)), PREVIEW_HEIGHT)
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGRA) for frame in small]
    animation.durations = np.full(len(frames), 150, np.int32)  # milliseconds
    encoded, data = cv2.imencodeanimation(".webp", animation, [cv2.IMWRITE_WEBP_QUALITY, 60])
    if not encoded:
        raise ValueError("OpenCV cannot encode WebP")
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def write_page(path, title, searches, scores=()):
    """Write the page to `path`.

    searches: list of dicts: "path" and "class" of the query, "preview", and "results", a list of
    dicts with "distance" in bits, "class", "path", "preview" and, where it is known, "is_right".
    A class of None is not known; a preview is what `preview` gives, or None. scores: rows (class,
    average precision) for a table. Every text is escaped, and the page's own script is the only
    one that its content policy lets run.
    """
    hashes = [
        base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (STYLE, SCRIPT)
    ]
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'"
    )
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n<header><h1>{_text(title)}</h1>\n"
        '<input type="search" placeholder="filter by class or path" aria-label="filter">'
        "<output></output></header>\n"
    )
    body = "".join(map(_search, searches)) + _scores(scores)
    write_text(path, f"{head}{body}<script>{SCRIPT}</script>\n</body></html>\n")


def _text(value):
    """Any string as HTML; what UTF-8 cannot hold, as in odd file names, becomes \\udcXX."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def _path(value):
    """A path as HTML that may be broken after its separators."""
    return _text(value).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _picture(uri):
    return f'<img src="{uri}" alt="">' if uri else '<div class="none">no preview</div>'


def _search(search):
    kind = f"<small>{_text(search['class'])}</small>" if search["class"] else ""
    results = "".join(_result(rank, found) for rank, found in enumerate(search["results"], 1))
    return (
        f'<section class="search"><div class="query">{_picture(search["preview"])}<div>'
        f"<small>query</small><h2>{_path(search['path'])}</h2>{kind}</div></div>\n"
        f"<ol>{results}</ol></section>\n"
    )


def _result(rank, found):
    is_right = found.get("is_right")
    mark = {True: "✓ ", False: "✗ ", None: ""}[is_right]
    kind = {True: "right", False: "wrong", None: ""}[is_right]
    name = f"<b>{mark}{_text(found['class'])}</b>" if found["class"] else ""
    bits = f"{found['distance']} bit{'s' * (found['distance'] != 1)}"
    return (
        f'<li class="{kind}">{_picture(found["preview"])}{name}<small>{rank} · {bits}</small>'
        f"<small>{_path(found['path'])}</small></li>\n"
    )


def _scores(scores):
    if not scores:
        return ""
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{ap:.3f}</td></tr>\n" for name, ap in scores)
    return (
        '<section class="scroll"><h2>mAP by class</h2><table><tr><th>class</th><th>mAP</th></tr>\n'
        f"{rows}</table></section>\n"
    )
