"""Codes for the embedding projector of TensorBoard.

Source: https://docs.pytorch.org/docs/stable/tensorboard.html, `SummaryWriter.add_embedding`.
"""

import math
import shutil

import cv2
import torch
from torch.utils.tensorboard import SummaryWriter

THUMBNAIL_SIDE = 64  # pixels
SPRITE_SIDE = 8192  # pixels; browsers accept no larger picture, and it holds all thumbnails


def write_projector(folder, codes, columns, pictures):
    """Write codes with metadata and thumbnails to `folder`, which is replaced.

    codes: (N, K). columns: dict of name -> N strings. pictures: iterable of N frames (H, W, 3)
    uint8 RGB. To view them: `tensorboard --logdir FOLDER`, tab Projector.
    """
    shutil.rmtree(folder, ignore_errors=True)
    side = min(THUMBNAIL_SIDE, SPRITE_SIDE // math.ceil(math.sqrt(len(codes))))
    thumbnails = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures]
    thumbnails = torch.stack([torch.from_numpy(p) for p in thumbnails])  # (N, side, side, 3)
    thumbnails = thumbnails.permute(0, 3, 1, 2) / 255
    rows = [[_cell(text) for text in row] for row in zip(*columns.values(), strict=True)]
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(codes, rows, thumbnails, tag="codes", metadata_header=list(columns))


def _cell(text):
    """Text for one cell of a tab-separated table: no tabs, line ends or undecodable bytes."""
    return " ".join(str(text).encode("utf-8", "backslashreplace").decode("utf-8").split())
