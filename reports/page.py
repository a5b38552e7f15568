"""Search results as one HTML page that needs no network, no server and no other file."""

import base64
import hashlib
import json
import os
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.files import write_text

PREVIEW_HEIGHT = 96  # pixels
FRAME_MILLISECONDS = 150
WEBP_QUALITY = 60
TEMPLATES = Path(__file__).parent / "templates"


def preview(frames):
    """A short looping animation of (T, H, W, 3) uint8 RGB frames -> data URI."""
    height, width = frames.shape[1:3]
    size = (max(1, round(width * PREVIEW_HEIGHT / height)), PREVIEW_HEIGHT)
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    data = encode_animation(small, FRAME_MILLISECONDS, WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")


def encode_animation(frames, milliseconds, quality):
    """Encode (H, W, 3) uint8 RGB frames as an endless WebP animation -> bytes.

    milliseconds: duration of each frame. quality: 1 to 100.
    """
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGRA) for frame in frames]
    animation.durations = np.full(len(frames), milliseconds, np.int32)
    settings = [cv2.IMWRITE_WEBP_QUALITY, quality]
    is_encoded, data = cv2.imencodeanimation(".webp", animation, settings)
    if not is_encoded:
        raise ValueError("OpenCV cannot encode WebP")
    return data.tobytes()


def write_page(path, title, searches, subtitle="", footer="", summary=None):
    """Write the page to `path`, with its style, script and previews inside.

    searches: list of dicts with "path", "class" and "preview" of the query, and "results": a list
    of dicts with "distance" in bits, "class", "path", "preview". A class may be None (unknown), a
    preview is what `preview` returns, or None. Optional: "href", a link to the file; "time", the
    part of the video; "score" of a query, its average precision; "is_right" of a result.
    summary: dict as of `reports.results_page.summarise`.
    All names are escaped, and the content security policy allows only the page's own script.
    """
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    searches, previews = _number_previews(searches)
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle,
            footer=footer,
            summary=summary,
            searches=searches,
            previews=json.dumps(previews),
            style=style,
            script=script,
            style_hash=_content_hash(style),
            script_hash=_content_hash(script),
        )
    )
    write_text(path, page)


def link_file(path, folder):
    """{"path": the name to show, "href": the address of a file from a page in `folder`}.

    A page can be sent to others, so it shows no absolute path.
    """
    shown = os.path.join(*Path(path).parts[-2:]) if os.path.isabs(path) else path
    address = os.fsencode(os.path.relpath(path, folder))
    return {"path": shown, "href": "./" + quote(address)}


def _number_previews(searches):
    """(searches with numbers instead of previews, list of the different previews)."""
    numbers = {}

    def numbered(video):
        uri = video["preview"]
        number = None if uri is None else numbers.setdefault(uri, len(numbers))
        return {**video, "preview": number}

    searches = [
        {**numbered(search), "results": [numbered(result) for result in search["results"]]}
        for search in searches
    ]
    return searches, list(numbers)


def _environment():
    """Jinja2 for the templates: every value is escaped and can be written as UTF-8."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_encodable,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def _encodable(value):
    """Replace what UTF-8 cannot encode, as in odd file names, by \\udcXX, also in markup."""
    if not isinstance(value, str):
        return value
    return type(value)(value.encode("utf-8", "backslashreplace").decode("utf-8"))


def _content_hash(text):
    """The hash by which a content security policy allows an inline style or script."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
