"""Checkpoints of tensors and plain Python values only, so that loading one never runs code."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import write_aside

FORMAT = 1  # raised when a checkpoint of this code can no longer be read by older code


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line that says why."""


def save_checkpoint(path, content, previous=None):
    """Write `content` (dict of tensors and plain Python values) aside and rename it to `path`.

    previous: where the earlier file of that path is kept.
    """
    with write_aside(path, previous) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)


def load_checkpoint(path):
    """The dict that `save_checkpoint` wrote, tensors on the CPU.

    Read with weights_only=True: a file that needs arbitrary pickle is refused, not run.
    Raises CheckpointError with one line that says what is wrong.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of this project (it holds more than tensors and numbers, "
            "or is damaged)"
        ) from error
    except Exception as error:  # the unpickler raises all kinds on bytes that are no pickle
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason})") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path}: a PyTorch file, but not a checkpoint that train.py wrote")
    if content["format"] > FORMAT:
        raise CheckpointError(f"{path}: written by a later version of this project; update it")
    return content


@dataclass
class Training:
    """All that changes while training, as it goes into last.pt."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    totals: tuple = ()  # sums over those batches, for the log
    best_map: float = -1.0

    def state(self):
        return {
            name: part.state_dict() if hasattr(part, "state_dict") else part
            for name, part in vars(self).items()
        }

    def resume(self, paths, settings, free):
        """Go on from the first of the checkpoints `paths` that is whole, if its run is the same.

        settings: dict of this run's flags. free: names of those that may differ. Returns what was
        wrong with the checkpoints passed over, or None. Raises CheckpointError when none is whole,
        or one that names the settings that differ.
        """
        path = paths[0]
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            if not paths[1:]:
                raise
            self.resume(paths[1:], settings, free)
            return str(error)
        if "training" not in checkpoint:
            raise CheckpointError(f"{path}: holds no optimiser; only a last.pt can be resumed")
        earlier = checkpoint["settings"]
        changed = [
            f"--{name.replace('_', '-')} {value} instead of {earlier[name]}"
            for name, value in settings.items()
            if name not in free and name in earlier and earlier[name] != value
        ]
        if changed:
            raise CheckpointError(
                f"{path} is of a run with other settings ({'; '.join(changed)}); repeat them to "
                "resume it, or give another --output or --restart"
            )
        for name, value in checkpoint["training"].items():
            part = getattr(self, name)
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                setattr(self, name, value)
        return None
