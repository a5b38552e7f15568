"""The whole chain on a few genuine videos of UCF101 with its official lists."""

import json

import cv2
import numpy as np
import pytest

CLASSES = ("Biking", "BoxingSpeedBag", "Diving", "JavelinThrow")
SIZE = (48, 64)
TINY = "--clip-frames 8 --views 1 --size 32 --width 0.125 --bits 16 --epochs 1 --warmup-epochs 0"
TINY += " --classes-per-batch 4 --clips-per-class 2 --workers 1"


@pytest.fixture(scope="module")
def chain(data, tmp_path_factory, run_script):
    """A folder with videos, frames and splits of 12 videos: of each class 1 for test, 2 to train.

    Classes in order of group: the official lists have groups 1 to 7 in test.
    """
    root = tmp_path_factory.mktemp("real")
    sample, lists = data("ucf101_sample"), data("splits/ucfTrainTestlist")
    for name in CLASSES:
        (root / "videos" / name).mkdir(parents=True)
        videos = sorted((sample / name).iterdir())
        for video in (videos[0], *videos[-2:]):
            (root / "videos" / name / video.name).symlink_to(video.resolve())
    command = ["extract_frames.py", "--videos", root / "videos", "--frames", root / "frames"]
    run_script(*command, "--num-frames", 8, "--size", *SIZE, "--workers", 2)
    command = ["make_splits.py", "--dataset", "ucf101", "--annotations", lists]
    command += ["--frames", root / "frames", "--output", root / "splits"]
    result = run_script(*command, "--val-fraction", 0, "--allow-missing")
    assert "13308 of 13320 videos have no complete frame folder" in result.stdout
    assert "note: 97 of 101 classes have no training video, so 0 test videos" in result.stdout
    return root


def read_with_opencv(path):
    """The middle frames of 8 equal segments of a video: (8, *SIZE, 3) float BGR."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.resize(read[1], SIZE[::-1], interpolation=cv2.INTER_AREA))
    return np.stack([frames[(2 * i + 1) * len(frames) // 16] for i in range(8)]).astype(float)


def test_frames_are_those_of_their_own_video_in_order(chain):
    videos = sorted((chain / "videos").glob("*/*"))
    folders = [chain / "frames" / video.parent.name / video.stem for video in videos]
    clips = [
        np.stack([cv2.imread(str(path)) for path in sorted(folder.glob("*.jpg"))])
        for folder in folders
    ]
    expected = [read_with_opencv(video) for video in videos]
    distances = np.array([[np.abs(c - e).mean() for e in expected] for c in clips])  # (12, 12)
    backwards = np.array([np.abs(c - e[::-1]).mean() for c, e in zip(clips, expected, strict=True)])
    own, others = distances.diagonal(), distances[~np.eye(len(videos), dtype=bool)]
    print(
        f"\nmean differences in grey levels: own video at most {own.max():.2f}, "
        f"others at least {others.min():.2f}, own backwards {backwards.min():.2f}"
    )
    assert len(videos) == 12 and own.max() < 4 and others.min() > 12  # JPEG alone makes 2 to 3
    assert (backwards > 1.5 * own).all()


def test_lists_agree_with_the_official_ones(chain, data):
    lists = data("splits/ucfTrainTestlist")
    number = dict(line.split()[::-1] for line in (lists / "classInd.txt").read_text().splitlines())
    for split in ("train", "test"):
        text = (lists / f"{split}list01.txt").read_text()
        official = {line.split()[0] for line in text.splitlines() if line.strip()}
        ours = (chain / "splits" / f"{split}.txt").read_text().splitlines()
        assert len(ours) == {"train": 8, "test": 4}[split]
        for name, label in (line.rsplit(" ", 1) for line in ours):
            assert f"{name}.avi" in official
            assert int(label) == int(number[name.split("/")[0]]) - 1


def test_an_epoch_of_training_and_the_retrieval_after_it(chain, run_script):
    folders = "--frames", chain / "frames", "--splits", chain / "splits", "--output", chain / "run"
    run_script("train.py", "--config", "configs/folder.yaml", *folders, *TINY.split())
    run_script("test.py", "--checkpoint", chain / "run" / "last.pt")
    tested = json.loads((chain / "run" / "test" / "metrics.json").read_text())
    assert [tested["run"][key] for key in ("queries", "database", "bits")] == [4, 8, 16]
    assert tested["run"]["queries_without_relevant"] == 0 and 0 < tested["metrics"]["map"] <= 1
