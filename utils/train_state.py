"""What changes while training, its checkpoints in a run folder, and when to save them."""

import contextlib
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from utils import distributed
from utils.checkpoint import CheckpointError, DamagedError, load_checkpoint, save_checkpoint
from utils.checkpoint_schema import TRAINING, check_like, check_optimizer, check_weights
from utils.errors import UserError, printable
from utils.schema import SchemaError

SIGNALS = {signal.SIGINT, signal.SIGTERM}
NUM_TOTALS = 6  # sums over the batches of an epoch


class NotFiniteError(UserError):
    """Weights or the optimiser's state hold NaN or infinite values: training has diverged."""


@dataclass
class TrainState:
    """All that changes while training."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    epoch: int = 0
    batch: int = 0  # number of batches done in this epoch
    totals: tuple = ()  # sums over those batches, for the log
    best_map: float = -1.0
    criterion: torch.nn.Module = field(default_factory=torch.nn.Identity)  # may learn weights too

    def state_dict(self):
        """All fields as tensors and plain values, as last.pt holds them."""
        return {
            name: value.state_dict() if hasattr(value, "state_dict") else value
            for name, value in vars(self).items()
        }

    def load_state_dict(self, state):
        """Restore what `state_dict` returned. Raises SchemaError if it is of another network."""
        TRAINING(state, "training")
        check_weights(state["model"], self.model.state_dict(), "model")
        check_weights(state.get("criterion", {}), self.criterion.state_dict(), "criterion")
        check_optimizer(state["optimizer"], self.optimizer)
        check_like(state["scheduler"], self.scheduler.state_dict(), "scheduler")
        check_like(state["scaler"], self.scaler.state_dict(), "scaler")
        if len(state["totals"]) not in (0, NUM_TOTALS):
            raise SchemaError(f"totals must have {NUM_TOTALS} numbers, not {len(state['totals'])}")
        state = {**state, **_complete(state, self)}
        for name, value in state.items():
            field = getattr(self, name)
            if not hasattr(field, "load_state_dict"):
                setattr(self, name, value)
            elif value:  # the state of a disabled GradScaler is empty and cannot be loaded
                field.load_state_dict(value)

    def check_finite(self):
        """Raise NotFiniteError if a weight or the optimiser's state is infinite or NaN."""
        finite = [tensor.isfinite().all() for tensor in find_floats(self.state_dict())]
        if not torch.stack(finite).all():
            raise NotFiniteError("the weights or the state of the optimiser became infinite or NaN")


def _complete(state, current):
    """The optimiser, scheduler and scaler of a state, with the keys that this PyTorch has.

    state: as saved. current: TrainState. Versions of PyTorch differ in keys with defaults.
    """
    groups = [
        {**{key: value for key, value in group.items() if key != "params"}, **saved}
        for group, saved in zip(
            current.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True
        )
    ]
    scheduler = current.scheduler.state_dict()
    scheduler |= {key: value for key, value in state["scheduler"].items() if key in scheduler}
    return {
        "optimizer": {**state["optimizer"], "param_groups": groups},
        "scheduler": scheduler,
        "scaler": state["scaler"] and {**current.scaler.state_dict(), **state["scaler"]},
    }


def find_floats(state):
    """All floating-point tensors in nested dicts and lists."""
    if isinstance(state, dict):
        state = state.values()
    if isinstance(state, torch.Tensor):
        return [state] if state.is_floating_point() else []
    if not isinstance(state, str) and isinstance(state, Iterable):
        return [tensor for value in state for tensor in find_floats(value)]
    return []


# ==== the checkpoints of a run ====


