"""The log of a run: a line for the terminal and one of JSON per epoch, and TensorBoard files."""

import contextlib
import io
import json
import threading
import time
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from reports.figures import precision_at_figure, precision_recall_figure
from utils import schema
from utils.files import is_utf8, write_text
from utils.terminal import print_main, warn

RECORD = schema.record({"epoch": schema.whole()})
RESULTS = ("loss", "loss_all", "active_fraction")  # other numbers of "train" are diagnostics
ESTIMATE_FROM = 60  # seconds; shorter runs need no estimate


class Clock:
    """Time of a training: so far and still to come.

    first, last: steps at the start of this process and at the end of the run. earlier: seconds
    that the run took before it was interrupted.
    """

    def __init__(self, first, last, earlier=0.0):
        self.first, self.last, self.earlier = first, last, earlier
        self.started, self.is_announced = time.monotonic(), False

    def seconds(self):
        """Seconds of training, with those before an interruption."""
        return self.earlier + time.monotonic() - self.started

    def remaining(self, step):
        """Seconds to the end, if the steps after `step` take as long as those so far."""
        elapsed = time.monotonic() - self.started
        return elapsed * (self.last - step) / max(step - self.first, 1)

    def announce(self, step):
        """Print once how long the run will take, unless it is short."""
        remaining = self.remaining(step)
        if not self.is_announced and remaining > ESTIMATE_FROM:
            print_main(f"about {show_seconds(remaining)} to train, by the first steps")
        self.is_announced = True


def show_seconds(seconds):
    """A duration such as 0:41, 12:05 or 3:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def describe_run(model, device, train_set, val_set, classes, args):
    """One line for the terminal: the model and the data."""
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    network = f"{train_set.features.shape[1]} features" if args.features else args.backbone
    return (
        f"{network}, {args.bits} bits, {parameters:.1f} M parameters on {device}; "
        f"{len(train_set)} training and {len(val_set)} validation "
        f"{'videos' if args.features else 'clips'} of {len(classes)} classes"
    )


def summarise(totals, batches, rates, clips_per_second):
    """The sums over the `batches` of an epoch as means, with the learning rates of its end."""
    loss, loss_sum, active, valid, magnitude, spread = totals
    return {
        "train/loss": loss / batches,
        "train/loss_all": loss_sum / max(valid, 1),
        "train/active_fraction": active / max(valid, 1),
        "train/code_magnitude": magnitude / batches,
        "train/code_spread": spread / batches,
        "train/clips_per_second": clips_per_second,
        **{f"train/learning_rate_{name}": rate for name, rate in rates.items()},
    }


def describe_epoch(record, epochs, remaining, is_best):
    """The line for the terminal. remaining: seconds. is_best: whether best.pt is of this epoch."""
    line = (
        f"epoch {record['epoch']:3}/{epochs}  loss {record['train/loss']:.3f} "
        f"(all {record['train/loss_all']:.3f})  violated {record['train/active_fraction']:.1%}  "
        f"{show_seconds(record['seconds'])}, {show_seconds(remaining)} left"
    )
    if "val/map" in record:
        line += f"  val mAP {record['val/map']:.4f}{' ★' if is_best else ''}"
    return line


def warn_of_thread(failure):
    """For threading.excepthook: one line when TensorBoard's thread cannot write its file."""
    if isinstance(failure.exc_value, OSError):
        warn(f"TensorBoard: {failure.exc_value}")
    else:
        threading.__excepthook__(failure)


class RunLog:
    """metrics.jsonl and the TensorBoard event files of a run folder.

    finished: the epochs that a resumed run has finished; records of later ones, from before it was
    interrupted, are removed, so that every epoch has one record. Epochs count from 1; earlier
    versions counted from 0. TensorBoard cannot write into a folder whose name is not UTF-8; such a
    run has metrics.jsonl only.
    seconds: of training, in the records that are kept.
    """

    def __init__(self, folder, finished=0):
        self.path = Path(folder) / "metrics.jsonl"
        records = self.read()
        if any(record["epoch"] == 0 for record in records):
            records = [{**record, "epoch": record["epoch"] + 1} for record in records]
        kept = [record for record in records if record["epoch"] <= finished]
        self.seconds = kept[-1].get("seconds", 0.0) if kept else 0.0
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        threading.excepthook = warn_of_thread
        if is_utf8(folder):
            self.board = SummaryWriter(str(folder), purge_step=finished + 1)
        else:
            self.board = None
            warn(f"{folder}: not UTF-8; no TensorBoard files, only {self.path.name}")

    def read(self):
        """The records so far: a list of dicts, without damaged lines, such as half a last line."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                RECORD(record, "line")
                records.append(record)
        return records

    def write(self, record):
        """Append `record`, a flat dict of numbers with the key `epoch`."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is None:
            return
        for name, value in record.items():
            if "/" in name:
                self.board.add_scalar(_board_name(name), value, record["epoch"])
        self.board.flush()

    def show_validation(self, epoch, metrics, picture):
        """Show the curves of a validation, and a picture of what its queries found, or None."""
        if self.board is None:
            return
        curves = {"validation": metrics}
        if picture is not None:
            self.board.file_writer.add_summary(_jpeg("1_val/retrieval", picture), epoch)
        self.board.add_figure("1_val/precision_recall", precision_recall_figure(curves), epoch)
        self.board.add_figure("1_val/precision_at", precision_at_figure(curves), epoch)

    def close(self):
        if self.board is not None:
            self.board.close()


def _jpeg(name, figure):
    """The Summary of a figure with video frames, a quarter of the PNG that add_figure writes."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", pil_kwargs={"quality": 80})
    width, height = figure.canvas.get_width_height()
    image = {"width": width, "height": height, "colorspace": 3}  # RGB
    image = Summary.Image(**image, encoded_image_string=file.getvalue())
    return Summary(value=[Summary.Value(tag=name, image=image)])


def _board_name(name):
    """The name under which TensorBoard, which sorts by name, shows train/… or val/…."""
    group, _, rest = name.partition("/")
    if group == "val":
        return f"1_val/{rest}"
    return f"2_train/{rest}" if rest in RESULTS else f"3_diagnostics/{rest}"
