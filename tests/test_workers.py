"""Worker processes: every job is answered, whatever happens to its process."""

import os
import signal
import subprocess
import sys
import threading
import time

from utils.workers import run_each


def behave(job):
    """A job that is right, wrong, hangs, or ends its process."""
    if job == "hang":
        time.sleep(60)
    if job == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "leave":
        os._exit(3)
    if job == "wrong":
        return None, "a reason"
    if job == "raise":
        raise MemoryError("too large")
    return job * 2, None


def test_every_job_is_answered_with_its_own_result():
    answers = list(run_each(behave, range(50), workers=3, seconds=10))
    assert sorted(answers) == [(i, 2 * i, None) for i in range(50)]
    assert list(run_each(behave, [], workers=3, seconds=10)) == []
    assert list(run_each(behave, [1], workers=8, seconds=10)) == [(1, 2, None)]


def test_a_crash_or_a_hang_costs_one_job():
    jobs = ["a", "hang", "b", "segfault", "c", "leave", "d", "wrong", "raise", "hang", "e"]
    started = time.monotonic()
    answers = list(run_each(behave, jobs, workers=2, seconds=1))
    assert time.monotonic() - started < 10
    assert sorted(job for job, _, _ in answers) == sorted(jobs)
    failures = {job: failure for job, result, failure in answers if result is None}
    assert failures == {
        "hang": "took longer than 1 seconds",
        "segfault": "the process that read it was ended by SIGSEGV",
        "leave": "the process that read it was ended with status 3",
        "wrong": "a reason",
        "raise": "MemoryError: too large",
    }
    assert sum(result is not None for _, result, _ in answers) == 5


def test_jobs_are_read_only_as_workers_become_free():
    read = []
    answers = run_each(behave, (read.append(i) or i for i in range(1000)), workers=2, seconds=10)
    next(answers)
    assert len(read) <= 4
    answers.close()


def test_results_larger_than_a_pipe_come_through():
    [(_, result, _)] = run_each(behave, ["x" * 5_000_000], workers=1, seconds=10)
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

    results = {job: rest for job, *rest in run_each(answer_at_length, jobs(), 2, seconds=10)}
    assert results["half"] == [None, "the process that read it was ended by SIGKILL"]
    assert len(results["whole"][0]) == 50_000_000 and results["whole"][1] is None


def test_workers_end_when_the_main_process_is_killed(tmp_path):
    """Also when another worker, forked later, is alive and holds a copy of the connection."""
    script = (
        "import os, time, sys; sys.path.insert(0, sys.argv[1])\n"
        "from utils.workers import run_each\n"
        "def f(job):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(0.3 if job < 4 else 1)\n"
        "    return 'x' * 1_000_000, None\n"
        "for _ in run_each(f, range(100), 2, 60): pass\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    main = subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True)
    pids = {int(main.stdout.readline()) for _ in range(4)}
    assert len(pids) == 2
    main.kill()
    main.wait()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its main process"
        time.sleep(0.05)


def is_running(pid):
    """Whether a process exists and is no zombie, which nobody waits for in some containers."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
