"""Errors that users can fix: one line instead of a traceback."""

import contextlib
import errno
import os
import signal
import sys
import threading

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO),
)
SHARED_MEMORY = "/dev/shm"  # noqa: S108


class UserError(ValueError):
    """An error that the user can fix; the message is one line that says how."""


@contextlib.contextmanager
def exit_on_user_error(script, memory_flags):
    """Exit with the line `script: reason` if the body raises an error that the user can fix.

    These are UserError, Ctrl-C, and the errors that `explain` knows. Any other error is a bug and
    keeps its traceback; with the environment variable TRACEBACK all errors do. Names in the line
    are escaped, so that they cannot control the terminal.
    memory_flags: names of flags that a user should lower if memory is exhausted.
    """
    is_deadly = signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # by `die_on_ctrl_c`
    if is_deadly:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("TRACEBACK"):
        yield
        return
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.code, str):
            stop.code = printable(stop.code)
        raise
    except KeyboardInterrupt:
        sys.exit(f"\n{script}: interrupted; rerun to resume")
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        reason = str(error).rstrip()
        if "Original Traceback" in reason:  # PyTorch's form of an error in a worker process
            reason = reason.splitlines()[-1].partition(": ")[2]
        sys.exit(printable(f"{script}: {reason}"))
    except (OSError, RuntimeError, MemoryError, EOFError) as error:
        reason = explain(error, memory_flags)
        if reason is None:
            raise
        sys.exit(printable(f"{script}: {reason}"))
    finally:
        if is_deadly:
            die_on_ctrl_c()


def die_on_ctrl_c():
    """From now on Ctrl-C ends this process without a traceback, as before `main` and after it.

    A script calls this before its slow imports. Ctrl-C stays ignored where it is, as under nohup.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def delay_ctrl_c():
    """Let Ctrl-C in the body raise KeyboardInterrupt after it: in os.fork it would be lost."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield
        return
    arrived = []
    signal.signal(signal.SIGINT, lambda *_: arrived.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if arrived:
        raise KeyboardInterrupt


def printable(text):
    """`text` as one line; control characters and undecodable bytes become escapes such as \\x1b."""
    return "".join(c if c.isprintable() else _escape(c) for c in str(text))


def _escape(character):
    return character.encode("unicode_escape").decode("ascii")


def explain(error, memory_flags):
    """The cause and remedy of an error of the system or of PyTorch, or None for a bug."""
    text = f"{type(error).__name__}: {error}".lower()
    if lacks_shared_memory(error, text):
        return (
            f"{SHARED_MEMORY}, through which processes exchange clips, is too small "
            f"({shared_memory()}); in Docker use --shm-size 8g, elsewhere enlarge it or use "
            "--workers 0"
        )
    if isinstance(error, OSError) and (error.filename or error.errno in DISK_ERRORS):
        return str(error)
    if any(sign in text for sign in ("outofmemory", "out of memory", "memoryerror", "t allocate")):
        return f"out of memory; lower {memory_flags}"
    if "too many open files" in text:
        return "too many open files; raise the limit with ulimit -n, or lower --workers"
    # The latter two are multiprocessing's, if a worker ends while its batch is being received.
    is_bare_eof = isinstance(error, EOFError) and not error.args
    if "dataloader worker" in text or isinstance(error, ConnectionError) or is_bare_eof:
        return (
            "a process that reads frames was killed: memory is exhausted (lower --workers) or "
            f"{SHARED_MEMORY} is full ({shared_memory()}; in Docker: --shm-size 8g)"
        )
    if "pytorchstreamwriter" in text or "unexpected pos" in text:
        return "a file could not be written completely (is the disk full?); the earlier one is kept"
    if is_lost_connection(error):
        return "another process of this run failed; see its message above"
    return None


def lacks_shared_memory(error, text):
    """Whether an error means that /dev/shm is full. text: its type and message in lower case."""
    if any(sign in text for sign in ("bus error", "shared memory", "</torch_")):
        return True
    is_of_no_file = "no space left" in text and not getattr(error, "filename", None)
    return is_of_no_file and os.path.isdir(SHARED_MEMORY) and _free_space(SHARED_MEMORY) < 2**20


def shared_memory():
    """The size of /dev/shm as text."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return "absent"
    return f"{status.f_blocks * status.f_frsize / 1e6:.3g} MB"


def _free_space(folder):
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def is_lost_connection(error):
    """Whether a collective operation failed because another process of the run ended."""
    torch = sys.modules.get("torch")  # extract_frames.py does not import it
    if torch is None or not torch.distributed.is_initialized():
        return False
    signs = ("connection closed", "connection reset", "connection refused", "broken pipe")
    is_of_gloo = any(sign in str(error).lower() for sign in signs)
    return is_of_gloo or isinstance(error, torch.distributed.DistError)
