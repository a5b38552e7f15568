"""Files for browsers, made on demand and kept for a while: videos as they play them, previews."""

import hashlib
import math
import os
import threading
from functools import partial
from pathlib import Path

import cv2

from datasets.picture import VideoError
from datasets.process_pool import run_jobs
from datasets.video import read_video
from datasets.web_video import MOST_SECONDS, inspect_video, write_webm
from reports.page import FRAME_MILLISECONDS, WEBP_QUALITY, encode_animation
from utils.errors import UserError
from utils.files import atomic_write

MOST_BYTES = 2**30
PREVIEW_FRAMES, PREVIEW_HEIGHT = 8, 160  # pixels


class MediaCache:
    """Files in `folder`, made when they are wanted first; their total size is limited.

    most_bytes: above it the files that were not used for the longest time are deleted. makers: the
    number of files that may be made at once.
    """

    def __init__(self, folder, most_bytes=MOST_BYTES, makers=1):
        self.folder, self.most_bytes = Path(folder), most_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.turn, self.changing = threading.Semaphore(makers), threading.Lock()
        self.making = {}  # path -> lock of those who want it

    def get(self, key, make):
        """The path of the file for `key`. make: function that writes it to the path it is given."""
        name = hashlib.sha256(repr(key).encode("utf-8", "surrogateescape")).hexdigest()
        path = self.folder / name
        if self._use(path):
            return path
        with self.changing:
            lock = self.making.setdefault(path, threading.Lock())
        with lock:
            if not self._use(path):  # another request has made it meanwhile
                with self.turn, atomic_write(path) as temporary:
                    make(temporary)
                self._evict(path)
        with self.changing:
            self.making.pop(path, None)
        return path

    def _use(self, path):
        """Mark a file as used now; whether it exists."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _evict(self, newest):
        with self.changing:
            files = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
            files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in files)
            total = sum(size for _, size, _ in files)
            for _, size, path in files:
                if total > self.most_bytes and path != newest:
                    path.unlink(missing_ok=True)
                    total -= size


class Uploads:
    """Query videos that browsers have sent: files with random names, the newest ones.

    most_files, most_bytes: beyond these the oldest are deleted.
    """

    def __init__(self, folder, most_files=100, most_bytes=2**32):
        self.folder, self.most_files, self.most_bytes = Path(folder), most_files, most_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files, self.changing = {}, threading.Lock()  # token -> (name, bytes), oldest first

    def add(self, token, name, chunks):
        """Store a file. chunks: its content, in pieces. What is incomplete is removed."""
        size = 0
        with atomic_write(self.folder / token) as temporary, open(temporary, "wb") as file:
            for chunk in chunks:
                size += file.write(chunk)
        with self.changing:
            self.files[token] = name, size
            while len(self.files) > 1 and self._are_too_many():
                oldest = next(iter(self.files))
                del self.files[oldest]
                (self.folder / oldest).unlink(missing_ok=True)

    def _are_too_many(self):
        total = sum(size for _, size in self.files.values())
        return len(self.files) > self.most_files or total > self.most_bytes

    def find(self, token):
        """(path, name) of an upload, or None."""
        found = self.files.get(token)
        return None if found is None else (self.folder / token, found[0])


class Media:
    """Videos and previews of moments, made in worker processes.

    folder: for the files. workers: previews that are made at once; of videos it is one. seconds:
    time limit of each file.
    """

    def __init__(self, folder, workers, seconds):
        self.seconds = seconds
        self.videos = MediaCache(Path(folder) / "videos")
        self.previews = MediaCache(Path(folder) / "previews", MOST_BYTES // 8, workers)
        self.inspected = {}  # (path, mtime_ns) -> (type, seconds)

    def video(self, path, start, end, as_webm):
        """The video of a moment: (path, MIME type, first second, last second of what it shows).

        The file itself if browsers play it; else, or with as_webm, a WebM of the moment. path is a
        function that makes the file, if it has to, and returns its path. end: None for the end of
        the video. Raises UserError for a video that cannot be read.
        """
        state = _state(path)
        if state not in self.inspected:
            self.inspected[state] = self._run(inspect_video, path)
        kind, seconds = self.inspected[state]
        if kind and not as_webm:
            return (lambda: path), kind, 0.0, seconds or end
        end = min(end or seconds or math.inf, start + MOST_SECONDS)
        key = "webm", *state, start, end

        def write(target):
            self._run(write_webm, (path, start, end, target))

        return partial(self.videos.get, key, write), "video/webm", start, end

    def preview(self, path, start, end, is_still):
        """The path of the preview of a moment, a WebP. Raises UserError as `video` does."""
        end = math.inf if end is None else end
        key = "preview", *_state(path), start, end, is_still

        def write(target):
            self._run(write_preview, (path, start, end, target, is_still))

        return self.previews.get(key, write)

    def _run(self, function, job):
        """What `function(job)` returns in a worker process."""
        [(_, result, failure)] = run_jobs(function, [job], 1, self.seconds)
        if failure is not None:
            raise UserError(failure)
        return result


def write_preview(job):
    """Write a moment as WebP, an animation or a still: (None, None), or (None, reason).

    job: (path, start, end, target, is_still). Runs in a worker process.
    """
    path, start, end, target, is_still = job
    try:
        size = (PREVIEW_HEIGHT, None)  # the aspect ratio that a player shows
        frames = read_video(path, 1 if is_still else PREVIEW_FRAMES, size, start, end)
        data = encode_animation(frames, FRAME_MILLISECONDS, WEBP_QUALITY)
    except (VideoError, cv2.error) as error:
        return None, str(error)
    Path(target).write_bytes(data)
    return None, None


def _state(path):
    """What identifies the content of a file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"the video is missing: {error.strerror}") from error
    return str(path), status.st_mtime_ns, status.st_size
