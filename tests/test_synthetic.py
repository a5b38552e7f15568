"""The demo's classes differ by motion alone, and its files are what they claim to be."""

import numpy as np
import pytest

from datasets.synthetic import ACTIONS, class_names, make_dataset, render_clip
from datasets.video import read_video


def test_a_still_frame_is_drawn_alike_for_every_class():
    """Background, shapes and colours come from the scene, whatever the action."""
    clips = {action: render_clip(action, 7, 3) for action in ACTIONS}
    assert len({len(clip) for clip in clips.values()}) == 1
    means = [clip.mean() for clip in clips.values()]
    assert max(means) - min(means) < 4
    backgrounds = [np.median(clip, axis=0) for clip in clips.values()]
    for other in backgrounds[1:]:
        assert (np.abs(other - backgrounds[0]) < 25).mean() > 0.75


def test_the_actions_move_differently():
    clips = [render_clip(action, 7, 3).astype(int) for action in ACTIONS]
    for i, first in enumerate(clips):
        for second in clips[i + 1 :]:
            assert (np.abs(first - second).max(axis=3) > 60).mean() > 0.01


def test_clips_are_a_function_of_their_seeds():
    assert np.array_equal(render_clip("Orbiting", 1, 2), render_clip("Orbiting", 1, 2))
    assert not np.array_equal(render_clip("Orbiting", 1, 2)[0], render_clip("Orbiting", 1, 3)[0])


def test_the_data_set_is_laid_out_as_ucf101_is(tmp_path):
    make_dataset(tmp_path, classes=2, groups=3, videos=12, test_groups=1)
    videos = sorted(str(p.relative_to(tmp_path / "videos")) for p in tmp_path.glob("videos/*/*"))
    assert len(videos) == 12 and videos[0] == "Bouncing/v_Bouncing_g01_c01.avi"
    annotations = tmp_path / "annotations"
    assert (annotations / "classInd.txt").read_text() == "1 Bouncing\n2 Orbiting\n"
    train = (annotations / "trainlist01.txt").read_text().splitlines()
    test = (annotations / "testlist01.txt").read_text().splitlines()
    assert train[0] == "Bouncing/v_Bouncing_g02_c01.avi 1" and test[0] == videos[0]
    assert sorted([line.split()[0] for line in train] + test) == videos
    clip = read_video(tmp_path / "videos" / videos[0], 8, (96, 96))
    assert clip.std() > 20


def test_more_classes_than_actions_differ_in_pace_or_size(tmp_path):
    names = class_names(101)
    assert len(set(names)) == 101 and names[:2] == ["Bouncing1", "Orbiting1"]
    first, slower, larger = (render_clip(f"Sliding{n}", 7, 3, side=48) for n in (1, 6, 5))
    assert first.shape[1:] == (48, 48, 3)
    assert not np.array_equal(first, slower) and not np.array_equal(first, larger)
    with pytest.raises(ValueError, match="120 variants"):
        class_names(121)


def test_videos_are_divided_evenly_among_the_groups(tmp_path):
    make_dataset(tmp_path, classes=2, groups=3, videos=8, test_groups=1, side=32)
    videos = sorted(path.name for path in tmp_path.glob("videos/*/*"))
    assert len(videos) == 8
    assert videos[:3] == [f"v_Bouncing_g0{group}_c01.avi" for group in (1, 2, 3)]
