"""Worker processes: every job is answered, whatever happens to its process."""

import faulthandler
import os
import random
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from helpers import ROOT

from datasets.loaders import ClipLoader
from datasets.process_pool import MORE, run_jobs

pytestmark = pytest.mark.scripts


def behave(job):
    """A job that is right, wrong, hangs, or ends its process."""
    if job == "hang":
        time.sleep(60)
    if job == "segfault":
        faulthandler.disable()  # pytest's handler would print every thread's stack
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "leave":
        os._exit(3)
    if job == "wrong":
        return None, "a reason"
    if job == "raise":
        raise MemoryError("too large")
    return job * 2, None


def test_every_job_is_answered_with_its_own_result():
    answers = list(run_jobs(behave, range(50), workers=3, seconds=10))
    assert sorted(answers) == [(i, 2 * i, None) for i in range(50)]
    assert list(run_jobs(behave, [], workers=3, seconds=10)) == []
    assert list(run_jobs(behave, [1], workers=8, seconds=10)) == [(1, 2, None)]


def test_a_crash_or_a_hang_costs_one_job():
    jobs = ["a", "hang", "b", "segfault", "c", "leave", "d", "wrong", "raise", "hang", "e"]
    answers = list(run_jobs(behave, jobs, workers=2, seconds=2))
    assert sorted(job for job, _, _ in answers) == sorted(jobs)
    failures = {job: failure for job, result, failure in answers if result is None}
    assert failures == {
        "hang": "took longer than 2 seconds",
        "segfault": "its worker process was killed by SIGSEGV",
        "leave": "its worker process exited with status 3",
        "wrong": "a reason",
        "raise": "MemoryError: too large",
    }
    assert sum(result is not None for _, result, _ in answers) == 5


def blur(side):
    """OpenCV's threads at work, then ended, as by code that wants one thread."""
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((side, side, 3), np.uint8), (9, 9), 0)
    cv2.setNumThreads(1)
    return side, None


class Blurred:
    def __getitem__(self, index):
        return blur(2000)[0]

    def __len__(self):
        return 4


def test_workers_can_use_opencv_after_its_threads_ran_in_the_main_process():
    """A forked process has no copy of these threads; it would wait for their end for ever."""
    for workers_of in (
        lambda: [result for _, result, _ in run_jobs(blur, [2000] * 4, workers=2, seconds=10)],
        lambda: [int(side) for side in ClipLoader(Blurred(), 2, batch_size=None, timeout=10)],
    ):
        cv2.setNumThreads(2)
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 0)
        assert workers_of() == [2000] * 4


def count_up(job):
    """A generator job: some results, then the end, a reason, an exception, a hang or a crash."""
    for number in range(job[1]):
        yield job[0], number
    if job[0] in ("wrong", "raise", "hang", "segfault"):
        answer = behave(job[0])
        return answer[1]
    return None


def test_generators_give_many_results_and_one_end():
    jobs = [
        ("a", 3),
        ("b", 0),
        ("wrong", 2),
        ("raise", 1),
        ("hang", 2),
        ("segfault", 1),
        ("c", 500),
    ]
    answers = list(run_jobs(count_up, jobs, workers=3, seconds=2))
    for job in jobs:
        own = [(result, failure) for other, result, failure in answers if other == job]
        results = [((job[0], number), MORE) for number in range(job[1])]
        assert own[:-1] == results and own[-1][0] is None
    ends = {job[0]: failure for job, _, failure in answers if failure != MORE}
    assert ends == {
        **{"a": None, "b": None, "c": None, "wrong": "a reason"},
        "raise": "MemoryError: too large",
        "hang": "took longer than 2 seconds",
        "segfault": "its worker process was killed by SIGSEGV",
    }


def slow_steps(job):
    for number in range(4):
        time.sleep(0.7)
        yield number


def test_the_time_limit_is_per_result():
    assert len(list(run_jobs(slow_steps, [0], workers=1, seconds=2.5))) == 5


