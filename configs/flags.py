"""The flags of train.py. Their defaults are those of ucf101.yaml, but for its pretrained weights.

This file imports no PyTorch, so that --help and mistakes are answered at once; the tests compare
its choices with the registries of models/ and losses/.
"""

import sys
from argparse import BooleanOptionalAction

from utils.argtypes import folder_name, number, processors
from utils.config import Parser, parse_args

BACKBONES = ("c3d", "resnet18", "resnet34", "r3d18", "r3d34")
MINING = ("batch-all", "batch-hard")
DISTANCES = ("hamming", "squared", "euclidean")
NORMALISATIONS = (
    *("kinetics400", "hara2018", "hara2017"),
    *("c3d-bgr", "c3d-rgb", "jfzhang95", "mmaction2", "reference"),
)
INPUTS = ("rgb", "motion")
CACHE_LOCATIONS = ("none", "disk", "ram", "device")
MEMORY_FLAGS = "--classes-per-batch, --clip-frames, --size or --width"

# Flags that may differ when a run is resumed: they do not change what is learnt.
PATHS = ("config", "frames", "splits", "features", "output", "cache_folder")
SPEED = ("workers", "threads", "device", "cache", "cache_frames")
SAVING = ("restart", "save_minutes", "save_steps", "eval_every", "stop_when_collapsed")
FREE_TO_CHANGE = {*PATHS, *SPEED, *SAVING}

# Flags without a meaning for features, which no network of ours computes.
OF_VIDEOS = (
    *("frames", "backbone", "width", "shortcut", "pretrained", "normalisation"),
    *("backbone_lr_factor", "freeze_until", "freeze_batch_norm", "sync_batch_norm"),
    *("clip_frames", "input", "size", "crop", "crop_scale", "flip", "colour_jitter"),
    *("cache", "cache_frames", "cache_folder"),
)


def parse_train_flags(doc, argv=None):
    """The flags of train.py with those of its --config: argparse.Namespace, checked.

    Its "given" is the set of the flags on the command line, such as "--lr".
    """
    parser = build_parser(doc)
    args = parse_args(parser, argv)
    check_data(parser, args)
    if args.crop_scale[0] > args.crop_scale[1]:
        parser.error("--crop-scale: LEAST must not be above MOST")
    if args.margin is None and args.distance != "hamming":
        parser.error(f"--distance {args.distance} needs --margin, in units of that distance")
    if args.input == "motion" and args.clip_frames < 2:
        parser.error("--input motion needs --clip-frames of at least 2")
    args.margin = args.margin or args.bits / 8
    args.nested_bits = check_nested_bits(parser, args)
    words = sys.argv[1:] if argv is None else argv
    args.given = {word.partition("=")[0] for word in words if word.startswith("--")}
    return args


def check_data(parser, args):
    """End with a message unless the flags name either frames and lists, or features."""
    if args.features is None:
        missing = [f"--{name}" for name in ("frames", "splits") if getattr(args, name) is None]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
        return
    for name in OF_VIDEOS:
        if getattr(args, name) != parser.flags[name].default:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} is for videos; leave it out, or leave out --features")


def check_nested_bits(parser, args):
    """The lengths of nested codes in ascending order, with that of the whole code at the end."""
    if args.nested_bits and args.distance == "euclidean":
        parser.error("--nested-bits needs --distance hamming or squared, which grow with the bits")
    if any(bits > args.bits for bits in args.nested_bits):
        parser.error(f"--nested-bits: must be at most --bits, which is {args.bits}")
    return sorted({*args.nested_bits, args.bits}) if args.nested_bits else []


def build_parser(doc=None):
    """A `utils.config.Parser` with all flags of train.py."""
    usage = [
        "%(prog)s --config FILE [other flags]",
        "%(prog)s --frames DIR --splits DIR --output DIR [other flags]",
        "%(prog)s --features FILE.npz --output DIR [other flags]",
    ]
    parser = Parser(doc)
    for add_flags in (
        add_paths,
        add_model_flags,
        add_pretrained_flags,
        add_loss_flags,
        add_optimisation_flags,
        add_clip_flags,
        add_run_flags,
        add_saving_flags,
    ):
        add_flags(parser)
    parser.usage = "\n       ".join(usage)
    return parser


def add_paths(parser):
    add = parser.add
    parser.group("config")
    add("--config", metavar="FILE", help="YAML file of flags; command-line flags override it")
    parser.group("data and output, here or in --config")
    folder = {"type": folder_name, "metavar": "DIR"}
    add("--frames", **folder, help="what extract_frames.py wrote")
    add("--splits", **folder, help="what make_splits.py wrote")
    add(
        "--features",
        metavar="FILE.npz",
        help="features of any encoder instead of frames: train only the hash layer on its arrays "
        "features, labels and is_train, or features and names with --splits; docs/data.md",
    )
    help_output = "run folder; an interrupted run in it is resumed"
    add("--output", **folder, required=True, help=help_output)


