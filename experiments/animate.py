"""Make the moving picture of README.md: test queries and the training videos that they found.

    python -m experiments.animate --run runs/demo --output docs/demo.webp

It reads what train.py and test.py wrote to the run folder, and the frame folders.
"""

from pathlib import Path

import numpy as np
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

from datasets.frames import FrameDataset
from datasets.splits import read_classes
from reports.page import encode_animation
from reports.pictures import retrieval_figure
from retrieval.codes import load_codes
from retrieval.hamming import nearest
from utils.argtypes import number
from utils.config import Parser
from utils.files import atomic_write

TITLE = "Queries (left) and their nearest videos by Hamming distance (bits)"
FRAMES = 16  # per loop
MILLISECONDS = 120  # per frame
QUALITY = 70
DPI = 110


def build_parser():
    parser = Parser(__doc__)
    count = number(int, least=1)
    parser.add("--run", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add("--output", type=Path, default=Path("docs/demo.webp"), help="WebP file")
    parser.add("--queries", type=count, default=3, help="spread evenly over the test list")
    parser.add("--results", type=count, default=5, help="results per query")
    return parser


def find_rows(codes, queries, results):
    """List of (query index, [(database index, distance in bits, is_right), ...])."""
    chosen = np.linspace(0, len(codes["query_codes"]) - 1, queries).astype(int).tolist()
    found = nearest(codes["query_codes"][chosen], codes["database_codes"], results)
    rows = []
    for query, items, distances in zip(chosen, *(array.tolist() for array in found), strict=True):
        is_right = codes["database_labels"][items] == codes["query_labels"][query]
        rows.append((query, list(zip(items, distances, is_right.tolist(), strict=True))))
    return rows


def read_cells(rows, codes, config):
    """The same rows as cells (clip, text) and (clip, text, is_right), clip: (T, H, W, 3) uint8."""
    classes = read_classes(config["splits"])
    queries, database = (
        FrameDataset(codes[f"{kind}_names"], codes[f"{kind}_labels"], config["frames"], FRAMES)
        for kind in ("query", "database")
    )
    cells = []
    for query, results in rows:
        clip, label = queries[query]
        row = [(clip.numpy(), classes[label])]
        for item, distance, is_right in results:
            clip, label = database[item]
            row.append((clip.numpy(), f"{distance}  {classes[label]}", is_right))
        cells.append(row)
    return cells


def draw(rows):
    """Rows of cells with single frames -> one picture (H, W, 3) uint8."""
    figure = retrieval_figure(rows, TITLE)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def main(args):
    codes = load_codes(args.run / "test" / "codes.npz")
    config = yaml.safe_load((args.run / "config.yaml").read_text(encoding="utf-8"))
    cells = read_cells(find_rows(codes, args.queries, args.results), codes, config)
    pictures = []
    for t in range(FRAMES):
        rows = [[(clip[t], *rest) for clip, *rest in row] for row in cells]
        pictures.append(draw(rows))
    with atomic_write(args.output) as temporary:
        temporary.write_bytes(encode_animation(pictures, MILLISECONDS, QUALITY))
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(build_parser().parse_args())
