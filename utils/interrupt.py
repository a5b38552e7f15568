"""When to write a checkpoint in the middle of an epoch: by the clock, by steps, or on a signal."""

import os
import signal
import time

from utils.dist import any_process, ranks


class CheckpointTimer:
    """Asked after every step; SIGTERM and SIGINT are noted and answered there, not at once.

    minutes, steps: how often; 0 for never.
    """

    def __init__(self, minutes, steps, device):
        self.minutes, self.steps, self.device = minutes, steps, device
        self.process, self.signal = os.getpid(), None
        self.saved_at = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, _):
        if os.getpid() != self.process:  # a worker of a DataLoader, forked with this handler
            os._exit(128 + number)
        if self.signal is not None:  # the second time is meant
            signal.signal(number, signal.SIG_DFL)
            os.kill(self.process, number)
        self.signal = number

    def is_due(self, step):
        """Whether to save after `step` steps, counted from 1; the same answer on every process.

        Several processes agree on the clock and on signals every 20 steps, since that makes each
        wait for the others.
        """
        by_clock = self.minutes and time.monotonic() - self.saved_at > 60 * self.minutes
        due = bool(by_clock or self.signal)
        if ranks() > 1:
            due = step % 20 == 0 and any_process(due, self.device)
        if due or (self.steps and step % self.steps == 0):
            self.saved_at = time.monotonic()
            return True
        return False

    def must_stop(self):
        """Whether a signal asked any process to leave."""
        return any_process(self.signal is not None, self.device)
