"""One line of JSON an epoch and the same numbers for TensorBoard."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from utils.files import write_text
from utils.plots import precision_at_figure, precision_recall_figure


class RunLog:
    """Records of a run folder: `metrics.jsonl` and TensorBoard event files.

    A resumed run passes the epoch it starts at; what a killed run had logged from there on is
    dropped, so that each epoch stands once.
    """

    def __init__(self, folder, first_epoch=0):
        self.path = Path(folder) / "metrics.jsonl"
        kept = [record for record in self.read() if record["epoch"] < first_epoch]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.board = SummaryWriter(str(folder), purge_step=first_epoch)

    def read(self):
        """The records written so far: a list of dicts. A last line cut by a kill is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def write(self, record):
        """Append `record`, a flat dict of numbers with the key `epoch`."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name != "epoch":
                self.board.add_scalar(name, value, record["epoch"])
        self.board.flush()

    def plot(self, results, epoch):
        """Show the curves of {name: metrics of `utils.metrics.evaluate`} in TensorBoard."""
        self.board.add_figure("val/precision_recall", precision_recall_figure(results), epoch)
        self.board.add_figure("val/precision_at", precision_at_figure(results), epoch)

    def close(self):
        self.board.close()
