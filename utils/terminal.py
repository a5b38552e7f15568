"""Standard streams that cannot end a script, printing, and progress bars."""

import contextlib
import io
import os
import sys

from tqdm import tqdm

from utils.errors import printable


class _TolerantFile(io.FileIO):
    """A file for writing that keeps the first error in `failure` instead of raising it.

    A closed pipe still raises, because the reader of our output, such as `head`, has ended.
    """

    failure = None

    def write(self, data):
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


def _open_tolerant(descriptor, earlier):
    """A text stream that writes to `descriptor`; earlier: the stream of Python there, or None."""
    if earlier is not None:
        with contextlib.suppress(OSError):
            earlier.flush()
    raw = _TolerantFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=earlier.encoding if earlier else "utf-8",
        errors="backslashreplace",
        line_buffering=earlier is None or earlier.line_buffering or earlier.write_through,
    )


@contextlib.contextmanager
def safe_streams(script):
    """Run the body, a script, whatever its standard streams are.

    Closed streams become /dev/null; otherwise the next opened file would get descriptor 2 and
    receive the error messages. Characters that the encoding lacks are printed as escapes. Output
    that cannot be written, as on a full disk, is dropped: the script does its work and then exits
    with status 1 and one line on stderr.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout, sys.stderr = _open_tolerant(1, sys.stdout), _open_tolerant(2, sys.stderr)
    try:
        yield
    except SystemExit as stop:
        if not _report_failure(script) or stop.code not in (None, 0):
            raise
    else:
        if not _report_failure(script):
            return
    sys.exit(1)


def _report_failure(script):
    """Flush both streams. If one could not be written, print a line and return True."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return True
    failure = sys.stdout.buffer.raw.failure
    if failure is not None:
        print(f"{script}: write error: {failure.strerror}", file=sys.stderr)
    sys.stderr.flush()
    return (failure or sys.stderr.buffer.raw.failure) is not None


def is_main_process():
    """Whether this process is the one that prints; torchrun sets RANK."""
    return int(os.environ.get("RANK", 0)) == 0


def print_main(line):
    """Print a line above the progress bar, in the main process only; names in it are escaped."""
    if is_main_process():
        tqdm.write(printable(line))


def warn(message):
    """Print a warning to standard error, in the main process only."""
    if is_main_process():
        tqdm.write(printable(f"warning: {message}"), file=sys.stderr)


def progress(
    iterable=None, description=None, total=None, unit="it", leave=True, is_shown=True, initial=0
):
    """A tqdm bar over `iterable`, or over `total` steps that the caller counts with update().

    Only the main process shows it, and only on a terminal. The environment variables of tqdm work:
    TQDM_DISABLE=1 hides the bar, TQDM_MININTERVAL sets the seconds between updates.
    """
    is_disabled = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    hidden = is_disabled or not is_main_process() or not is_shown
    return tqdm(
        iterable,
        description,
        total,
        unit=unit,
        leave=leave,
        smoothing=0.05,
        initial=initial,
        disable=True if hidden else None,
    )
