"""The weight files that `models.pretrained` recognises: one `WeightFormat` per published layout.

Patterns are regular expressions that must match a whole key. The source of each layout and of its
preprocessing is above it.
"""

from dataclasses import dataclass


def _normalisation(mean, std=(1.0, 1.0, 1.0), channels="RGB", white=255.0):
    """The network input is (x - mean) / std, where x is 0 for black and `white` for white."""
    return {"mean": list(mean), "std": list(std), "channels": channels, "range": white}


@dataclass(frozen=True)
class WeightFormat:
    """How to recognise, rename and use the weights of one family of files."""

    name: str
    required_key: str  # at least one key of the file matches
    forbidden_key: str | None  # no key of the file matches
    renames: tuple  # (pattern of the file's keys, our key) pairs; the first that matches is used
    classifier: str  # keys to drop
    network: str  # "c3d", or the prefix of our ResNet's name: "resnet" or "r3d"
    shortcut: str | None  # "A" or "B" for ResNets
    normalisation: dict  # "mean", "std", "channels" ("RGB", "BGR"), "range" (of white: 1, 255)


# Keys of a basic block: "layer2.0.conv1.weight"
BLOCK = r"(layer\d\.\d+)"
TORCHVISION_RENAMES = (
    (r"stem\.0\.weight", r"conv1.weight"),
    (r"stem\.1\.(\w+)", r"bn1.\1"),
    (BLOCK + r"\.conv([12])\.0\.weight", r"\1.conv\2.weight"),
    (BLOCK + r"\.conv([12])\.1\.(\w+)", r"\1.bn\2.\3"),
    (BLOCK + r"\.downsample\.(.+)", r"\1.downsample.\2"),
)
HARA_RENAMES = (
    (r"((?:conv1|bn1)\.\w+)", r"\1"),
    (BLOCK + r"\.((?:conv|bn)[12]\.\w+)", r"\1.\2"),
    (BLOCK + r"\.downsample\.(.+)", r"\1.downsample.\2"),
)
C3D_RENAMES = ((r"((?:conv\d[ab]?|fc[67])\.\w+)", r"\1"),)
C3D_SEQUENTIAL_RENAMES = (
    (r"features\.0\.(\w+)", r"conv1.\1"),
    (r"features\.3\.(\w+)", r"conv2.\1"),
    (r"features\.6\.(\w+)", r"conv3a.\1"),
    (r"features\.8\.(\w+)", r"conv3b.\1"),
    (r"features\.11\.(\w+)", r"conv4a.\1"),
    (r"features\.13\.(\w+)", r"conv4b.\1"),
    (r"features\.16\.(\w+)", r"conv5a.\1"),
    (r"features\.18\.(\w+)", r"conv5b.\1"),
    (r"classifier\.0\.(\w+)", r"fc6.\1"),
    (r"classifier\.3\.(\w+)", r"fc7.\1"),
)
MMACTION_RENAMES = (
    (r"(conv[12])a\.conv\.(\w+)", r"\1.\2"),
    (r"(conv[345][ab])\.conv\.(\w+)", r"\1.\2"),
    (r"(fc[67]\.\w+)", r"\1"),
)
# Choices of --normalisation. Sources:
# - kinetics400: the statistics that torchvision publishes; also for random weights
# - hara2018: github.com/kenshohara/3D-ResNets-PyTorch, --mean_dataset kinetics and --value_scale 1
#   of its opts.py
# - hara2017: mean.py of github.com/kenshohara/video-classification-3d-cnn-pytorch, with pixels in
#   0..255 and no division by a standard deviation
# - c3d-bgr: mean of the data of the Caffe model, in Caffe's BGR order; see c3d-pytorch's issue 1
# - c3d-rgb: predict.py of github.com/DavideA/c3d-pytorch, which subtracts nothing
# - jfzhang95: normalize() of dataset.py in github.com/jfzhang95/pytorch-video-recognition subtracts
#   90, 98, 102 from frames that OpenCV read, which are BGR
# - reference: github.com/zhongzhh8/Video-Retrieval-C3D, train.py
# - mmaction2: data_preprocessor of its configs/recognition/c3d
NORMALISATIONS = {
    "kinetics400": _normalisation(
        mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989), white=1.0
    ),
    "hara2018": _normalisation(
        mean=(0.4345, 0.4051, 0.3775), std=(0.2768, 0.2713, 0.2737), white=1.0
    ),
    "hara2017": _normalisation(mean=(114.7748, 107.7354, 99.4750)),
    "c3d-bgr": _normalisation(mean=(90.25, 97.66, 101.41), channels="BGR"),
    "c3d-rgb": _normalisation(mean=(0.0, 0.0, 0.0)),
    "jfzhang95": _normalisation(mean=(90.0, 98.0, 102.0), channels="BGR"),
    "mmaction2": _normalisation(mean=(104.0, 117.0, 128.0)),
    "reference": _normalisation(mean=(0.434, 0.405, 0.378), std=(0.152, 0.149, 0.157), white=1.0),
}
KINETICS = NORMALISATIONS["kinetics400"]