def add_model_flags(parser):
    add = parser.add
    parser.group("model")
    add("--backbone", choices=BACKBONES, default="r3d18", help="docs/models.md compares their cost")
    add("--bits", type=number(int, least=1), default=64, help="length of the hash code")
    add(
        "--width",
        type=number(float, above=0),
        default=1.0,
        help="factor for the number of channels; 0.25 to 0.5 suits a CPU",
    )
    add(
        "--shortcut",
        choices=("A", "B"),
        help="shortcut of a ResNet where the size changes: A pads with zeros, B is a 1x1x1 "
        "convolution (default: that of the pretrained weights, else B)",
    )
    add(
        "--dropout",
        type=number(float, least=0, below=1),
        default=0.0,
        help="dropout probability before the hash layer; 0.5 suits C3D",
    )
    add(
        "--init-hash",
        choices=("random", "itq"),
        default="random",
        help="initial hash layer: random, or fitted to the features of the training videos without "
        "their labels (iterative quantisation), which needs more videos than bits",
    )


def add_pretrained_flags(parser):
    add = parser.add
    parser.group("pretrained weights")
    add(
        "--pretrained",
        metavar="NAME_OR_FILE",
        help="r3d18_kinetics400 (torchvision downloads it), a weights file (docs/models.md lists "
        "the known kinds), a checkpoint of train.py, or none; the weights set mean, range and "
        "channel order of the input (default: none)",
    )
    add(
        "--normalisation",
        choices=NORMALISATIONS,
        metavar="NAME",
        help=f"mean, range and channel order of the input: {', '.join(NORMALISATIONS)}; for "
        "weights that were not trained with those of their format (default: those of the format, "
        "or kinetics400 for random weights)",
    )
    add(
        "--backbone-lr-factor",
        type=number(float, above=0),
        default=1.0,
        help="learning rate of the backbone over that of the hash layer; 0.1 is usual with "
        "pretrained weights",
    )
    add(
        "--freeze-until",
        metavar="LAYER",
        help="train only the layers after this one: layer1 to layer4; in C3D conv1 to fc7",
    )
    add(
        "--freeze-batch-norm",
        action=BooleanOptionalAction,
        default=False,
        help="keep the running means and variances of the pretrained weights; for small batches",
    )


def add_loss_flags(parser):
    add = parser.add
    parser.group("loss and batches")
    add("--mining", choices=MINING, default="batch-all", help="which triplets of a batch count")
    add(
        "--distance",
        choices=DISTANCES,
        default="hamming",
        help="distance of approximate codes: relaxed Hamming, squared Euclidean or Euclidean",
    )
    add(
        "--margin",
        type=number(float, above=0),
        help="margin, in units of the distance (default: bits / 8 for --distance hamming)",
    )
    add(
        "--average",
        choices=("active", "valid"),
        default="active",
        help="mean over triplets with a loss above zero, or over all valid triplets",
    )
    add(
        "--classification",
        type=number(float, least=0),
        default=0.0,
        help="weight of a classification loss on the codes, in addition to the triplets, for "
        "example 5; docs/results.md shows where it helps",
    )
    add(
        "--nested-bits",
        type=number(int, least=1),
        nargs="+",
        default=[],
        metavar="N",
        help="also train the first N bits as codes of their own, such as 16 32; 64 bits then serve "
        "as codes of three lengths",
    )
    add(
        "--batches",
        choices=("balanced", "random"),
        default="balanced",
        help="balanced: P classes with K clips each; random: P x K clips of any class",
    )
    two_or_more = number(int, least=2)
    add(
        "--classes-per-batch",
        type=two_or_more,
        default=32,
        metavar="P",
        help="number of classes in a batch, 2 or more; unless it is on the command line, at most "
        "the number of classes that there are",
    )
    add(
        "--clips-per-class",
        type=two_or_more,
        default=4,
        metavar="K",
        help="number of clips of each class, 2 or more; a batch has P x K clips. Unless it is on "
        "the command line, K grows to fill the batch where there are fewer than P classes",
    )


