"""The page of search.py serve: answers and refusals of its server."""

import io
import shutil
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_index import METADATA, make_index

from datasets.picture import VideoError
from datasets.video import decode, read_video
from utils.errors import UserError

flask = pytest.importorskip("flask", reason="no Flask; pip install -r requirements-serve.txt")
from retrieval.index import Index  # noqa: E402
from serving.app import Services, create_app, temporary_folder  # noqa: E402
from serving.engine import Engine  # noqa: E402
from serving.media import Media, MediaCache, Uploads  # noqa: E402

HOSTILE = "<img src=x onerror=document.title=1>.avi"
ORIGIN = {"Origin": "http://localhost"}


def encode(path, start, end):
    """One window with a code of the brightness in 12 parts of the picture."""
    try:
        frame = read_video(path, 1, (3, 4), start, end)[0].mean(axis=2)
    except VideoError as error:
        raise UserError(str(error)) from None
    return [(start, min(end, 2.0), frame.ravel() - np.median(frame))]


def row_of(root, path, name):
    (_, _, code), *_ = encode(path, 0.0, 2.0)
    packed = np.packbits(code >= 0).tobytes()
    row = {"path": str(path.relative_to(root)), "start": 0.0, "end": 2.0, "class": name}
    return {**row, "size": path.stat().st_size, "mtime_ns": 1, "code": packed}


def write_mp4(source, target):
    """The same pictures as H.264 in MP4."""
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.pix_fmt = "yuv420p"
        frames = list(decode(source))
        stream.width, stream.height = (
            frames[0].frame.width // 2 * 2,
            frames[0].frame.height // 2 * 2,
        )
        for frame in frames:
            image = frame.frame.reformat(stream.width, stream.height, "yuv420p")
            image.pts, image.time_base = None, Fraction(1, 25)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


class Site:
    """The application with an index of four videos, and a client for it."""

    def __init__(self, videos, folder):
        self.root, self.folder = videos, folder
        first, second, third, fourth = sorted(videos.glob("*/*.avi"))
        third.rename(third.with_name(HOSTILE))
        write_mp4(second, second.with_suffix(".mp4"))
        second.unlink()
        self.files = sorted(videos.glob("*/*.*"))
        self.metadata = {**METADATA, "videos": str(videos)}
        rows = [row_of(videos, path, path.parent.name) for path in self.files]
        make_index(folder / "index", rows, self.metadata, pieces=1)
        engine = Engine(lambda: Index(folder / "index"), encode)
        self.uploads = Uploads(folder / "uploads")
        self.media = Media(folder / "media", workers=2, seconds=60)
        services = Services(engine, self.uploads, self.media)
        self.app = create_app(services, ["localhost", "127.0.0.1"])
        self.client = self.app.test_client()
        self.rows = {one["name"]: one["row"] for one in self.get("/api/index")["spread"]}

    def get(self, address, status=200, **values):
        headers = values.pop("headers", {})
        response = self.client.get(address, query_string=values, headers=headers)
        assert response.status_code == status, response.text
        return response.json if response.is_json else response

    def row(self, place):
        return self.rows[str(self.files[place].relative_to(self.root))]

    def upload(self, content, name="q.avi"):
        response = self.client.post(
            "/api/uploads", query_string={"name": name}, data=content, headers=ORIGIN
        )
        assert response.status_code == 201
        return response.json["upload"]


