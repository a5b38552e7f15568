"""Losses on a batch of approximate hash codes."""

from losses.hash_loss import HashLoss
from losses.triplet import DISTANCES, MINING, batch_all_triplet_loss, batch_hard_triplet_loss

__all__ = ["DISTANCES", "MINING", "HashLoss", "batch_all_triplet_loss", "batch_hard_triplet_loss"]
