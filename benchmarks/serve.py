"""Requests a second of the page of search.py serve, and its memory after many uploads.

    python -m benchmarks.serve                     # 1,000,000 moments of 64 bits
    python -m benchmarks.serve --codes 10000

The server is the real one, on this machine, with an index of synthetic moments
(benchmarks/index.py) and without a network: an upload has a random code. A
request searches with a moment of the index, as "Search with this" does; the
histogram compares all codes with it. Memory is the resident set, before and
after the uploads and a search with each.
"""

import http.client
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from werkzeug.serving import make_server

from benchmarks.index import BITS, make_index
from retrieval.index import Index
from serving.app import QuietHandler, Services, create_app
from serving.engine import Engine
from serving.media import Media, Uploads
from utils.argtypes import number
from utils.config import Parser
from utils.terminal import progress


def draw_code(path, start, end):
    """The windows of an uploaded video: one, with a code that depends on its name."""
    rng = np.random.default_rng(abs(hash(path)))
    return [(start, min(end, 3.0), rng.normal(size=BITS))]


def ask(port, address, body=None):
    """The JSON that the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Origin": f"http://127.0.0.1:{port}"}
    connection.request("GET" if body is None else "POST", address, body, headers)
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    if response.status >= 400:
        raise RuntimeError(content["error"])
    return content


def resident_mib():
    """Memory of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def per_second(port, addresses, threads):
    """Requests per second, with some threads that each wait for their answers."""
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda address: ask(port, address), addresses))
    return len(addresses) / (time.perf_counter() - started)


def main():
    parser = Parser(__doc__)
    parser.add("--codes", type=number(int, least=100), default=1_000_000, help="moments")
    parser.add("--requests", type=number(int, least=1), default=50, help="timed searches")
    parser.add("--uploads", type=number(int, least=1), default=1000, help="of 1 MB each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_index(folder / "index", args.codes)
        engine = Engine(lambda: Index(folder / "index"), draw_code)
        services = Services(engine, Uploads(folder / "uploads"), Media(folder, 1, 60))
        app = create_app(services, ["127.0.0.1"])
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        measure(server.port, args)
        server.shutdown()


def measure(port, args):
    started = time.perf_counter()
    shown = ask(port, "/api/index")
    print(f"{shown['moments']} moments; overview {time.perf_counter() - started:.2f} s, once")
    rows = [one["row"] for one in shown["spread"]]
    for path in ("/api/search", "/api/histogram"):
        addresses = [f"{path}?row={rows[i % len(rows)]}" for i in range(args.requests)]
        rates = [per_second(port, addresses, threads) for threads in (1, 4)]
        print(f"{path:<15} {rates[0]:6.1f} a second, {rates[1]:6.1f} from four at once")
    before, body = resident_mib(), bytes(10**6)
    for _ in progress(range(args.uploads), "uploads", unit="upload"):
        token = ask(port, "/api/uploads", body)["upload"]
        ask(port, f"/api/search?upload={token}&top=1")
    print(f"memory {before:.0f} MiB, after {args.uploads} uploads {resident_mib():.0f} MiB")


if __name__ == "__main__":
    main()
