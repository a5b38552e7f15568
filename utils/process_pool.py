"""Processes that survive what they are given: a crash or a hang costs one job, not the run.

multiprocessing.Pool and concurrent.futures lose the whole pool to one crash and know no time limit.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait

# Forked workers start at once and need no second import of PyTorch; elsewhere forking is unsafe.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def run_jobs(function, jobs, workers, seconds):
    """Call `function(job)` for each job in worker processes; yield results as they come.

    function: returns (result, failure), where failure is None or a reason. It and the jobs go to
    other processes. jobs: iterable, read only as workers become free. workers: number of processes.
    seconds: time limit of one job, after which its process is killed.
    Yields (job, result, failure); a worker that dies or takes too long gives a failure and is
    replaced. Closing the generator ends the processes, and so does the end of this process or, on
    Linux, of the calling thread.
    """
    jobs, pool = iter(jobs), []
    try:
        for job in jobs:
            pool.append(_Worker(function, pool))
            pool[-1].give(job, seconds)
            if len(pool) == workers:
                break
        while pool:
            rest = min(worker.deadline for worker in pool) - time.monotonic()
            wait([worker.connection for worker in pool], timeout=max(0, rest))
            for worker in list(pool):
                if not worker.connection.poll() and time.monotonic() < worker.deadline:
                    continue
                job, answer = worker.job, worker.answer(seconds)
                if not worker.process.is_alive():
                    pool.remove(worker)
                    worker = _Worker(function, pool)
                    pool.append(worker)
                for waiting in jobs:
                    worker.give(waiting, seconds)
                    break
                else:
                    worker.end()
                    pool.remove(worker)
                yield job, *answer
    finally:
        for worker in pool:
            worker.process.kill()
            worker.end()


class _Worker:
    """One process and the connection to it."""

    def __init__(self, function, others):
        self.connection, theirs = CONTEXT.Pipe()
        # A forked process inherits our ends of all connections: unless it closes them, no worker
        # would notice that this process is gone.
        ours = [self.connection, *(worker.connection for worker in others)]
        inherited = ours if CONTEXT.get_start_method() == "fork" else []
        self.process = CONTEXT.Process(
            target=_serve, args=(function, theirs, inherited), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, job, seconds):
        self.job, self.deadline = job, time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):  # it has died; `answer` will say so
            self.connection.send(job)

    def answer(self, seconds):
        """(result, failure) of the job; the process is dead after a crash or a hang."""
        if not self.connection.poll():
            self.process.kill()
            self.end()
            return None, f"took longer than {seconds:g} seconds"
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # the latter in the middle of an answer
            self.end()
            code = self.process.exitcode
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            return None, f"the process that read it was ended {how}"

    def end(self):
        self.connection.close()
        self.process.join()


def end_with_parent():
    """Have Linux kill this process of multiprocessing as soon as its parent has ended.

    Source: PR_SET_PDEATHSIG of prctl(2); the parent is the thread that forked. Elsewhere a closed
    connection ends workers when their job is done.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
        if os.getppid() != parent or not multiprocessing.parent_process().is_alive():
            os._exit(1)  # it ended before that call


def _serve(function, connection, inherited):
    """Answer jobs until the connection closes."""
    end_with_parent()
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = connection.recv()
            try:
                answer = function(job)
            except Exception as error:  # whatever it is, it is of this job alone
                answer = None, f"{type(error).__name__}: {error}"
            connection.send(answer)
