"""Worker processes with a time limit per job: a crash or a hang costs one job, not the run.

multiprocessing.Pool and concurrent.futures lose the whole pool to one crash and have no time limit.
pebble 5.2 has both, but its workers share one result pipe: one that is killed while it sends a
result breaks or blocks the whole pool (tests/test_process_pool.py), so we do not use it.
"""

import contextlib
import ctypes
import inspect
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2

from utils.errors import delay_ctrl_c

# Forked workers start at once and do not import PyTorch again. Elsewhere forking is not safe.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
NO_JOB = object()
MORE = "more results follow"  # instead of a failure


def run_jobs(function, jobs, workers, seconds):
    """Call `function(job)` for each job in worker processes; yield results as they come.

    function: returns (result, failure), where failure is None or a reason; or a generator of many
    results, which returns the failure. A generator runs on only as its results are taken. Function,
    jobs and results are sent between processes. jobs: iterable, read only as workers become free.
    workers: number of processes. seconds: time limit per result, after which the process is killed.
    Yields (job, result, failure); for a generator first (job, result, MORE) for each result, then
    (job, None, failure). A worker that dies or exceeds the limit yields a failure and is replaced.
    Closing the generator ends the workers. So does the end of this process or, on Linux, of the
    calling thread.
    """
    jobs, busy, idle, answers = iter(jobs), [], [], []
    try:
        while True:
            while len(busy) < workers and (job := next(jobs, NO_JOB)) is not NO_JOB:
                worker = idle.pop() if idle else _start_worker(function, busy)
                busy.append(worker)
                _send_job(worker, job, seconds)
            yield from answers  # while the workers do their next jobs
            if not busy:
                return
            answers = []
            for worker in _wait_for_any(busy):
                if worker.connection.poll():
                    answer = _receive(worker)
                else:
                    _end_worker(worker)
                    answer = None, f"took longer than {seconds:g} seconds"
                answers.append((worker.job, *answer))
                if answer[1] == MORE:
                    worker.deadline = time.monotonic() + seconds
                    continue
                busy.remove(worker)
                if worker.process.is_alive():
                    idle.append(worker)
                else:
                    _end_worker(worker)
    finally:
        for worker in busy + idle:
            _end_worker(worker)


@dataclass(eq=False)
class _Worker:
    """A process, our end of the connection to it, and its job."""

    process: multiprocessing.Process
    connection: Connection
    job: Any = None
    deadline: float = 0.0  # time.monotonic()


def _start_worker(function, others):
    """A new worker. others: all workers that are alive."""
    ours, theirs = CONTEXT.Pipe()
    # A forked process inherits our ends of all connections. It must close them: as long as one copy
    # is open, the worker at the other end does not notice that this process has ended.
    is_forked = CONTEXT.get_start_method() == "fork"
    inherited = [ours, *(worker.connection for worker in others)] if is_forked else []
    process = CONTEXT.Process(target=_serve, args=(function, theirs, inherited), daemon=True)
    use_one_opencv_thread()
    with delay_ctrl_c():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _send_job(worker, job, seconds):
    worker.job, worker.deadline = job, time.monotonic() + seconds
    with contextlib.suppress(BrokenPipeError):  # it has died: _receive reports it
        worker.connection.send(job)


def _wait_for_any(busy):
    """Wait for an event; the workers that have answered, died or reached their deadline."""
    remaining = min(worker.deadline for worker in busy) - time.monotonic()
    wait([worker.connection for worker in busy], timeout=max(0, remaining))
    now = time.monotonic()
    return [worker for worker in busy if worker.connection.poll() or worker.deadline <= now]


def _receive(worker):
    """(result, failure) of the worker's job. After a crash, waits until the process has ended."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):  # it died before its answer, or in the middle of it
        worker.process.join()
    code = worker.process.exitcode
    if code < 0:
        return None, f"its worker process was killed by {signal.Signals(-code).name}"
    return None, f"its worker process exited with status {code}"


def _end_worker(worker):
    """Kill a worker, if it is alive, and free what belongs to it."""
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def end_with_parent():
    """Have Linux kill this process of multiprocessing as soon as its parent has ended.

    Source: PR_SET_PDEATHSIG of prctl(2); the parent is the thread that forked. On other systems a
    worker ends when its connection is closed and its job is done.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
        if os.getppid() != parent or not multiprocessing.parent_process().is_alive():
            os._exit(1)  # the parent ended before that call


def use_one_opencv_thread():
    """Let OpenCV work in the calling thread, here and in processes that are forked later.

    The workers already fill the processor. OpenCV's own threads would not be in a forked process;
    there, the call that ends them waits for them for ever. So call this before forking.
    """
    cv2.setNumThreads(1)


def _serve(function, connection, inherited):
    """Answer jobs until the connection is closed."""
    end_with_parent()
    use_one_opencv_thread()  # not inherited by a process that was not forked
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = connection.recv()
            for answer in _answers(function, job):
                connection.send(answer)


def _answers(function, job):
    """Yield the (result, failure) of a job, of a generator one for each result and a last one."""
    try:
        answer = function(job)
        if inspect.isgenerator(answer):
            answer = None, (yield from _each(answer))
    except Exception as error:  # of this job only; the worker can take the next one
        answer = None, f"{type(error).__name__}: {error}"
    yield answer


def _each(results):
    """Yield (result, MORE) for each result of a generator; return what the generator returns."""
    while True:
        try:
            result = next(results)
        except StopIteration as end:
            return end.value
        yield result, MORE
