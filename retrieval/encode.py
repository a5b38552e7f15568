"""Encoding clips into approximate hash codes, for validation, test.py and search.py."""

from collections import defaultdict

import numpy as np
import torch

from retrieval.codes import binarize
from utils.device import mixed_precision, to_device
from utils.terminal import progress


def build_encoder(model, transform, device, amp=True):
    """Prepare a model for inference.

    model: clips (B, 3, T, H, W) -> (B, K). It is moved to `device` and set to evaluation mode; call
    `build_encoder` again after further training. transform: uint8 clips, on `device`, to the input
    of the model, which may be several rows per clip, whose codes are averaged; None for features,
    which are that input. amp: whether to use mixed precision on GPUs.
    Returns a function: uint8 clips (B, T, H, W, 3), or features (B, D), -> approximate codes (B, K)
    float32 on `device`.
    """
    to_device(model, device)
    model.eval()
    precision = mixed_precision(device, amp)

    @torch.inference_mode()
    def encode_clips(clips):
        clips = clips.to(device, non_blocking=True)
        inputs = transform(clips) if transform else clips
        with torch.autocast(device.type, precision, enabled=precision is not None):
            codes = model(inputs)
        return codes.float().view(len(clips), -1, codes.shape[1]).mean(dim=1)  # over the views

    return encode_clips


def encode(encoder, loader, description="encoding"):
    """Approximate hash codes of all clips of `loader`, in its order.

    encoder: from `build_encoder`. loader: yields uint8 clips (B, T, H, W, 3) and labels.
    Returns (N, K) float32 on the CPU, or None if there are no clips.
    """
    batches = progress(loader, description, unit="batch", leave=False)
    codes = [encoder(clips) for clips, _ in batches]
    return torch.cat(codes).cpu() if codes else None


def encode_windows(windows, encoder, batch_size):
    """Encode the windows of videos in batches, whatever video they are of.

    windows: yields (video, (start, end, clip (T, H, W, 3) uint8), _) for each window, and (video,
    None, failure) when a video has ended; a failure is a reason or None.
    Yields for each video that has ended (video, list of (start, end, approximate code (K,) array),
    failure). The codes are smoothed, see `smooth`.
    """
    batch, codes, ended = [], defaultdict(list), {}

    def finish():
        if batch:
            clips = torch.from_numpy(np.stack([clip for *_, clip in batch]))
            values = encoder(clips).cpu()
            binarize(values)  # refuses NaN
            for (video, start, end, _), code in zip(batch, values.numpy(), strict=True):
                codes[video].append((start, end, code))
        for video, failure in ended.items():
            yield video, smooth(codes.pop(video, [])), failure
        batch.clear()
        ended.clear()

    for video, window, failure in windows:
        if window is None:
            ended[video] = failure
        else:
            batch.append((video, *window))
        if len(batch) == batch_size:
            yield from finish()
    yield from finish()


def smooth(moments):
    """Average the code of each window with those of the windows that overlap two thirds of it.

    A window that begins in one action and ends in the next can resemble a third one by chance; its
    neighbours seldom do. moments: list of (start, end, code (K,) array) in the order of start.
    Measured: docs/search.md.
    """
    if len(moments) < 2:
        return moments
    starts, ends, codes = map(np.array, zip(*moments, strict=True))
    near = (ends - starts) / 3 + 1e-6  # seconds, with room for rounding
    first = np.searchsorted(starts, starts - near)
    last = np.searchsorted(starts, starts + near, side="right")
    sums = np.cumsum(codes, axis=0, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    means = (sums[last] - sums[first]) / (last - first)[:, None]
    return [(*times, code) for (*times, _), code in zip(moments, means.astype("f"), strict=True)]