def describe_normalisation(normalisation):
    """One line: the name in NORMALISATIONS, where it has one, and the values."""
    names = [name for name, known in NORMALISATIONS.items() if known == normalisation]
    mean, std = (" ".join(f"{x:g}" for x in normalisation[key]) for key in ("mean", "std"))
    return (
        f"{names[0] if names else 'of the checkpoint'} ({normalisation['channels']} from 0 to "
        f"{normalisation['range']:g}, mean {mean}, std {std})"
    )


FORMATS = (
    # torchvision.models.video.R3D_18_Weights.KINETICS400_V1: keys and transforms()
    WeightFormat(
        name="torchvision R3D",
        required_key=r"stem\.0\.weight",
        forbidden_key=None,
        renames=TORCHVISION_RENAMES,
        classifier=r"fc\..+",
        network="r3d",
        shortcut="B",
        normalisation=KINETICS,
    ),
    # github.com/kenshohara/3D-ResNets-PyTorch since 2018; its published weights are of 2020
    WeightFormat(
        name="Hara 2018",
        required_key=r"layer2\.0\.downsample\.0\.weight",
        forbidden_key=r"stem\..+",
        renames=HARA_RENAMES,
        classifier=r"fc\..+",
        network="resnet",
        shortcut="B",
        normalisation=NORMALISATIONS["hara2018"],
    ),
    # github.com/kenshohara/video-classification-3d-cnn-pytorch, release of 2017; shortcut A has no
    # keys. PyTorch 0.4.1 and later add batch counters when they save such a network again
    WeightFormat(
        name="Hara 2017",
        required_key=r"layer2\.0\.conv1\.weight",
        forbidden_key=r".+\.downsample(\..+)?",
        renames=HARA_RENAMES,
        classifier=r"fc\..+",
        network="resnet",
        shortcut="A",
        normalisation=NORMALISATIONS["hara2017"],
    ),
    # github.com/DavideA/c3d-pytorch (c3d.pickle): converted from the Caffe model. What
    # pytorch-video-recognition trains has the same keys, but needs --normalisation jfzhang95
    WeightFormat(
        name="C3D pickle",
        required_key=r"conv1\.weight",
        forbidden_key=r"(bn1|layer1)\..+",
        renames=C3D_RENAMES,
        classifier=r"fc8\..+",
        network="c3d",
        shortcut=None,
        normalisation=NORMALISATIONS["c3d-bgr"],
    ),
    # github.com/jfzhang95/pytorch-video-recognition (c3d-pretrained.pth)
    WeightFormat(
        name="C3D sequential",
        required_key=r"features\.0\.weight",
        forbidden_key=None,
        renames=C3D_SEQUENTIAL_RENAMES,
        classifier=r"classifier\.6\..+",
        network="c3d",
        shortcut=None,
        normalisation=NORMALISATIONS["jfzhang95"],
    ),
    # mmaction2, configs/recognition/c3d
    WeightFormat(
        name="C3D mmaction2",
        required_key=r"conv1a\.conv\.weight",
        forbidden_key=None,
        renames=MMACTION_RENAMES,
        classifier=r"(cls_head\.)?fc(_cls|8)?\..+",
        network="c3d",
        shortcut=None,
        normalisation=NORMALISATIONS["mmaction2"],
    ),
)
