"""Errors that users can do something about, as one line on the way out of a script."""

import contextlib
import os
import sys


@contextlib.contextmanager
def one_line(script, to_lower):
    """Leave with `script: reason` instead of a traceback where the reason is known.

    These are ValueError, which every module here raises with a line of advice, OSError, Ctrl-C and
    the errors of `explain`; anything else is a bug and keeps its traceback, as everything does if
    the environment variable TRACEBACK is set. to_lower: the flags whose lowering saves memory.
    """
    if os.environ.get("TRACEBACK"):
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"\n{script}: stopped; the same command goes on")
    except BrokenPipeError:  # who read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        reason = str(error).rstrip()
        if "Original Traceback" in reason:  # how PyTorch passes on an error of a worker process
            reason = reason.splitlines()[-1].partition(": ")[2]
        sys.exit(f"{script}: {reason}")
    except (RuntimeError, MemoryError) as error:
        reason = explain(error, to_lower)
        if reason is None:
            raise
        sys.exit(f"{script}: {reason}")


def explain(error, to_lower):
    """What a RuntimeError of PyTorch or a MemoryError means, or None if that is not known."""
    text = f"{type(error).__name__}: {error}".lower()
    causes = {
        ("outofmemory", "out of memory", "memoryerror", "can't allocate memory"): (
            f"out of memory; lower {to_lower}"
        ),
        ("dataloader worker",): (
            "a process that reads frames was killed: with the whole run, or for its memory (then "
            "lower --workers)"
        ),
        ("connection closed", "connection reset", "broken pipe", "distbackenderror", "nccl"): (
            "another process of this run has ended; its own message is above"
        ),
        ("pytorchstreamwriter", "unexpected pos"): (
            "a file could not be written whole, and the earlier one is kept; is the disk full?"
        ),
    }
    for signs, reason in causes.items():
        if any(sign in text for sign in signs):
            return reason
    return None
