"""The server of the page, with Flask: requests, and the rules that keep other sites out.

The page is for the person at this machine. Other sites that this person visits must not use it:
only requests to a known host are answered, no other site may send a POST or read an answer, and a
content policy allows only the page's own scripts. Moments are named by the number of their row in
the index, never by a path.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flask import Flask, abort, request, send_file
from werkzeug.exceptions import HTTPException, UnprocessableEntity
from werkzeug.serving import WSGIRequestHandler, make_server

from retrieval.index import is_unchanged
from serving.engine import Engine, Missing, Replaced
from serving.media import Media, Uploads
from utils.errors import UserError, printable

MOST_UPLOAD = 512 * 2**20  # bytes
CHUNK = 2**20
MOST_RESULTS = 1000
STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Unreadable(UnprocessableEntity):
    """A video that cannot be read; the reason is the user's to know."""


class Services(NamedTuple):
    """What the requests need."""

    engine: Engine
    uploads: Uploads
    media: Media


def create_app(services, hosts):
    """The Flask application. hosts: names by which the server may be addressed."""
    app = Flask("serving", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MOST_UPLOAD, TRUSTED_HOSTS=hosts)
    app.before_request(refuse_other_sites)
    app.after_request(add_headers)
    app.register_error_handler(HTTPException, explain)
    app.register_error_handler(UserError, lambda error: explain(Unreadable(str(error))))
    for path in sorted(STATIC.iterdir()):
        address = "/" if path.name == "index.html" else f"/static/{path.name}"
        app.add_url_rule(address, path.name, partial(send_file, path, max_age=0))
    for address, answer in ANSWERS.items():
        methods = ["POST"] if answer is receive else ["GET"]
        app.add_url_rule(address, address, partial(answer, services), methods=methods)
    return app


# ==== answers ====


def show_index(services):
    return services.engine.snapshot().overview


def receive(services):
    """Store a query video, which is the body of the request."""
    token = secrets.token_urlsafe(16)
    name = request.args.get("name", "")[:200] or "uploaded video"
    services.uploads.add(token, name, iter(partial(request.stream.read, CHUNK), b""))
    return {"upload": token}, 201


def search(services):
    snapshot, query, parts = read_query(services)
    top = number("top", int, 24, 1, MOST_RESULTS)
    filters = {"class_name": text("class"), "name": text("name")}
    found = services.engine.search(snapshot, query, parts, top, **filters)
    shown = {"name": query["name"], "class": query.get("class")}
    shown |= {"start": parts[0][0], "end": parts[-1][1]}
    return {"version": snapshot.version, "query": shown, **found}


def count(services):
    """The number of moments at each distance from the query."""
    snapshot, _, parts = read_query(services)
    return {"counts": snapshot.count_distances(pack(parts))}


def describe_video(services):
    """The address of the video of a moment, and which seconds of it that shows."""
    _, _, first, last = services.media.video(*read_place(services), bool(text("webm")))
    url = "/media/video?" + request.query_string.decode("ascii", "replace")
    return {"url": url, "offset": first, "from": first, "to": last}


def send_video(services):
    make, kind, *_ = services.media.video(*read_place(services), bool(text("webm")))
    return send_file(make(), mimetype=kind, conditional=True, max_age=0)


def send_preview(services):
    path = services.media.preview(*read_place(services), bool(text("still")))
    return send_file(path, mimetype="image/webp", max_age=3600)


ANSWERS = {
    "/api/index": show_index,
    "/api/uploads": receive,
    "/api/search": search,
    "/api/histogram": count,
    "/api/video": describe_video,
    "/media/video": send_video,
    "/media/preview": send_preview,
}


# ==== requests ====


