"""Errors that users can fix, as one line on the way out of a script."""

import contextlib
import errno
import os
import sys

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO),
)


class UserError(ValueError):
    """An error that the user can fix; the message is one line that says how."""


@contextlib.contextmanager
def exit_on_user_error(script, to_lower):
    """Leave with `script: reason` instead of a traceback where the user can fix the error.

    These are UserError, OSError that names a file or a full disk, Ctrl-C, and the errors of
    `explain`. Anything else is a bug and keeps its traceback, as everything does if the environment
    variable TRACEBACK is set. to_lower: the flags whose lowering saves memory.
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
    except UserError as error:
        reason = str(error).rstrip()
        if "Original Traceback" in reason:  # how PyTorch passes on an error of a worker process
            reason = reason.splitlines()[-1].partition(": ")[2]
        sys.exit(f"{script}: {reason}")
    except (OSError, RuntimeError, MemoryError) as error:
        reason = explain(error, to_lower)
        if reason is None:
            raise
        sys.exit(f"{script}: {reason}")


def explain(error, to_lower):
    """What an error of the system or of PyTorch means to the user, or None for a bug."""
    text = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, OSError) and (error.filename or error.errno in DISK_ERRORS):
        return str(error)
    if any(sign in text for sign in ("outofmemory", "out of memory", "memoryerror", "t allocate")):
        return f"out of memory; lower {to_lower}"
    if "dataloader worker" in text:
        return (
            "a process that reads frames was killed: for its memory (lower --workers) or because "
            "/dev/shm is full (in Docker, --shm-size 8g)"
        )
    if "pytorchstreamwriter" in text or "unexpected pos" in text:
        return "a file could not be written whole, and the earlier one is kept; is the disk full?"
    if is_lost_connection(error):
        return "another process of this run has ended; its own message is above"
    return None


def is_lost_connection(error):
    """Whether a collective failed because another process of the run has gone."""
    torch = sys.modules.get("torch")  # which extract_frames.py does not import
    if torch is None or not torch.distributed.is_initialized():
        return False
    signs = ("connection closed", "connection reset", "connection refused", "broken pipe")
    is_of_gloo = any(sign in str(error).lower() for sign in signs)
    return is_of_gloo or isinstance(error, torch.distributed.DistError)
