"""Standard streams that cannot end a script, and progress bars where somebody watches them."""

import contextlib
import io
import os
import sys

from tqdm import tqdm


class _TolerantFile(io.FileIO):
    """A file descriptor to write to; it keeps the first error in `failure` instead of raising it.

    A closed pipe still raises: who reads our output, such as `head`, has seen enough.
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
    """A text stream to write to `descriptor`; `earlier` is the one that Python made, or None."""
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
    """Run a script, the body, whatever its standard streams are.

    Closed ones become /dev/null; without that, the next file that is opened would take the number 2
    and then receive error messages. Letters that the encoding lacks are printed as \\N escapes.
    What cannot be written, as on a full disk, is dropped; the script does its work and leaves with
    status 1 and one line on stderr. Call it before anything else: what opens files may take 0 to 2.
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
    """Flush both streams. Returns whether one could not be written, after a line on stderr."""
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


def progress(
    iterable=None, description=None, total=None, unit="it", leave=True, is_shown=True, initial=0
):
    """A tqdm bar over `iterable`, or one of `total` steps to update by hand, from `initial` on.

    It is shown by the main process of a run alone, and only on a terminal. The environment variable
    TQDM_DISABLE=1 hides it, and tqdm's others, such as TQDM_MININTERVAL, hold as well.
    """
    is_main = int(os.environ.get("RANK", 0)) == 0  # torchrun sets it
    is_disabled = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    hidden = is_disabled or not is_main or not is_shown
    return tqdm(iterable, description, total, unit=unit, leave=leave, smoothing=0.05,
                initial=initial, disable=True if hidden else None)  # fmt: skip