def refuse_other_sites():
    """Answer 403 to a POST that another site sends, and to another site that reads an answer."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    if request.method == "POST" and origin != request.host_url.rstrip("/"):
        abort(403, "only the page of this server may send videos")
    if site not in (None, "none", "same-origin") and request.path != "/":
        abort(403, "only the page of this server may read this")


def add_headers(response):
    response.headers.update(HEADERS)
    return response


def explain(error):
    """An error as JSON with its reason."""
    too_large = f"a video may have at most {MOST_UPLOAD // 2**20} MB"
    reason = too_large if error.code == 413 else printable(error.description or error.name)
    response = error.get_response()
    response.data, response.content_type = json.dumps({"error": reason}), "application/json"
    return response


def text(name):
    """A value of the address, or None."""
    return request.args.get(name) or None


def number(name, kind, default, least, most):
    """A number of the address between `least` and `most`; 400 for anything else."""
    value = text(name)
    try:
        value = default if value is None else kind(value)
    except ValueError:
        abort(400, f"{name}: {value!r} is not a number")
    if value is not None and not least <= value <= most:  # NaN is not either
        abort(400, f"{name}: must be from {least:g} to {most:g}")
    return value


def read_moment(services):
    """(snapshot, moment) that the address names: a dict with file, name, start and end.

    A row of the index has "row", "code" and "class" too. 404 for what does not exist, 409 for a row
    of an earlier index.
    """
    token, row = text("upload"), number("row", int, None, 0, 2**63 - 1)
    if (token is None) == (row is None):
        abort(400, "give either a row or an upload")
    try:
        snapshot = services.engine.snapshot(text("version") if token is None else None)
        if token is None:
            moment = snapshot.take(row)
            return snapshot, {**moment, "name": snapshot.describe(moment)["name"]}
    except Missing as error:
        abort(404, str(error))
    except Replaced as error:
        abort(409, str(error))
    found = services.uploads.find(token)
    if found is None:
        abort(404, "this video was deleted on the server; send it again")
    return snapshot, {"file": found[0], "name": found[1], "start": 0.0, "end": None}


def read_place(services):
    """(file, start, end) of the moment that the address names."""
    moment = read_moment(services)[1]
    return find_file(moment), moment["start"], moment["end"]


def find_file(moment):
    """The file of a moment. Raises UserError for a video of the index that is another one now."""
    file = moment["file"]
    if "size" in moment and os.path.exists(file) and not is_unchanged(file, moment["size"]):
        raise UserError("the video has another size than when it was indexed; index it again")
    return file


def read_query(services):
    """(snapshot, moment, windows) of the query that the address names, limited to start and end."""
    snapshot, moment = read_moment(services)
    start, end = (number(name, float, None, 0, 10**7) for name in ("start", "end"))
    if start is None and end is None and "code" in moment:
        bits = snapshot.index.metadata["bits"]
        code = np.unpackbits(np.frombuffer(moment["code"], np.uint8), count=bits)
        return snapshot, moment, [(moment["start"], moment["end"], code * 2.0 - 1)]
    start, end = start or 0.0, end or float("inf")
    if start >= end:
        abort(400, "start must be before end")
    return snapshot, {**moment, "row": None}, services.engine.windows(find_file(moment), start, end)


def pack(parts):
    """The codes of windows, packed: (P, B) uint8."""
    return np.packbits(np.stack([code for *_, code in parts]) >= 0, axis=1)


# ==== the server ====


def run(open_index, encode, args):
    """Serve the page of an index until Ctrl-C or SIGTERM. Uploads are deleted at the end.

    open_index, encode: as of `Engine`. args: host, port, workers, timeout.
    """
    engine, hosts = Engine(open_index, encode), known_hosts(args.host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        temporary_folder() as folder,
    ):
        media = Media(folder, args.workers, args.timeout)
        services = Services(engine, Uploads(Path(folder) / "uploads"), media)
        serve(create_app(services, hosts), args.host, args.port)


@contextlib.contextmanager
def temporary_folder():
    """Yield a new folder; then delete it, though threads of the last requests may still write."""
    folder = tempfile.mkdtemp(prefix="video-search-")
    try:
        yield folder
    finally:
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)


class QuietHandler(WSGIRequestHandler):
    """Prints errors, not every request."""

    def log_request(self, *_):
        pass


def serve(app, host, port):
    """Listen until an exception, such as Ctrl-C."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}") from error
    options = {"threaded": True, "request_handler": QuietHandler, "fd": listener.fileno()}
    with listener, make_server(host, port, app, **options) as server:
        print(f"http://{f'[{host}]' if ':' in host else host}:{server.port}", flush=True)
        server.serve_forever()  # Werkzeug's ends without an error at Ctrl-C
        app.logger.disabled = True  # requests that the end cuts off are no errors


def known_hosts(host):
    """The names by which this machine may be addressed when it listens at `host`."""
    names = {"localhost", "127.0.0.1", "[::1]", host}
    if host not in ("localhost", "127.0.0.1", "::1"):
        names |= {socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):
            names |= set(socket.gethostbyname_ex(socket.gethostname())[2])
    return sorted(names)