def test_a_generator_runs_on_only_as_its_results_are_taken(tmp_path):
    def write_files(job):
        for number in range(1000):
            (tmp_path / str(number)).touch()
            yield bytes(2**20)

    answers = run_jobs(write_files, [0], workers=1, seconds=10)
    for _ in range(3):
        next(answers)
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) < 10
    answers.close()


def test_jobs_are_read_only_as_workers_become_free():
    read = []
    answers = run_jobs(behave, (read.append(i) or i for i in range(1000)), workers=2, seconds=10)
    next(answers)
    assert len(read) <= 4
    answers.close()


def test_results_larger_than_a_pipe_come_through():
    [(_, result, _)] = run_jobs(behave, ["x" * 5_000_000], workers=1, seconds=10)
    assert len(result) == 10_000_000


def answer_at_length(job):
    """Ends its own process while a long answer is half sent."""
    if job == "half":
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    return "x" * 50_000_000, None


def test_a_process_killed_in_the_middle_of_its_answer_costs_one_job():
    def jobs():
        yield "half"
        time.sleep(1)  # so long the main process does not read, and the answer fills the pipe
        yield "whole"

    results = {job: rest for job, *rest in run_jobs(answer_at_length, jobs(), 2, seconds=10)}
    assert results["half"] == [None, "its worker process was killed by SIGKILL"]
    assert len(results["whole"][0]) == 50_000_000 and results["whole"][1] is None


MAIN = """
import os, sys, time
from datasets import process_pool

def work(job):
    os.write(1, b"%d\\n" % os.getpid())
    if job == "leave" or job % 3 == 0:
        os._exit(1)
    time.sleep(float(sys.argv[1]))
    return "x" * 1_000_000, None

if sys.argv[2] == "connection":
    process_pool.end_with_parent = lambda: None
if sys.argv[3] == "spawn":
    process_pool.CONTEXT = process_pool.multiprocessing.get_context("spawn")
if __name__ == "__main__":
    jobs = ["leave", *range(1, 100)] if sys.argv[4] == "once" else range(0, 10**9, 3)
    for _ in process_pool.run_jobs(work, jobs, 2, 60): pass
"""


def start_main(folder, seconds, way, method, leave="once"):
    """A process of its own group, with two workers; each of them writes its process id first."""
    (folder / "main.py").write_text(MAIN)
    command = [sys.executable, folder / "main.py", str(seconds), way, method, leave]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    options["env"] = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, start_new_session=True, **options)


def wait_for_the_end(group, seconds):
    """Wait until no process of a group runs any more."""
    deadline = time.monotonic() + seconds
    while any(is_running(int(pid), group) for pid in os.listdir("/proc") if pid.isdecimal()):
        assert time.monotonic() < deadline, "a worker outlived its main process"
        time.sleep(0.01)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the signal is Linux's")


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("way", "job_seconds", "limit"),
    [pytest.param("signal", 60, 30, marks=linux_only), ("connection", 0.5, 30)],
    ids=["signal: in the middle of a job", "connection: after the job"],
)
def test_workers_end_when_the_main_process_is_killed(way, job_seconds, limit, method, tmp_path):
    """One of them was forked later, after a crash, and could hold a copy of the connection."""
    main = start_main(tmp_path, job_seconds, way, method)
    workers = set()
    while len(workers) < 3:  # where the third starts late, the second does another job first
        workers.add(main.stdout.readline())
        assert "" not in workers, "the main process ended"
    main.kill()
    wait_for_the_end(main.pid, limit)
    main.communicate()


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_no_worker_outlives_a_main_process_that_is_killed_while_it_replaces_workers(
    kills, tmp_path
):
    rng = random.Random(0)
    for _ in range(kills):
        main = start_main(tmp_path, 60, "signal", "fork", "always")
        main.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        main.kill()
        wait_for_the_end(main.pid, seconds=30)
        main.communicate()


def is_running(pid, group):
    """Whether a process of the group is alive and no zombie, which nobody may wait for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, _, its_group = file.read().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(its_group) == group and state != "Z"
