"""search.py as a user runs it: indexing, kills, changes, queries."""

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import run_main, start_ranks

import search
from datasets.synthetic import class_names, make_dataset
from datasets.video_files import find_videos
from models import build_initial_model
from retrieval import index_update
from retrieval.index import Index
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

CLASSES = class_names(3)


def write_checkpoint(path, bits=12, seed=0):
    """A small network with random weights, as train.py saves them."""
    torch.manual_seed(seed)
    settings = {
        "backbone": "resnet18",
        "bits": bits,
        "width": 0.0625,
        "shortcut": "B",
        "dropout": 0,
    }
    model, network, normalisation, _ = build_initial_model(settings)
    preprocessing = {"clip_frames": 4, "frame_size": [32, 32], "size": 28, "crop": 0.9}
    save_checkpoint(
        path,
        {
            "network": network,
            "model": model.state_dict(),
            "classes": CLASSES,
            "clip_seconds": 5.0,
            "preprocessing": preprocessing | normalisation,
        },
    )
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.pt")


@pytest.fixture
def videos(tmp_path):
    """Twelve videos of three classes, a damaged one, a broken link and a file of another kind."""
    make_dataset(tmp_path, classes=3, groups=2, videos=12, test_groups=1, side=40)
    root = tmp_path / "videos"
    (root / "odd [1] 'x'" / "deep").mkdir(parents=True)
    first = next((root / CLASSES[0]).iterdir())
    shutil.copy(first, root / "odd [1] 'x'" / "deep" / "--line\nend <b>.avi")
    shutil.copy(first, os.fsencode(root) + b"/\xff.avi")
    (root / "damaged.avi").write_bytes(first.read_bytes()[:100])
    (root / "link.mp4").symlink_to("nowhere")
    (root / "notes.txt").write_text("no video")
    return root


def index_command(checkpoint, videos, output, *more):
    paths = ["--checkpoint", checkpoint, "--videos", videos, "--output", output]
    return ["search.py", "index", *paths, "--workers", 2, "--device", "cpu", *more]


def query_command(index, *videos):
    return ["search.py", "query", "--index", index, "--json", "--device", "cpu", "--video", *videos]


def content(index):
    """All rows of an index in the order of paths and times, its metadata and failures.csv."""
    table = Index(index).table.to_table().sort_by([("path", "ascending"), ("start", "ascending")])
    failures = index / "failures.csv"
    text = failures.read_text() if failures.exists() else None
    return table.to_pylist(), table.schema.metadata, text


def test_indexing_is_incremental(checkpoint, videos, tmp_path, run_script):
    command = index_command(checkpoint, videos, tmp_path / "index")
    first = run_script(*command, status=1)
    assert "14 videos in" in first.stdout and "14 encoded, 0 already there" in first.stdout
    assert "2 failed" in first.stdout and "failures.csv" in first.stderr
    failures = (tmp_path / "index" / "failures.csv").read_text()
    assert "damaged.avi," in failures and "link.mp4," in failures
    before = content(tmp_path / "index")

    again = run_script(*command, status=1)
    assert "0 encoded, 14 already there" in again.stdout and content(tmp_path / "index") == before

    (videos / "damaged.avi").unlink()
    (videos / "link.mp4").unlink()
    changed, gone = sorted((videos / CLASSES[2]).iterdir())[:2]
    gone.unlink()
    shutil.copy(next((videos / CLASSES[1]).iterdir()), changed)
    shutil.copy(changed, videos / "new.avi")
    third = run_script(*command)
    assert "14 videos in" in third.stdout
    assert "2 encoded, 12 already there, 1 removed, 0 failed" in third.stdout
    fresh = tmp_path / "fresh"
    run_script(*index_command(checkpoint, videos, fresh, "--batch-size", 5))
    assert content(fresh) == content(tmp_path / "index")
    files = {".lock", "checksums.json", "moments.lance", "moments.lance.lock"}
    assert {path.name for path in fresh.iterdir()} == files
    assert not list(tmp_path.glob(".*")), "needs no folder above"