def make_site(drawn_videos, folder):
    for video in sorted(drawn_videos.glob("*/*_c01.avi"))[::4]:
        copy = folder / "videos" / video.relative_to(drawn_videos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(video, copy)
    return Site(folder / "videos", folder / "site")


@pytest.fixture(scope="module")
def site(drawn_videos, tmp_path_factory):
    return make_site(drawn_videos, tmp_path_factory.mktemp("site"))


@pytest.fixture
def own_site(drawn_videos, tmp_path):
    """One that a test may change."""
    return make_site(drawn_videos, tmp_path)


# ==== answers ====


def test_the_index_is_described(site):
    shown = site.get("/api/index")
    assert (shown["videos"], shown["moments"], shown["bits"]) == (4, 4, 12)
    classes = {path.parent.name for path in site.files}
    assert {one["name"] for one in shown["classes"]} == classes
    assert sum(one["videos"] for one in shown["classes"]) == 4 and len(shown["spread"]) == 4


def test_an_uploaded_video_finds_itself_first(site):
    for path in site.files:
        token = site.upload(path.read_bytes(), path.name)
        found = site.get("/api/search", upload=token)
        names = [result["name"] for result in found["results"]]
        assert names[0] == str(path.relative_to(site.root)) and len(set(names)) == 4
        distances = [result["distance"] for result in found["results"]]
        assert distances[0] == 0 and distances == sorted(distances)
        assert found["query"]["name"] == path.name and not found["more"]
        counts = site.get("/api/histogram", upload=token)["counts"]
        assert counts == np.bincount(distances, minlength=13).tolist()


def test_a_moment_of_the_index_finds_the_others(site):
    found = site.get("/api/search", row=site.row(0), top=2)
    assert site.row(0) not in {result["row"] for result in found["results"]}
    assert len(found["results"]) == 2 and found["more"]
    whole = site.get("/api/search", row=site.row(0))
    assert whole["results"][:2] == found["results"] and len(whole["results"]) == 3
    name = whole["results"][2]["class"]
    limited = site.get("/api/search", row=site.row(0), **{"class": name})["results"]
    assert {result["class"] for result in limited} == {name}
    hostile = next(i for i, path in enumerate(site.files) if path.name == HOSTILE)
    other = site.row(hostile - 1)
    [one] = site.get("/api/search", row=other, name="<img src")["results"]
    assert one["row"] == site.row(hostile)
    assert site.get("/api/search", row=site.row(0), name="*")["results"] == [], "no wildcard"


def test_browsers_get_the_file_itself_where_they_can_play_it(site):
    place = next(i for i, path in enumerate(site.files) if path.suffix == ".mp4")
    info = site.get("/api/video", row=site.row(place))
    frames = len(list(decode(site.files[place])))
    assert info["offset"] == 0 and info["to"] == pytest.approx(frames / 25, abs=0.1)
    response = site.client.get(info["url"])
    assert response.data == site.files[place].read_bytes() and response.mimetype == "video/mp4"
    part = site.client.get(info["url"], headers={"Range": "bytes=10-29"})
    assert part.status_code == 206 and part.data == response.data[10:30]
    assert part.headers["Content-Range"] == f"bytes 10-29/{len(response.data)}"


def test_other_videos_become_webm_with_their_pictures_and_times(site):
    place = next(i for i, path in enumerate(site.files) if path.suffix == ".avi")
    info = site.get("/api/video", row=site.row(place))
    response = site.client.get(info["url"])
    assert response.mimetype == "video/webm" and response.status_code == 200
    part = site.client.get(info["url"], headers={"Range": "bytes=0-9"})
    assert part.status_code == 206 and part.data == response.data[:10]
    expected = list(decode(site.files[place], 0.0, 2.0))
    with av.open(io.BytesIO(response.data)) as container:
        frames = list(container.decode(video=0))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    assert times == pytest.approx([frame.seconds for frame in expected], abs=0.002)
    for ours, theirs in zip(frames[::9], expected[::9], strict=True):
        size = {"width": 32, "height": 24, "format": "gray"}
        pictures = [frame.reformat(**size).to_ndarray() for frame in (ours, theirs.frame)]
        assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 8
    forced = site.get("/api/video", row=site.row(place), webm=1)
    assert forced["url"] != info["url"]


def test_previews_move_or_are_still(site):
    moving = site.get("/media/preview", row=site.row(0)).data
    still = site.get("/media/preview", row=site.row(0), still=1).data
    assert moving.startswith(b"RIFF") and moving.count(b"ANMF") == 8 and still.count(b"ANMF") < 2


# ==== refusals ====


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"row": 1, "upload": "a"},
        {"row": "/etc/passwd"},
        {"row": "../../secret"},
        {"row": -1},
        {"row": 2**64},
        {"upload": "U", "start": "nan"},
        {"upload": "U", "start": 2, "end": 1},
        {"upload": "U", "top": 0},
        {"upload": "U", "top": 10**9},
    ],
)
def test_senseless_addresses_are_bad_requests(values, site):
    if values.get("upload") == "U":
        values = {**values, "upload": site.upload(site.files[0].read_bytes())}
    assert site.get("/api/search", status=400, **values)["error"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 403),
        ("null", 403),
        ("http://evil.example", 403),
        ("http://localhost:9", 403),
        ("https://localhost", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost", 201),
    ],
)
def test_only_the_own_page_may_send_videos(origin, status, site):
    headers = {"Origin": origin} if origin else {}
    before = len(site.uploads.files)
    response = site.client.post("/api/uploads", data=b"x", headers=headers)
    assert response.status_code == status
    assert len(site.uploads.files) - before == (status == 201)


@pytest.mark.parametrize("address", ["/api/index", "/media/preview", "/static/main.js"])
def test_other_sites_may_not_read(address, site):
    for value in ("cross-site", "same-site"):
        site.get(address, status=403, headers={"Sec-Fetch-Site": value})
    site.get("/", headers={"Sec-Fetch-Site": "cross-site"})  # a link to the page


def test_names_of_other_hosts_are_refused(site):
    """A site whose name is made to lead to this machine is still another site."""
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert site.client.get("/api/index", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    "address",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/engine.py", "/api", "/media/uploads"],
)
def test_only_the_files_of_the_page_are_served(address, site):
    assert site.client.get(address).status_code == 404


