"""Errors that users can do something about, as one line on the way out of a script."""

import contextlib
import sys


@contextlib.contextmanager
def one_line(script, to_lower):
    """Leave with `script: reason` instead of a traceback where the reason is known.

    These are ValueError, which every module here raises with a line of advice, OSError, Ctrl-C and
    the errors of `explain`; anything else is a bug and keeps its traceback. to_lower: the flags
    that need less memory when lowered.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"\n{script}: stopped; the same command goes on")
    except (ValueError, OSError) as error:
        sys.exit(f"{script}: {error}")
    except (RuntimeError, MemoryError) as error:
        reason = explain(error, to_lower)
        if reason is None:
            raise
        sys.exit(f"{script}: {reason}")


def explain(error, to_lower):
    """What a RuntimeError of PyTorch or a MemoryError means, or None if that is not known."""
    text = f"{type(error).__name__}: {error}".lower()
    causes = {
        f"out of memory; lower {to_lower}": ("outofmemory", "out of memory", "memoryerror",
                                             "can't allocate memory"),
        "a process that reads frames was killed, perhaps for its memory; lower --workers":
            ("dataloader worker",),
        "another process of this run has ended; its own message is above":
            ("connection closed", "connection reset", "broken pipe", "distbackenderror", "nccl"),
        "a file could not be written whole, and the earlier one is kept; is the disk full?":
            ("pytorchstreamwriter", "unexpected pos"),
    }  # fmt: skip
    for reason, signs in causes.items():
        if any(sign in text for sign in signs):
            return reason
    return None