def test_linked_folders_are_searched_once(videos):
    (videos / "linked").symlink_to(videos / CLASSES[0])
    (videos / CLASSES[0] / "circle").symlink_to(videos)
    found = find_videos(videos)
    names = [path for path in found if path.startswith((CLASSES[0], "linked"))]
    assert len(names) == len(set(names)) == 4, "each file under one of its two paths"


def test_queries_find_themselves_first(checkpoint, videos, tmp_path, run_script):
    run_script(*index_command(checkpoint, videos, tmp_path / "index"), status=1)
    odd = videos / "odd [1] 'x'" / "deep" / "--line\nend <b>.avi"
    first = next((videos / CLASSES[0]).iterdir())  # what `odd` is a copy of
    sliding = sorted((videos / CLASSES[2]).iterdir())
    command = query_command(tmp_path / "index", odd, *sliding)
    found = json.loads(run_script(*command, "--top", 5).stdout)
    assert [result["path"] for result in found] == [str(odd), *map(str, sliding)]
    for result in found:
        results = result["results"]
        assert [r["rank"] for r in results] == [1, 2, 3, 4, 5] and results[0]["distance"] == 0
        copies = [result["path"]]
        if result["path"] == str(odd):
            copies = [str(odd), str(first), f"{videos}/\udcff.avi"]
        keys = [(r["distance"], r["path"] not in copies, r["path"]) for r in results]
        assert keys == sorted(keys), "copies of the query first, then in the order of the paths"
        assert result["path"] in [r["path"] for r in results if r["distance"] == 0]
    known = {r["class"] for result in found for r in result["results"]}
    assert known <= {*CLASSES, None} and CLASSES[2] in known

    whole = json.loads(run_script(*command, "--top", 20).stdout)
    found = json.loads(run_script(*command, "--top", 20, "--exclude-query").stdout)
    for result in found:
        assert len(result["results"]) == 13
        assert result["path"] not in [r["path"] for r in result["results"]]

    page = tmp_path / "page.html"
    assert json.loads(run_script(*command, "--top", 20, "--html", page).stdout) == whole
    text = run_script(*[word for word in command if word != "--json"], "--html", page).stdout
    lines = [line for line in text.splitlines() if " tie at " not in line]
    assert "\\nend" in text and len(lines) == 5 * 12 + 5, "one line a result"
    assert page.read_text().count("<img") == 5 + 50

    with open(first, "ab") as file:  # the result of all five queries, and a query of none
        file.write(b"another size than the index records")
    run_script(*command, "--top", 20, "--html", page)
    assert page.read_text().count("<img") == 5 + 5 * 13


def mount_read_only(folder):
    """Only the process that calls this sees `folder` so; it must be of root."""
    ctypes.CDLL(None).unshare(0x00020000)  # CLONE_NEWNS
    for command in ("--make-rprivate /", f"--bind {folder} {folder}"):
        subprocess.run(["mount", *command.split()], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder, folder], check=True)


def test_an_index_that_cannot_be_written_is_searched(checkpoint, videos, tmp_path, run_script):
    index, video = tmp_path / "index", next((videos / CLASSES[2]).iterdir())
    run_script(*index_command(checkpoint, videos, index), status=1)
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a folder here")
    command = query_command(index, video)
    found = run_script(*command, patch=partial(mount_read_only, index)).stdout
    assert found == run_script(*command).stdout and json.loads(found)[0]["results"]


def test_a_run_folder_means_its_best_checkpoint(checkpoint, videos, tmp_path, run_script):
    index = tmp_path / "index"
    made = run_script(*index_command(checkpoint.parent, videos, index), status=1)
    assert f"using {checkpoint}\n" in made.stderr
    assert Index(index).metadata["checkpoint"] == str(checkpoint)
    command = query_command(index, next((videos / CLASSES[0]).iterdir()))
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint.parent, moved)
    found = run_script(*command, "--checkpoint", moved)
    assert f"using {moved / 'best.pt'}\n" in found.stderr
    assert json.loads(found.stdout) == json.loads(run_script(*command).stdout)


def test_an_index_without_its_checkpoint_says_so(videos, tmp_path, run_script):
    checkpoint, index = write_checkpoint(tmp_path / "run" / "best.pt"), tmp_path / "index"
    run_script(*index_command(checkpoint, videos, index), status=1)
    checkpoint.rename(tmp_path / "moved.pt")
    command = query_command(index, next((videos / CLASSES[0]).iterdir()))
    error = run_script(*command, status=1).stderr
    assert f"its checkpoint {checkpoint} is missing; if it was moved, set --checkpoint" in error
    run_script(*command, "--checkpoint", tmp_path / "moved.pt")