class RunCheckpoints:
    """last.pt (the newest state), previous.pt (the one before) and best.pt of a run folder.

    folder: the run folder. state: TrainState. metadata: dict that all checkpoints hold beside the
    weights; its "settings" (flags) and "data" must be equal to resume a run.
    """

    def __init__(self, folder, state, metadata):
        self.folder, self.state, self.metadata = Path(folder), state, metadata
        names = ("last", "previous", "best")
        self.last, self.previous, self.best = (self.folder / f"{name}.pt" for name in names)

    def clean(self, restart):
        """Remove temporary files of killed runs; with `restart` also the checkpoints."""
        old = [self.last, self.previous, self.best] if restart else []
        for path in [*self.folder.glob(".*.partial"), *old]:
            path.unlink(missing_ok=True)

    def save_last(self):
        """Write last.pt and keep the earlier one as previous.pt, in the main process only."""
        if distributed.is_main():
            self._save(self.last, self.previous, training=self.state.state_dict())

    def save_best(self, neighbours=None):
        """Write best.pt, in the main process only.

        neighbours: list of int, validation clips by the distance of their nearest training clip.
        """
        if distributed.is_main():
            more = {} if neighbours is None else {"neighbours": neighbours}
            self._save(self.best, val_map=self.state.best_map, **more)

    def _save(self, path, previous=None, **more):
        self.state.check_finite()
        weights = {"epoch": self.state.epoch, "model": self.state.model.state_dict()}
        save_checkpoint(path, {**self.metadata, **weights, **more}, previous)

    def resume(self, free):
        """Restore the newest intact checkpoint, if there is any.

        free: names of flags that may differ from the interrupted run. Returns why last.pt was not
        used, or None. Raises CheckpointError if no checkpoint is intact, or the run has other
        settings or data.
        """
        paths = [path for path in (self.last, self.previous) if path.exists()]
        problem = None
        for path in paths:
            try:
                checkpoint = load_checkpoint(path, "settings")
                break
            except DamagedError as error:
                if path == paths[-1]:
                    raise DamagedError(f"{error}; --restart starts from scratch") from error
                problem = str(error)
        else:
            return None
        if "training" not in checkpoint:
            raise CheckpointError(f"{path}: has no optimiser state; only a last.pt can be resumed")
        self._check_same_run(path, checkpoint, free)
        try:
            self.state.load_state_dict(checkpoint["training"])
        except SchemaError as error:
            raise CheckpointError(f"{path}: {error}; --restart starts from scratch") from error
        if problem and distributed.is_main():
            self.last.unlink(missing_ok=True)  # or it would become the next previous.pt
        return problem

    def _check_same_run(self, path, checkpoint, free):
        """Raise CheckpointError naming what differs from the run that wrote `checkpoint`."""
        now, then = (
            {f"--{name.replace('_', '-')}": v for name, v in run["settings"].items()}
            | run.get("data", {})
            for run in (self.metadata, checkpoint)
        )
        free = {f"--{name.replace('_', '-')}" for name in free}
        changed = [
            f"{name} is {printable(now[name])[:200]}, was {printable(then[name])[:200]}"
            for name in now.keys() - free
            if name in then and then[name] != now[name]
        ]
        if changed:
            raise CheckpointError(
                f"{path}: the run has other settings or data ({'; '.join(sorted(changed))}); "
                "repeat them to resume, or use another --output or --restart"
            )


class CheckpointTimer:
    """Says after each step whether to save a checkpoint: by the clock, by steps, or on a signal.

    SIGTERM and SIGINT are recorded, and acted on after the step. Terminals, `timeout`, SLURM and
    torchrun signal every process of a run, often twice; so a second signal changes nothing, but
    Ctrl-C again after more than a second stops without saving.
    minutes, steps: how often to save; 0 for never.
    """

    def __init__(self, minutes, steps):
        self.minutes, self.steps = minutes, steps
        self.saved_at, self.signalled_at = time.monotonic(), None
        self.stops_at_once = False
        self.answer = None  # of all processes, asked for after the previous step
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, _):
        now = time.monotonic()
        if self.signalled_at is None:
            self.signalled_at = now
        elif (
            number == signal.SIGINT
            and now - self.signalled_at > 1
            and distributed.world_size() == 1
        ):
            raise KeyboardInterrupt
        if self.stops_at_once:
            self.stops_at_once = False
            raise distributed.Stopped

    def check(self, step):
        """(whether to save, whether to stop) after `step` steps, counted from 1.

        Several processes agree one step late, so that none waits for the others.
        """
        if distributed.world_size() == 1:
            by_clock, stop = self._flags()
        else:
            by_clock, stop = self.answer() if self.answer else (False, False)
        save = bool(by_clock or stop or (self.steps and step % self.steps == 0))
        if save:
            self.saved_at = time.monotonic()
        self.answer = distributed.async_any(self._flags())
        return save, stop

    def _flags(self):
        late = time.monotonic() - self.saved_at > 60 * self.minutes
        return [bool(self.minutes and late), self.signalled_at is not None]

    @contextlib.contextmanager
    def saving_on_signal(self, checkpoints):
        """A signal interrupts the body: save `checkpoints` as they are, and raise Stopped.

        For work that can be repeated, such as validation.
        """
        try:
            if self.signalled_at is not None:
                raise distributed.Stopped
            self.stops_at_once = True
            yield
        except distributed.Stopped:
            checkpoints.save_last()
            raise distributed.Stopped(
                "train.py: stopped before validation; rerun to resume"
            ) from None
        finally:
            self.stops_at_once = False
