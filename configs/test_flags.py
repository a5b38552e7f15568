"""The flags of test.py. This file imports no PyTorch, so that --help is instant."""

from argparse import BooleanOptionalAction

from utils.argtypes import number
from utils.config import Parser

FORMATS = ("png", "pdf", "svg")


def build_parser(doc=None):
    """A `utils.config.Parser` with all flags of test.py."""
    parser = Parser(doc, main_flag="--checkpoint")
    add = parser.add
    count, count_or_0 = number(int, least=1), number(int, least=0)
    files = {"nargs": "+", "default": []}
    parser.usage = "%(prog)s --checkpoint RUN [other flags]\n       %(prog)s --codes FILE.npz [...]"

    parser.group("what to test, at least one file")
    checkpoint = "run folders, of which best.pt is tested, or checkpoint files"
    add("--checkpoint", **files, metavar="RUN", help=checkpoint)
    codes = "codes of any system: real-valued (>= 0 is bit 1), +-1, 0/1, bool, or packed uint8"
    add("--codes", **files, metavar="FILE.npz", help=codes)
    add("--bits", type=count, help="code length of packed --codes")
    untrained = "also test each network with its random initial weights"
    add("--untrained", action="store_true", help=untrained)
    add("--frames", metavar="DIR", help="frames, if they were moved after training")
    add("--splits", metavar="DIR", help="folder of the split lists, if it was moved")
    features = "features, if they were moved after training with --features"
    add("--features", metavar="FILE.npz", help=features)

    parser.group("metrics")
    add("--top-r", type=count, default=100, help="R of mAP@R")
    cutoffs = "N of precision@N and recall@N, besides 1 and 10"
    add("--cutoffs", type=count, nargs="+", default=[100], metavar="N", help=cutoffs)
    baselines = "compare with nearest neighbours on simple features, without learning"
    add("--baselines", action=BooleanOptionalAction, default=True, help=baselines)
    all_metrics = "print the table of all metrics; metrics.json always has them"
    add("--all-metrics", action="store_true", help=all_metrics)

    parser.group("output")
    output = "output folder (default: test in the run folder, or results for several files)"
    add("--output", metavar="DIR", help=output)
    pictures = "queries in the picture retrieval: the best, median and worst ones, at most 12; "
    pictures += "default: 6, none for features, which have no pictures"
    add("--pictures", type=count_or_0, help=pictures)
    add("--format", choices=FORMATS, default="png", help="of the picture and the curves")
    html = "also write retrieval.html: mAP by class, confusions, and N queries (default: 100)"
    add("--html", type=count, nargs="?", const=100, metavar="N", help=html)
    projector = "also write projector/ for TensorBoard: codes with classes and thumbnails"
    add("--projector", action="store_true", help=projector)

    parser.group("speed")
    add("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    amp = "mixed precision on GPUs; CPUs use float32"
    add("--amp", action=BooleanOptionalAction, default=True, help=amp)
    add("--batch-size", type=count, default=32, help="clips per batch")
    add("--workers", type=count_or_0, default=2, help="processes that read frames")
    add("--threads", type=count, help="CPU threads of PyTorch (default: all cores)")
    return parser


def parse_test_flags(doc, argv=None):
    """The flags of test.py: argparse.Namespace, checked."""
    parser = build_parser(doc)
    args = parser.parse_args(argv)
    if not args.checkpoint + args.codes:
        parser.error("give --checkpoint or --codes")
    return args
