"""The flags of search.py. This file imports no PyTorch, so that --help is instant."""

from argparse import ArgumentTypeError, BooleanOptionalAction
from pathlib import Path

from utils.argtypes import number, processors
from utils.config import Parser

PRETRAINED, BITS = "r3d18_kinetics400", 64  # of an index without labels


def build_parser(doc=None):
    """A `utils.config.Parser` with the commands of search.py and their flags."""
    parser = Parser(doc)
    add_index_flags(parser.command("index", "Encode the videos below a folder."))
    add_query_flags(parser.command("query", "Find the moments nearest to a query video."))
    add_export_flags(parser.command("export", "Write an index as a Parquet file."))
    add_serve_flags(parser.command("serve", "Serve a page to search with, in a browser."))
    return parser


def seconds_or_whole(text):
    """argparse type: seconds above 0, or "whole", which is returned as infinity."""
    return float("inf") if text == "whole" else number(float, above=0)(text)


def local(text):
    """argparse type: a Path, not an address such as s3://bucket/index."""
    if "://" in text:
        raise ArgumentTypeError(
            f"{text}: an index is written to a local folder; copy it to the object store afterwards"
        )
    return Path(text)


def add_index_flags(parser):
    add = parser.add
    folder = {"required": True, "type": Path, "metavar": "DIR"}
    checkpoint = (
        "best.pt or last.pt, or a run folder: its best.pt. Without it, a new index is made "
    )
    checkpoint += "by pretrained weights and a hash layer that is fitted to the videos, no labels"
    add("--checkpoint", metavar="RUN", help=checkpoint)
    add("--videos", **folder, help="videos at any depth below it")
    add("--output", **folder | {"type": local}, help="index folder; an index in it is updated")
    add(
        "--window",
        type=seconds_or_whole,
        metavar="SECONDS",
        help="a video longer than two windows gets a code for each; `whole`: one code per video. "
        "Default: the median duration of the training clips",
    )
    stride = "seconds from one window to the next; default: a third of a window"
    add("--stride", type=number(float, above=0), metavar="SECONDS", help=stride)
    store = "also keep the real-valued codes, to sort the nearest by: 16 times the space of codes"
    add("--store-embeddings", action=BooleanOptionalAction, help=store)
    add_label_free_flags(parser)
    add_encoder_flags(parser)


def add_label_free_flags(parser):
    add, bits = parser.add, number(int, least=1)
    parser.group("without --checkpoint")
    weights = f"as of train.py: a name, a weights file or a checkpoint (default: {PRETRAINED})"
    add("--pretrained", metavar="NAME_OR_FILE", help=weights)
    add("--bits", type=bits, help=f"code length, below the number of windows (default: {BITS})")


def add_query_flags(parser):
    add = parser.add
    count = number(int, least=1)
    start = {"type": number(float, least=0), "default": 0.0, "metavar": "SECONDS"}
    end = {"type": number(float, above=0), "metavar": "SECONDS"}
    index = "what `search.py index` wrote, also s3://...; several are searched as one"
    add("--index", required=True, nargs="+", metavar="DIR", help=index)
    add("--video", required=True, nargs="+", metavar="FILE", help="query videos")
    add("--videos", metavar="DIR", help="the folder of the indexed videos, if it was moved")
    add("--top", type=count, default=10, help="results per query")
    bits = "compare only the first N bits; for codes of train.py --nested-bits (default: all)"
    add("--bits", type=count, metavar="N", help=bits)
    add("--per-video", action="store_true", help="only the nearest moment of each video")
    add("--class", metavar="NAME", help="only moments of this class")
    path = "only videos whose path below their folder matches, such as 'holiday/*'"
    add("--path", metavar="GLOB", help=path)
    add("--exclude-query", action="store_true", help="omit the query itself from the results")
    add("--start", **start, help="use the query video from this time on")
    add("--end", **end, help="use the query video up to this time (default: to its end)")
    rerank = "sort the nearest N by real-valued codes: of the query and, if the index stores them, "
    rerank += "of the moments (default: 1000 with --store-embeddings, else 0: no sorting)"
    add("--rerank", type=number(int, least=0), metavar="N", help=rerank)
    add("--checkpoint", metavar="RUN", help="the checkpoint of the index, if it was moved")
    add("--json", action="store_true", help="print JSON")
    add("--html", type=Path, metavar="FILE", help="also write a page with animated previews")
    add_encoder_flags(parser)


def add_export_flags(parser):
    parser.add("--index", required=True, metavar="DIR", help="what `search.py index` wrote")
    parquet = "the columns of the index, for other programs"
    parser.add("--parquet", required=True, type=Path, metavar="FILE", help=parquet)


def add_serve_flags(parser):
    add = parser.add
    port = number(int, least=0, most=65535)
    add("--index", required=True, metavar="DIR", help="--output of `search.py index`")
    host = "address to listen at; any other lets other machines see the videos"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=port, default=8000, help="0: any free one")
    add("--videos", metavar="DIR", help="the folder of the videos, if it was moved")
    add("--checkpoint", metavar="RUN", help="the checkpoint of the index, if it was moved")
    add_encoder_flags(parser)


def add_encoder_flags(parser):
    add = parser.add
    count = number(int, least=1)
    parser.group("speed")
    add("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    amp = "mixed precision on GPUs; CPUs use float32"
    add("--amp", action=BooleanOptionalAction, default=True, help=amp)
    add("--workers", type=count, default=processors(), help="processes that decode videos")
    add("--threads", type=count, help="CPU threads of PyTorch (default: all cores)")
    add("--batch-size", type=count, default=16, help="clips per batch")
    timeout = {"type": number(float, above=0), "default": 600, "metavar": "SECONDS"}
    add(
        "--timeout",
        **timeout,
        help="limit per video, or per window of a long one; slower ones are skipped",
    )
