"""Encoding a data set into approximate hash codes, and ranking one data set for another."""

import torch
from tqdm import tqdm

from utils.dist import is_main


@torch.no_grad()
def encode_batch(model, clips, transform, device):
    """Approximate hash codes of uint8 clips (B, T, H, W, 3): (B, K) float32 on `device`.

    model: in evaluation mode, clips (B, 3, T, H, W) -> (B, K). transform: from the uint8 clips, on
    `device`, to the model's input.
    """
    return model(transform(clips.to(device, non_blocking=True))).float()


def encode(model, loader, transform, device, description="encoding"):
    """Approximate hash codes of every clip of `loader`, in its order.

    model, transform, device: as for `encode_batch`; the model is put in evaluation mode.
    loader: gives (B, T, H, W, 3) uint8 clips and labels.
    Returns (N, K) float32 on the CPU, or None where there is no clip.
    """
    model.eval()
    codes = []
    for clips, _ in tqdm(
        loader, desc=description, unit="batch", leave=False, disable=not is_main()
    ):
        codes.append(encode_batch(model, clips, transform, device))
    return torch.cat(codes).cpu() if codes else None


def nearest(query_codes, database_codes, count):
    """The `count` nearest items of the database for each query, ties in database order.

    query_codes: (Q, K) bool. database_codes: (N, K) bool.
    Returns (indices, distances): (Q, min(count, N)) int64, distances in bits.
    """
    queries, database = query_codes.float() * 2 - 1, database_codes.float() * 2 - 1
    distances = (query_codes.shape[1] - queries @ database.T) / 2
    distances, indices = torch.sort(distances, dim=1, stable=True)
    return indices[:, :count], distances[:, :count].long()
