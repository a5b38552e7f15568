"""Checkpoints of tensors and plain Python values only, so that loading one never runs code."""

import contextlib
import pickle
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from utils import distributed
from utils.errors import UserError
from utils.files import atomic_write

SIGNALS = {signal.SIGINT, signal.SIGTERM}
FORMAT = 1  # raised when a checkpoint of this code can no longer be read by older code


class NotFiniteError(UserError):
    """Weights or the optimiser's state hold NaN or infinite values: training has diverged."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line that says why."""


def save_checkpoint(path, content, previous=None):
    """Write `content` (dict of tensors and plain Python values) aside and rename it to `path`.

    previous: where the earlier file of that path is kept.
    """
    with atomic_write(path, previous) as temporary:
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
class TrainState:
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
        """What last.pt holds. Raises NotFiniteError: resuming from such a state is of no use."""
        state = {
            name: part.state_dict() if hasattr(part, "state_dict") else part
            for name, part in vars(self).items()
        }
        finite = [t.isfinite().all() for t in floats_of(state)]
        if not torch.stack(finite).all():
            raise NotFiniteError("the weights or the state of the optimiser became infinite or NaN")
        return state

    def resume(self, paths, settings, data, free):
        """Go on from the first of the checkpoints `paths` that is whole, if its run is the same.

        settings: dict of this run's flags. free: names of those that may differ. data: dict of what
        else the batches depend on. Returns what was wrong with the checkpoints passed over, or
        None. Raises CheckpointError when none is whole, or one that names what differs.
        """
        path = paths[0]
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            if not paths[1:]:
                raise
            self.resume(paths[1:], settings, data, free)
            return str(error)
        if "training" not in checkpoint:
            raise CheckpointError(f"{path}: holds no optimiser; only a last.pt can be resumed")
        flags = {f"--{name.replace('_', '-')}": name for name in settings if name not in free}
        now = {flag: settings[name] for flag, name in flags.items()} | data
        earlier = checkpoint["settings"]
        earlier = {flag: earlier[name] for flag, name in flags.items() if name in earlier}
        earlier |= checkpoint.get("data", {})
        changed = [
            f"{name} {now[name]} instead of {earlier[name]}"
            for name in now
            if name in earlier and earlier[name] != now[name]
        ]
        if changed:
            raise CheckpointError(
                f"{path} is of a run with other settings or data ({'; '.join(changed)}); repeat "
                "them to resume it, or give another --output or --restart"
            )
        for name, value in checkpoint["training"].items():
            part = getattr(self, name)
            if not hasattr(part, "load_state_dict"):
                setattr(self, name, value)
            elif value:  # a GradScaler that was not needed has an empty state, which none accepts
                part.load_state_dict(value)
        return None


def floats_of(state):
    """All floating-point tensors in nested dicts and lists."""
    if isinstance(state, dict):
        state = state.values()
    if isinstance(state, torch.Tensor):
        return [state] if state.is_floating_point() else []
    if not isinstance(state, str) and isinstance(state, Iterable):
        return [tensor for value in state for tensor in floats_of(value)]
    return []


class CheckpointTimer:
    """Asked after every step; SIGTERM and SIGINT are noted and answered there, not at once.

    Terminals, `timeout`, SLURM and torchrun signal every process of a run, often twice, so that a
    second signal changes nothing; but Ctrl-C again, a second later, leaves without saving.
    minutes, steps: how often; 0 for never.
    """

    def __init__(self, minutes, steps):
        self.minutes, self.steps = minutes, steps
        self.saved_at, self.signalled_at = time.monotonic(), None
        self.raises = False
        self.answer = None  # to what this process asked the others after the step before
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number, _):
        now = time.monotonic()
        if self.signalled_at is None:
            self.signalled_at = now
        elif (
            number == signal.SIGINT
            and now - self.signalled_at > 1
            and distributed.world_size() == 1
        ):
            raise KeyboardInterrupt
        if self.raises:
            self.raises = False
            raise distributed.Stopped

    def check(self, step):
        """(whether to save, whether to leave) after `step` steps, counted from 1.

        Several processes agree one step late, so that none waits for another's answer.
        """
        if distributed.world_size() == 1:
            by_clock, leave = self._flags()
        else:
            by_clock, leave = self.answer() if self.answer else (False, False)
        save = bool(by_clock or leave or (self.steps and step % self.steps == 0))
        if save:
            self.saved_at = time.monotonic()
        self.answer = distributed.ask_all(self._flags())
        return save, leave

    def _flags(self):
        late = time.monotonic() - self.saved_at > 60 * self.minutes
        return [bool(self.minutes and late), self.signalled_at is not None]

    @contextlib.contextmanager
    def leaving_at_once(self):
        """A signal leaves the body with Stopped; for long work that can be repeated."""
        if self.signalled_at is not None:
            raise distributed.Stopped
        self.raises = True
        try:
            yield
        finally:
            self.raises = False
