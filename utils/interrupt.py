"""When to write a checkpoint in the middle of an epoch: by the clock, by steps, or on a signal."""

import contextlib
import signal
import time

from utils import dist

SIGNALS = {signal.SIGINT, signal.SIGTERM}


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
        elif number == signal.SIGINT and now - self.signalled_at > 1 and dist.ranks() == 1:
            raise KeyboardInterrupt
        if self.raises:
            self.raises = False
            raise dist.Stopped

    def check(self, step):
        """(whether to save, whether to leave) after `step` steps, counted from 1.

        Several processes agree one step late, so that none waits for another's answer.
        """
        if dist.ranks() == 1:
            by_clock, leave = self._flags()
        else:
            by_clock, leave = self.answer() if self.answer else (False, False)
        save = bool(by_clock or leave or (self.steps and step % self.steps == 0))
        if save:
            self.saved_at = time.monotonic()
        self.answer = dist.ask_all(self._flags())
        return save, leave

    def _flags(self):
        late = time.monotonic() - self.saved_at > 60 * self.minutes
        return [bool(self.minutes and late), self.signalled_at is not None]

    @contextlib.contextmanager
    def leaving_at_once(self):
        """A signal leaves the body with dist.Stopped; for long work that can be done again."""
        if self.signalled_at is not None:
            raise dist.Stopped
        self.raises = True
        try:
            yield
        finally:
            self.raises = False
