"""Crop, flip, colour and normalisation of whole clips on the device."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from datasets.transforms import augment, prepare
from retrieval.encode import build_encoder

PLAIN = {"size": 24, "crop": 1.0, "channels": "RGB", "range": 1.0}
PLAIN |= {"mean": [0.0] * 3, "std": [1.0] * 3}
STILL = {"crop_scale": (1.0, 1.0), "flip": False, "colour_jitter": 0.0}


def noise(batch=8, frames=5, height=24, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, frames, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def train(clips, preprocessing=PLAIN, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    return augment(clips, preprocessing, generator=generator, **{**STILL, **changes})


def test_a_full_window_at_the_frames_size_changes_nothing():
    clips = noise()
    expected = clips.permute(0, 4, 1, 2, 3) / 255
    torch.testing.assert_close(prepare(clips, PLAIN), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(train(clips), expected, atol=1e-5, rtol=0)


def test_the_test_window_is_the_centre():
    clips = noise(height=32, width=40)
    preprocessing = {**PLAIN, "crop": 0.75}  # 24 of 32 rows
    expected = clips[:, :, 4:28, 8:32].permute(0, 4, 1, 2, 3) / 255
    torch.testing.assert_close(prepare(clips, preprocessing), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("frame", "crop", "size", "top", "left"),
    [
        ((128, 171), 0.875, 112, 8, 30),  # the window would begin at x = 29.5
        ((31, 24), 1.0, 24, 4, 0),
        ((24, 24), 1.0, 24, 0, 0),
        ((40, 50), 0.61, 24, 8, 13),  # 24.4 rows
    ],
)
def test_without_resizing_the_test_window_is_cut_out_at_whole_pixels(frame, crop, size, top, left):
    clips = noise(batch=2, height=frame[0], width=frame[1])
    window = clips[:, :, top : top + size, left : left + size].permute(0, 4, 1, 2, 3)
    result = prepare(clips, {**PLAIN, "crop": crop, "size": size, "range": 255.0})
    assert torch.equal(result, window.float())


def test_motion_is_the_difference_of_frames_and_sees_no_background():
    clips = noise()
    motion = {**PLAIN, "input": "motion", "std": [0.5] * 3}
    frames = prepare(clips, {**PLAIN, "std": [0.5] * 3})
    expected = 2 * (frames[:, :, 1:] - frames[:, :, :-1])
    for result in (prepare(clips, motion), train(clips, motion)):
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    still = noise(frames=1).expand(-1, 5, -1, -1, -1)
    assert prepare(still, motion).abs().max() == 0
    flipped = train(clips, motion, flip=True)
    changed = (flipped - expected).abs().amax(dim=(1, 2, 3, 4)) > 1e-3
    assert 0 < changed.sum() < len(clips)
    torch.testing.assert_close(flipped[changed], expected[changed].flip(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["rgb", "motion"])
def test_views_are_interleaved_clips(kind):
    """12 frames as 3 clips of 4 frames: 0, 3, 6, 9 and so on, adjacent for each video."""
    clips = noise(batch=2, frames=12)
    several = {**PLAIN, "input": kind, "views": 3}
    result = prepare(clips, several)
    expected = [
        prepare(clip[None, v::3], {**PLAIN, "input": kind}) for clip in clips for v in range(3)
    ]
    assert torch.equal(result, torch.cat(expected))
    assert torch.equal(train(clips, several), train(clips, {**PLAIN, "input": kind}))  # test time


def test_normalisation_is_per_channel():
    clips = torch.zeros(1, 2, 24, 24, 3, dtype=torch.uint8)
    clips[..., 0], clips[..., 1], clips[..., 2] = 255, 51, 0
    preprocessing = {**PLAIN, "mean": [0.5, 0.2, 0.1], "std": [0.5, 0.25, 0.1]}
    result = prepare(clips, preprocessing)[0, :, 0, 0, 0]
    torch.testing.assert_close(result, torch.tensor([1.0, 0.0, -1.0]), atol=1e-5, rtol=0)


def test_weights_of_caffe_get_bgr_in_0_to_255():
    clips = torch.zeros(1, 2, 24, 24, 3, dtype=torch.uint8)
    clips[..., 0], clips[..., 1], clips[..., 2] = 200, 100, 50  # red, green, blue
    preprocessing = {**PLAIN, "channels": "BGR", "range": 255.0, "mean": [90.0, 98.0, 102.0]}
    result = prepare(clips, preprocessing)[0, :, 0, 0, 0]
    torch.testing.assert_close(result, torch.tensor([-40.0, 2.0, 98.0]), atol=1e-3, rtol=0)


def test_a_flip_is_drawn_once_per_clip_never_per_frame():
    clips = noise(batch=40)
    whole = clips.permute(0, 4, 1, 2, 3) / 255
    flipped = 0
    for before, after in zip(whole, train(clips, flip=True), strict=True):
        is_same = torch.allclose(after, before, atol=1e-4)
        is_flipped = torch.allclose(after, before.flip(-1), atol=1e-4)  # all frames together
        assert is_same != is_flipped
        flipped += is_flipped
    assert 10 <= flipped <= 30


def test_random_crops_differ_between_clips_but_not_between_frames():
    still = noise(batch=1, frames=1, height=32, width=40).expand(6, 5, 32, 40, 3)
    result = train(still, crop_scale=(0.5, 0.9), flip=True, colour_jitter=0.4)
    for clip in result:
        assert torch.equal(clip[:, :1].expand_as(clip), clip)
    assert all(not torch.allclose(result[0], other) for other in result[1:])
    assert result.min() >= 0 and result.max() <= 1


def test_augmentation_is_a_function_of_the_generators_seed():
    clips = noise(height=32, width=40)
    options = {"crop_scale": (0.5, 0.9), "flip": True, "colour_jitter": 0.3}
    assert torch.equal(train(clips, seed=3, **options), train(clips, seed=3, **options))
    assert not torch.equal(train(clips, seed=3, **options), train(clips, seed=4, **options))


def test_large_frames_are_averaged_not_skipped():
    """Stripes of one pixel become grey; sampling every fourth pixel would keep them."""
    clips = torch.zeros(2, 2, 96, 96, 3, dtype=torch.uint8)
    clips[:, :, :, ::4] = 255
    result = prepare(clips, PLAIN)
    assert result.std() < 0.05
    assert result.mean() == pytest.approx(0.25, abs=0.02)
    reference = functional.interpolate(
        clips[0].permute(0, 3, 1, 2).float() / 255, (24, 24), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(result[0].transpose(0, 1), reference, atol=0.02, rtol=0)


def test_the_code_of_a_video_is_the_mean_over_its_views():
    class Brightness(torch.nn.Module):
        def forward(self, clips):
            return clips.mean(dim=(2, 3, 4))

    clips = noise(batch=3, frames=8)
    preprocessing = {**PLAIN, "views": 4}
    transform = partial(prepare, preprocessing=preprocessing)
    codes = build_encoder(Brightness(), transform, torch.device("cpu"))(clips)
    torch.testing.assert_close(codes, clips.float().mean(dim=(1, 2, 3)) / 255)