def add_optimisation_flags(parser):
    add = parser.add
    parser.group("optimisation")
    at_least_0 = number(float, least=0)
    add("--epochs", type=number(int, least=1), default=100, help="passes over the training list")
    add("--optimizer", choices=("sgd", "adamw"), default="adamw", help="sgd has Nesterov momentum")
    add(
        "--lr",
        type=number(float, above=0),
        default=0.001,
        help="highest learning rate; 0.001 to 0.002 for adamw, 0.01 for sgd",
    )
    add("--momentum", type=number(float, least=0, below=1), default=0.9, help="momentum of sgd")
    add(
        "--weight-decay",
        type=at_least_0,
        default=0.05,
        help="of all parameters but biases and batch normalisation; about 0.05 for adamw, 0.0005 "
        "for sgd",
    )
    add(
        "--schedule",
        choices=("cosine", "step", "constant"),
        default="cosine",
        help="learning rate after the warm-up",
    )
    add("--warmup-epochs", type=at_least_0, default=5.0, help="linear warm-up from zero")
    add(
        "--step-epochs",
        type=number(int, least=1),
        default=40,
        help="with --schedule step: divide the learning rate by 10 every N epochs",
    )
    add("--clip-gradient", type=at_least_0, default=5.0, help="largest gradient norm; 0: no limit")
    add("--eval-every", type=number(int, least=1), default=5, help="epochs between validations")


def add_clip_flags(parser):
    add = parser.add
    parser.group("clips and augmentation")
    at_least_1, ratio = number(int, least=1), number(float, above=0, most=1)
    add("--clip-frames", type=at_least_1, default=16, help="frames per clip; usual: 16 or 32")
    add(
        "--views",
        type=at_least_1,
        default=1,
        metavar="V",
        help="clips of each video at test time, interleaved in time; the code is that of their "
        "mean. V x --clip-frames must not be more than --num-frames of extract_frames.py",
    )
    add(
        "--input",
        choices=INPUTS,
        default="rgb",
        help="rgb: the frames; motion: the differences of consecutive frames, which show movement "
        "and hide a still background; for few clips of a fixed camera",
    )
    add(
        "--size",
        type=number(int, least=16),
        default=112,
        help="height and width of the input, pixels",
    )
    add(
        "--crop",
        type=ratio,
        default=0.875,
        help="side of the central crop at test time, relative to the shorter side of the frame; "
        "0.875 is 112 of 128",
    )
    add(
        "--crop-scale",
        type=ratio,
        nargs=2,
        default=[0.7, 1.0],
        metavar=("LEAST", "MOST"),
        help="range of the side of the random crop in training, relative to the shorter side",
    )
    add(
        "--flip",
        action=BooleanOptionalAction,
        default=True,
        help="mirror half of the training clips; use --no-flip if left and right are different "
        "actions",
    )
    add(
        "--colour-jitter",
        type=number(float, least=0, below=1),
        default=0.2,
        help="largest change of brightness, contrast and saturation, drawn once per clip",
    )


def add_run_flags(parser):
    add, switch = parser.add, BooleanOptionalAction
    parser.group("run")
    add("--restart", action="store_true", help="start from scratch in an existing run folder")
    add(
        "--seed",
        type=number(int, least=0, below=2**32),
        default=0,
        help="random seed for weights, batches and augmentation",
    )
    add("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    add(
        "--workers",
        type=number(int, least=0),
        default=min(8, processors()),
        help="processes that read frames, for each training process",
    )
    add("--threads", type=number(int, least=1), help="CPU threads of PyTorch (default: all cores)")
    add(
        "--cache",
        choices=CACHE_LOCATIONS,
        default="none",
        help="decode all clips once and keep them in a file, in memory or on the GPU",
    )
    at_least_1 = number(int, least=1)
    add("--cache-frames", type=at_least_1, default=32, help="frames per video in the cache")
    add("--cache-folder", metavar="DIR", help="folder of cache files (default: .cache in --frames)")
    add("--amp", action=switch, default=True, help="mixed precision on GPUs; CPUs use float32")
    add("--compile", action=switch, default=False, help="torch.compile: slow start, faster steps")
    add(
        "--sync-batch-norm",
        action=switch,
        default=False,
        help="normalise over the clips of all GPUs; for few clips per GPU",
    )
    add(
        "--deterministic",
        action=switch,
        default=False,
        help="repeat runs bit for bit where PyTorch can; docs/scale.md says where it cannot",
    )


def add_saving_flags(parser):
    add = parser.add
    parser.group("checkpoints and stopping")
    add(
        "--save-minutes",
        type=number(float, least=0),
        default=10.0,
        help="save a checkpoint this often within an epoch; 0: only after epochs",
    )
    add(
        "--save-steps",
        type=number(int, least=0),
        default=0,
        help="also save every N steps; 0: never",
    )
    add(
        "--stop-when-collapsed",
        action=BooleanOptionalAction,
        default=False,
        help="stop a training that has learnt nothing in 10 epochs after the warm-up, instead of "
        "only warning",
    )