def test_what_does_not_exist_is_not_found(site):
    assert "no such row" in site.get("/api/search", status=404, row=site.row(0) + 999)["error"]
    for token in ("abc", "../index", "%00"):
        assert "send it again" in site.get("/api/search", status=404, upload=token)["error"]


def test_large_uploads_are_refused(own_site):
    site = own_site
    site.app.config["MAX_CONTENT_LENGTH"] = 1000
    response = site.client.post("/api/uploads", data=b"x" * 1001, headers=ORIGIN)
    assert response.status_code == 413 and "at most 512 MB" in response.json["error"]
    assert list((site.folder / "uploads").iterdir()) == []


def test_an_unreadable_video_is_refused_with_the_reason(own_site):
    site = own_site
    token = site.upload(b"this is no video")
    for address in ("/api/search", "/api/video", "/media/preview"):
        error = site.get(address, status=422, upload=token)["error"]
        assert "cannot be opened as a video" in error and str(site.folder) not in error
    site.files[0].unlink()
    assert "is missing" in site.get("/media/video", status=422, row=site.row(0))["error"]


def test_files_of_another_size_than_the_index_records_are_not_shown(own_site):
    """The index of somebody else may name any file; of a changed video the times may be wrong."""
    site = own_site
    with open(site.files[0], "ab") as file:
        file.write(b"x")
    for address in ("/media/video", "/media/preview", "/api/video"):
        error = site.get(address, status=422, row=site.row(0))["error"]
        assert "has another size than when it was indexed" in error
    site.get("/api/search", status=422, row=site.row(0), start=1)
    assert site.get("/api/search", row=site.row(0))["results"], "by its code"
    site.get("/media/preview", row=site.row(1))


def test_a_replaced_index_is_searched_at_once(own_site):
    site = own_site
    before = site.get("/api/index")["version"]
    assert site.get("/api/search", row=site.row(0), version=before)
    new = site.files[0].with_name("new.avi")
    new.write_bytes(site.files[0].read_bytes())
    make_index(site.folder / "index", [row_of(site.root, new, None)], site.metadata, pieces=1)
    assert "has changed" in site.get("/api/search", 409, row=site.row(0), version=before)["error"]
    assert site.get("/api/index")["videos"] == 5
    token = site.upload(new.read_bytes())
    assert len(site.get("/api/search", upload=token)["results"]) == 5


def test_answers_forbid_scripts_of_others_and_guesses_of_their_type(site):
    for address in ("/", "/api/index", "/api/search", "/static/main.js"):
        headers = site.client.get(address).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'") and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    page = site.client.get("/").text
    assert "<script>" not in page and " style=" not in page and "onclick" not in page


# ==== files made on demand ====


def test_the_cache_deletes_what_was_not_used_for_the_longest_time(tmp_path):
    cache = MediaCache(tmp_path, most_bytes=300)
    made = []

    def get(key):
        path = cache.get(key, lambda target: (made.append(key), target.write_bytes(b"x" * 100)))
        time.sleep(0.01)
        return path

    for key in "abcabd":  # a and b are used after c
        get(key)
    assert made == list("abcd") and len(list(tmp_path.iterdir())) == 3
    get("c")
    assert made == list("abcdc")


def test_one_file_is_made_at_a_time_and_once(tmp_path):
    cache, running, most, made = MediaCache(tmp_path), [], [], []

    def make(target):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        made.append(target)
        target.write_bytes(b"x")
        running.pop()

    threads = [threading.Thread(target=cache.get, args=(key, make)) for key in "aabbcc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(made) == 3


def test_the_oldest_uploads_are_deleted(tmp_path):
    uploads = Uploads(tmp_path, most_files=2, most_bytes=25)
    for token in "abc":
        uploads.add(token, f"{token}.avi", [b"12345", b"67890"])
    assert uploads.find("a") is None and uploads.find("c")[1] == "c.avi"
    uploads.add("d", "d.avi", [b"x" * 20])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]

    def broken():
        yield b"1"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        uploads.add("e", "e.avi", broken())
    assert uploads.find("e") is None and [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_files_are_deleted_though_requests_still_write(monkeypatch):
    """As those that Ctrl-C interrupts; what they write after a deletion began must not stay."""
    delete = shutil.rmtree

    def delete_while_others_write(folder, **options):
        monkeypatch.setattr("serving.app.shutil.rmtree", delete)
        delete(folder)
        (Path(folder) / "previews").mkdir(parents=True)

    monkeypatch.setattr("serving.app.shutil.rmtree", delete_while_others_write)
    with temporary_folder() as folder:
        (Path(folder) / "upload").write_text("private")
    assert not Path(folder).exists()
