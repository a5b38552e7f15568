"""Embeddings for TensorBoard's projector.

Source: https://docs.pytorch.org/docs/stable/tensorboard.html, `SummaryWriter.add_embedding`.
"""

import math
import shutil

import cv2
import torch
from torch.utils.tensorboard import SummaryWriter

THUMBNAIL, LARGEST_SPRITE = 64, 8192  # pixels; browsers take no larger picture


def write_projector(folder, codes, columns, pictures):
    """Write codes with metadata and thumbnails to `folder`, which is replaced.

    codes: (N, K). columns: dict of name -> N strings. pictures: N frames (H, W, 3) uint8 RGB, of
    any iterable. Look at it with `tensorboard --logdir FOLDER`, under Projector.
    """
    shutil.rmtree(folder, ignore_errors=True)
    side = min(THUMBNAIL, LARGEST_SPRITE // math.ceil(math.sqrt(len(codes))))
    thumbnails = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures]
    thumbnails = torch.stack([torch.from_numpy(p) for p in thumbnails]).permute(0, 3, 1, 2) / 255
    rows = [[_cell(text) for text in row] for row in zip(*columns.values(), strict=True)]
    with SummaryWriter(str(folder)) as board:
        board.add_embedding(codes, rows, thumbnails, tag="codes", metadata_header=list(columns))


def _cell(text):
    """A text without the tabs and line ends that divide the table."""
    return " ".join(str(text).encode("utf-8", "backslashreplace").decode("utf-8").split())