def test_a_time_range_of_a_query_and_reranking(checkpoint, videos, tmp_path, run_script):
    run_script(*index_command(checkpoint, videos, tmp_path / "index"), status=1)
    video = next((videos / CLASSES[1]).iterdir())
    command = query_command(tmp_path / "index", video)
    whole = json.loads(run_script(*command, "--top", 14).stdout)[0]["results"]
    same = json.loads(run_script(*command, "--top", 14, "--end", 100).stdout)[0]["results"]
    middle = json.loads(run_script(*command, "--top", 14, "--start", 0.4, "--end", 0.6).stdout)
    ranked = json.loads(run_script(*command, "--top", 14, "--rerank", 14).stdout)[0]["results"]
    assert whole == same != middle[0]["results"]
    assert {r["path"]: r["distance"] for r in ranked} == {r["path"]: r["distance"] for r in whole}
    few = json.loads(run_script(*command, "--top", 14, "--rerank", 3).stdout)[0]["results"]
    assert few[3:] == whole[3:] and {r["path"] for r in few} == {r["path"] for r in whole}
    short = json.loads(run_script(*command, "--top", 14, "--bits", 5).stdout)[0]["results"]
    nearer = {r["path"]: r["distance"] for r in short}
    assert all(nearer[r["path"]] <= min(5, r["distance"]) for r in whole) and len(short) == 14
    assert any(nearer[r["path"]] < r["distance"] for r in whole)
    late = run_script(*command, "--start", 60, status=1)
    assert "has no frame from 60 to inf s; its last is at" in late.stderr
    assert "is not before" in run_script(*command, "--start", 2, "--end", 1, status=1).stderr


def test_mistakes_are_one_line(checkpoint, videos, tmp_path, run_script):
    other = write_checkpoint(tmp_path / "other.pt", seed=1)
    index, video = tmp_path / "index", next((videos / CLASSES[2]).iterdir())
    run_script(*index_command(checkpoint, videos, index), status=1)
    moved = [*query_command(index, video), "--checkpoint", other]
    (tmp_path / "empty").mkdir()
    cases = [
        (moved, "made with another checkpoint"),
        (index_command(other, videos, index), "made with another checkpoint"),
        (index_command(checkpoint, videos, videos), "exists, but is not an index"),
        (index_command(checkpoint, tmp_path / "empty", index), "no video there"),
        (index_command(checkpoint, tmp_path / "none", index), "no such folder"),
        (index_command(tmp_path / "no.pt", videos, index), "no such checkpoint"),
        (index_command(videos, videos, index), "no best.pt or last.pt in this folder"),
        (index_command(checkpoint, videos, video / "index"), "Not a directory"),
        (query_command(videos, video), f"`search.py index` makes; did you mean {index}?"),
        (query_command(checkpoint, video), "not an index folder"),
        (query_command(index, videos), "is not a file"),
        ([*query_command(index, video), "--html", videos], "is a folder; name a file"),
        ([*query_command(index, video), "--html", video / "x.html"], "Not a directory"),
        (query_command(index, tmp_path / "no.avi"), "No such file"),
        (query_command(index, videos / "damaged.avi"), "cannot be opened as a video"),
    ]
    for command, message in cases:
        error = run_script(*command, status=1).stderr
        assert message in error and error.count("\n") == 1
    both = run_script(*query_command(index, videos / "damaged.avi", video), status=1)
    assert len(json.loads(both.stdout)) == 1, "the other query is answered all the same"


