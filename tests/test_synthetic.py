"""The demo's classes differ by motion alone, and its files are what they claim to be."""

import numpy as np

from datasets.synthetic import ACTIONS, make_dataset, render_clip
from utils.video import read_video


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
    make_dataset(tmp_path, groups=3, clips=2, test_groups=1, classes=("Orbiting", "Pulsing"))
    videos = sorted(str(p.relative_to(tmp_path / "videos")) for p in tmp_path.glob("videos/*/*"))
    assert len(videos) == 12 and videos[0] == "Orbiting/v_Orbiting_g01_c01.avi"
    annotations = tmp_path / "annotations"
    assert (annotations / "classInd.txt").read_text() == "1 Orbiting\n2 Pulsing\n"
    train = (annotations / "trainlist01.txt").read_text().splitlines()
    test = (annotations / "testlist01.txt").read_text().splitlines()
    assert train[0] == "Orbiting/v_Orbiting_g02_c01.avi 1" and test[0] == videos[0]
    assert sorted([line.split()[0] for line in train] + test) == videos
    clip = read_video(tmp_path / "videos" / videos[0], 8, (96, 96))
    assert clip.std() > 20
