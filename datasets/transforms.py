"""From a batch of uint8 clips to the network's input, on the device of the batch.

The random crop, flip and colours are drawn once per clip and are the same for all its frames. Crop,
resizing and flip are one bilinear sampling of the whole batch.
"""

from functools import lru_cache

import torch
from torch.nn import functional

MOTION_SCALE = 2.0  # brings differences of frames near to a standard deviation of 1


def _shrink(clips, size, crop):
    """Average neighbouring pixels first if bilinear sampling alone would skip some."""
    height, width = clips.shape[-2:]
    factor = size / (crop * min(height, width))
    if factor >= 0.75:
        return clips
    target = (round(height * factor), round(width * factor))
    return functional.interpolate(clips, target, mode="bilinear", antialias=True)


def _sample_windows(clips, preprocessing, centres, scales, flips):
    """Cut a square window out of every clip and resize it.

    clips: (B, T, H, W, 3) uint8. centres: (B, 2) x and y in [-1, 1], where ±1 puts the window at
    the edge of the frame. scales: (B,) side of the window / shorter side of the frame.
    flips: (B,) bool, left-right. Returns (B, T, 3, size, size) float in 0..255.
    """
    size, crop = preprocessing["size"], preprocessing["crop"]
    batch, frames, height, width, channels = clips.shape
    flat = clips.permute(0, 1, 4, 2, 3).reshape(batch, frames * channels, height, width).float()
    flat = _shrink(flat, size, crop)
    sides = scales * min(height, width)
    half_x, half_y = sides / width, sides / height  # relative to half the frame
    theta = torch.zeros(batch, 2, 3, device=clips.device)
    theta[:, 0, 0] = torch.where(flips, -half_x, half_x)
    theta[:, 1, 1] = half_y
    theta[:, 0, 2] = centres[:, 0] * (1 - half_x)
    theta[:, 1, 2] = centres[:, 1] * (1 - half_y)
    grid = functional.affine_grid(theta, [batch, channels, size, size], align_corners=False)
    sampled = functional.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return sampled.view(batch, frames, channels, size, size)


def _jitter_colours(clips, strength, generator):
    """Scale brightness, contrast and saturation of each clip by 1 ± strength; (B, T, 3, H, W)."""
    shape = (3, len(clips), 1, 1, 1, 1)
    factors = 1 + strength * (2 * torch.rand(shape, generator=generator, device=clips.device) - 1)
    brightness, contrast, saturation = factors
    grey = clips.mean(dim=2, keepdim=True)
    clips = grey + saturation * (clips - grey)
    mean = grey.mean(dim=(1, 2, 3, 4), keepdim=True)
    return (brightness * (mean + contrast * (clips - mean))).clamp(0, 255)


@lru_cache
def _per_channel(values, device):
    """Three numbers as a (3, 1, 1) tensor, copied to the device only once: a copy waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(3, 1, 1)


def _normalise(clips, preprocessing):
    """(B, T, 3, H, W) RGB in 0..255 -> (B, 3, T, H, W) in the range and order of the weights.

    With the input "motion" (B, 3, T - 1, H, W): the differences of consecutive frames.
    """
    if preprocessing["channels"] == "BGR":
        clips = clips.flip(2)
    mean, std = (_per_channel(tuple(preprocessing[key]), clips.device) for key in ("mean", "std"))
    clips = ((clips * (preprocessing["range"] / 255) - mean) / std).transpose(1, 2)
    if preprocessing.get("input") == "motion":  # early checkpoints have no such key
        return MOTION_SCALE * clips.diff(dim=2)
    return clips


def augment(clips, preprocessing, *, crop_scale, flip, colour_jitter, generator):
    """Random square crop, left-right flip and colours of each clip, then normalisation.

    clips: (B, T, H, W, 3) uint8 RGB. preprocessing: {"size": side of the result in pixels, "crop":
    side of the test-time crop / shorter side of the frame, "channels": "RGB" or "BGR", "range":
    value of white, 1.0 or 255.0, "mean", "std": three numbers each, in that order and range,
    "input": "rgb" or "motion", see `_normalise`}.
    crop_scale: (minimum, maximum) of the side of the crop / shorter side of the frame. flip: bool,
    whether half of the clips are mirrored. colour_jitter: strength in [0, 1), 0 for none.
    generator: torch.Generator on the clips' device. Returns (B, 3, T, size, size) float32.
    """
    batch, device = len(clips), clips.device
    minimum, maximum = crop_scale
    draws = torch.rand(4, batch, generator=generator, device=device)
    scales = minimum + (maximum - minimum) * draws[0]
    centres = 2 * draws[1:3].T - 1
    flips = (draws[3] < 0.5) & flip
    clips = _sample_windows(clips, preprocessing, centres, scales, flips)
    if colour_jitter:
        clips = _jitter_colours(clips, colour_jitter, generator)
    return _normalise(clips, preprocessing)


def _cut_centre(clips, size):
    """The central size x size pixels of clips (B, T, H, W, 3): (B, T, 3, size, size) float."""
    height, width = clips.shape[2:4]
    top, left = round((height - size) / 2), round((width - size) / 2)
    window = clips[:, :, top : top + size, left : left + size]
    return window.permute(0, 1, 4, 2, 3).float().contiguous()


def prepare(clips, preprocessing):
    """The central crop of each clip, then normalisation; arguments as for `augment`.

    preprocessing may have "views", V: then a clip of V * T frames is V clips, of its frames v,
    v + V, v + 2V, ..., which become adjacent rows: (V * B, 3, T, size, size).

    A crop that has, rounded, the size of the result is cut out at whole pixels: sampling between
    pixels would blur it.
    """
    views = preprocessing.get("views", 1)
    clips = clips.unflatten(1, (-1, views)).transpose(1, 2).flatten(0, 1)  # (V * B, T, H, W, 3)
    if round(preprocessing["crop"] * min(clips.shape[2:4])) == preprocessing["size"]:
        return _normalise(_cut_centre(clips, preprocessing["size"]), preprocessing)
    batch, device = len(clips), clips.device
    centres = torch.zeros(batch, 2, device=device)
    scales = torch.full((batch,), preprocessing["crop"], device=device)
    flips = torch.zeros(batch, dtype=torch.bool, device=device)
    clips = _sample_windows(clips, preprocessing, centres, scales, flips)
    return _normalise(clips, preprocessing)