def test_one_flipped_bit_ends_query_and_update(checkpoint, videos, tmp_path, run_script):
    """Neither answers with it nor writes it into the next index."""
    index, video = tmp_path / "index", next((videos / CLASSES[2]).iterdir())
    command = index_command(checkpoint, videos, index)
    run_script(*command, status=1)
    before = content(index)
    path = next(index.glob("moments.lance/data/*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 16]))
    for words in (query_command(index, video), command):
        process = run_script(*words, status=1)
        assert process.stderr.endswith(" is wrong); delete it and index again\n")
        assert process.stderr.count("\n") == 1 and not process.stdout
    path.write_bytes(whole)
    assert content(index) == before


def test_serving_without_flask_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "serving.app", raising=False)
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(UserError, match="pip install -r requirements-serve.txt"):
        search.serve_index(None, None)


# ==== moments ====


def test_long_videos_are_found_by_their_moments(checkpoint, tmp_path, run_script):
    make_dataset(tmp_path, classes=3, groups=2, videos=12, test_groups=1, side=40)
    videos, index = tmp_path / "videos", tmp_path / "index"
    run_script(*index_command(checkpoint, videos, index, "--window", 0.4, "--stride", 0.3))
    table = Index(index).table.to_table().to_pylist()
    first = [row for row in table if row["path"] == table[0]["path"]]
    assert [row["start"] for row in first[:3]] == [0, 0.3, 0.6] and len(first) > 4
    assert all(row["end"] - row["start"] == pytest.approx(0.4) for row in first)
    query = videos / table[0]["path"]
    command = query_command(index, query)
    (found,) = json.loads(run_script(*command, "--top", 40).stdout)
    for one in found["results"]:
        others = [r for r in found["results"] if r["path"] == one["path"] and r is not one]
        assert all(r["end"] <= one["start"] or r["start"] >= one["end"] for r in others)
    (found,) = json.loads(run_script(*command, "--top", 40, "--per-video").stdout)
    paths = [result["path"] for result in found["results"]]
    assert len(paths) == len(set(paths)) == 12 and paths[0] == str(query)
    limits = "--start", 0.6, "--end", 1.0
    (found,) = json.loads(run_script(*command, *limits).stdout)
    assert (found["start"], found["end"]) == (0.6, 1.0)
    best = found["results"][0]
    assert (best["path"], best["distance"], best["query_start"]) == (str(query), 0, 0.6)

    refused = run_script(*index_command(checkpoint, videos, index, "--window", "whole"), status=1)
    assert "made with --window 0.4, not whole" in refused.stderr
    again = run_script(*index_command(checkpoint, videos, index))
    assert "0 encoded, 12 already there" in again.stdout, "the index knows its windows"
    run_script(*index_command(checkpoint, videos, tmp_path / "whole", "--window", "whole"))
    assert len(Index(tmp_path / "whole")) == 12


def test_stored_embeddings_are_the_real_codes_and_sort_the_nearest(
    checkpoint, videos, tmp_path, run_script
):
    index = tmp_path / "index"
    update = index_command(checkpoint, videos, index, "--window", 0.4)
    run_script(*update, "--store-embeddings", status=1)
    rows = Index(index).table.to_table().to_pylist()
    values = np.array([row["embedding"] for row in rows], np.float32)
    codes = np.unpackbits(np.array([list(row["code"]) for row in rows], np.uint8), axis=1)
    assert ((values >= 0) == codes[:, :12]).all() and len(np.unique(values)) > 100
    query = next((videos / CLASSES[1]).iterdir())
    command = *query_command(index, query), "--start", 0.3, "--end", 0.7, "--top", 99
    (found,) = json.loads(run_script(*command).stdout)
    (plain,) = json.loads(run_script(*command, "--rerank", 0).stdout)
    assert found["results"] != plain["results"]
    distances = [result["distance"] for result in plain["results"]]
    assert distances == sorted(distances) != [r["distance"] for r in found["results"]]

    again = run_script(*update, status=1)
    assert "14 already there" in again.stdout, "the index knows that it stores them"
    error = run_script(*update, "--no-store-embeddings", status=1).stderr
    assert "made with --store-embeddings; omit this flag" in error


def test_several_indexes_filters_and_moved_videos(checkpoint, videos, tmp_path, run_script):
    index = tmp_path / "index"
    run_script(*index_command(checkpoint, videos, index), status=1)
    query = tmp_path / "query.avi"
    shutil.copy(next((videos / CLASSES[1]).iterdir()), query)
    videos.rename(tmp_path / "moved")
    command = query_command(index, query)
    both = ["search.py", "query", "--index", index, index, *command[4:]]
    moved = "--videos", tmp_path / "moved", "--top", 30
    (one,) = json.loads(run_script(*command, *moved).stdout)
    (two,) = json.loads(run_script(*both, *moved).stdout)
    assert one["results"][0]["path"].startswith(str(tmp_path / "moved" / CLASSES[1]))
    twice = [result["path"] for result in one["results"] for _ in range(2)]
    assert sorted(result["path"] for result in two["results"]) == sorted(twice)
    (found,) = json.loads(run_script(*command, *moved, "--class", CLASSES[2]).stdout)
    assert {result["class"] for result in found["results"]} == {CLASSES[2]}
    (found,) = json.loads(run_script(*command, *moved, "--path", "*_c01.avi").stdout)
    assert found["results"] and all("_c01" in result["path"] for result in found["results"])
    empty = [word for word in command if word != "--json"] + ["--class", "nothing"]
    assert "nothing matches" in run_script(*empty).stdout


def test_an_index_is_exported_as_parquet(checkpoint, videos, tmp_path, run_script):
    index, file = tmp_path / "index", tmp_path / "new" / "moments.parquet"
    run_script(*index_command(checkpoint, videos, index), status=1)
    run_script("search.py", "export", "--index", index, "--parquet", file)
    assert pq.read_table(file).equals(Index(index).table.to_table())
    refused = run_script("search.py", "export", "--index", index, "--parquet", index, status=1)
    assert "is a folder; name a file" in refused.stderr


@pytest.mark.parametrize("flags", [("--stride", "0"), ("--window", "-1"), ("--window", "nan")])
def test_impossible_windows_are_refused(flags, checkpoint, videos, tmp_path, run_script):
    command = index_command(checkpoint, videos, tmp_path / "index", *flags)
    error = run_script(*command, status=2).stderr
    assert "must be a number above 0" in error and error.count("\n") == 1
    assert not (tmp_path / "index").exists()


# ==== kills ====


def append_at_once():
    """Patch: after each video its moments are appended, not after some seconds."""
    index_update.APPEND_SECONDS = 0


def kill_and_repeat(command, output, kills, delays, start_script):
    """Kill the command after each delay beyond its first progress, then let it end: its output."""
    for _ in range(kills):
        process, count = start_script(*command, patch=append_at_once), count_versions(output)
        while process.status() is None and count_versions(output) <= max(count, 1):
            time.sleep(0.001)
        time.sleep(next(delays))
        assert process.status() is None, "ended before the kill; index more videos"
        process.kill()
    assert count_versions(output) > 1, "the kills came before any work"
    process = start_script(*command)
    assert process.wait() == 0, process.stderr
    return process.stdout


def count_versions(output):
    """The number of the newest version of the table of an index."""
    return len(list(output.glob("moments.lance/_versions/*.manifest")))


@pytest.mark.parametrize(
    ("count", "kills"), [(120, 1), pytest.param(900, 30, marks=pytest.mark.slow)]
)
def test_an_index_made_with_kills_equals_one_made_in_one_go(
    count, kills, checkpoint, tmp_path, run_script, start_script
):
    make_dataset(tmp_path, classes=3, groups=5, videos=count, test_groups=1, side=40)
    whole, killed = (
        index_command(checkpoint, tmp_path / "videos", tmp_path / name, "--batch-size", 8)
        for name in ("whole", "killed")
    )
    run_script(*whole)
    rng = random.Random(0)
    delays = (rng.uniform(0, 0.05) for _ in iter(int, 1))
    output = kill_and_repeat(killed, tmp_path / "killed", kills, delays, start_script)
    done = int(output.partition(": ")[2].split()[0])
    assert 0 < done < count, "the last run had nothing, or everything, to do"
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_two_processes_divide_the_work(checkpoint, videos, tmp_path, run_script):
    run_script(*index_command(checkpoint, videos, tmp_path / "one"), status=1)
    command = tuple(map(str, index_command(checkpoint, videos, tmp_path / "two")))
    processes = start_ranks(2, tmp_path, run_main, command)
    assert [process.wait() for process in processes] == [1, 0], "the main one reports the failures"
    assert "14 encoded" in processes[0].stdout
    assert content(tmp_path / "one") == content(tmp_path / "two")
