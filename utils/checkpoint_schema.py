"""What a checkpoint contains: the schema of all its values, and whether weights fit a network."""

import torch

from utils import schema

FORMAT = 2  # raised when a checkpoint of this code can no longer be read by older code
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}
MOST_PIXELS = 2**30  # of a clip, in all frames: what a checkpoint may make its reader allocate


def tensor(value, where):
    """Schema: a dense, finite tensor whose numbers are all in the file."""
    if not isinstance(value, torch.Tensor):
        raise schema.SchemaError(f"{where} must be a tensor, not {schema.show(value)}")
    if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
        raise schema.SchemaError(f"{where} must be a dense tensor with data")
    if value.dtype not in DTYPES:
        raise schema.SchemaError(f"{where} must have real numbers, not {value.dtype}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise schema.SchemaError(f"{where} claims more numbers than the file has")
    is_float = value.is_floating_point() and value.numel() > 0
    if is_float and not torch.stack(value.aminmax()).isfinite().all():
        raise schema.SchemaError(f"{where} has infinite values or NaN")


def _unknown(value, where):
    raise schema.SchemaError(f"{where} is unknown")


def _optional_tensor(value, where):
    if value is not None:  # SGD without momentum
        tensor(value, where)


def _no_state(value, where):
    if value is not None and value != {}:
        raise schema.SchemaError(f"{where} must be empty")


_number = schema.real()
_triple = schema.list_of(_number, 3, 3)
_pixels = schema.whole(1, 2**16)
_names = schema.list_of(schema.text)

NETWORK = schema.record(
    {"backbone": schema.text, "bits": schema.whole(1, 2**31)},
    {
        "width": schema.real(above=0, most=100),
        "shortcut": schema.one_of("A", "B", None),
        "dropout": schema.real(0, 1),
        "feature_dim": schema.nullable(schema.whole(1, 2**24)),
    },
    others=_unknown,
)
PREPROCESSING = schema.record(
    {
        "clip_frames": _pixels,
        "size": _pixels,
        "crop": schema.real(above=0, most=1),
        "mean": _triple,
        "std": schema.list_of(schema.real(above=0), 3, 3),
        "channels": schema.one_of("RGB", "BGR"),
        "range": schema.real(above=0),
    },
    {
        "frame_size": schema.list_of(_pixels, 2, 2),
        "input": schema.one_of("rgb", "motion"),
        "views": _pixels,
    },
    others=schema.plain,
)
_path = schema.nullable(schema.text)
SETTINGS = schema.record(
    {"frames": _path, "splits": _path, "seed": schema.whole(0, 2**63 - 1)},
    {"features": _path, "nested_bits": schema.list_of(schema.whole(1, 2**31))},
    others=schema.plain,
)
DATA = schema.record(
    {},
    {
        "lists": schema.text,
        "features": schema.text,
        "extraction": schema.nullable(schema.dict_of(schema.plain)),
        "processes": schema.whole(1),
    },
    others=schema.plain,
)
TRAINING = schema.record(
    {
        "model": schema.dict_of(tensor),
        "optimizer": schema.record(
            {
                "state": schema.dict_of(schema.dict_of(_optional_tensor), key=schema.whole()),
                "param_groups": schema.list_of(
                    schema.record({"params": schema.list_of(schema.whole())}, others=schema.plain)
                ),
            }
        ),
        "scheduler": schema.record(
            {"last_epoch": schema.whole(), "base_lrs": schema.list_of(_number)},
            {"lr_lambdas": schema.list_of(_no_state)},
            others=schema.plain,
        ),
        "scaler": schema.dict_of(schema.scalar),
        "epoch": schema.whole(),
        "batch": schema.whole(),
        "totals": schema.list_of(_number),
        "best_map": _number,
    },
    {"criterion": schema.dict_of(tensor)},  # not in early checkpoints
    others=_unknown,
)
CHECKPOINT = schema.record(
    {
        "format": schema.whole(1, FORMAT),
        "network": NETWORK,
        "model": schema.dict_of(tensor),
        "preprocessing": schema.nullable(PREPROCESSING),
        "classes": schema.list_of(schema.text),  # none without labels
    },
    {
        "settings": SETTINGS,
        "data": DATA,
        "videos": schema.record({"train": _names, "val": _names}),
        "pretrained": schema.nullable(schema.dict_of(schema.scalar)),
        "epoch": schema.whole(),
        "val_map": _number,
        "clip_seconds": schema.nullable(schema.real(above=0)),
        "neighbours": schema.list_of(schema.whole()),
    },  # "training" is checked when it is used: that of the first versions has other keys
)
# What a network of each kind of input needs beyond that.
OF_CLIPS = schema.record(
    {"preprocessing": PREPROCESSING},
    {"settings": schema.record({"frames": schema.text, "splits": schema.text})},
)
OF_FEATURES = schema.record(
    {
        "network": schema.record({"feature_dim": schema.whole(1, 2**24)}),
        "preprocessing": schema.one_of(None),
    },
    {"settings": schema.record({"features": schema.text})},
)


# The names of the tensors that optimisers keep for each parameter.
CHOICES_OF_SPEED = ("fused", "foreach")  # of an optimiser, by device
STATE_NAMES = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "SGD": {"momentum_buffer"}}


# ==== checks ====


def check_content(content, needed=()):
    """Raise SchemaError unless a dict has the keys, types and ranges of a checkpoint.

    needed: optional keys that must be there too.
    """
    schema.record(dict.fromkeys(needed))(content, "content")
    CHECKPOINT(content, "content")
    if content["network"]["backbone"] == "features":
        OF_FEATURES(content, "content")
        return
    OF_CLIPS(content, "content")
    preprocessing = content["preprocessing"]
    height, width = preprocessing.get("frame_size", (1, 1))
    side, frames = preprocessing["size"], preprocessing["clip_frames"]
    if frames % preprocessing.get("views", 1):
        raise schema.SchemaError(f"{frames} frames cannot be divided into the views")
    if frames * max(side * side, height * width) > MOST_PIXELS:
        raise schema.SchemaError(f"a clip of {frames} frames of {side} pixels is too large")


def check_weights(weights, expected, where):
    """Raise SchemaError unless two dicts of tensors have equal names, shapes and kinds."""
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    problems = [f"lacks {name!r}" for name in missing] + [f"has {name!r}" for name in unknown]
    for name, value in expected.items():
        if name in weights:
            saved = weights[name]
            if saved.shape != value.shape:
                problems.append(f"{name} is {tuple(saved.shape)}, not {tuple(value.shape)}")
            elif saved.is_floating_point() != value.is_floating_point():
                problems.append(f"{name} is {saved.dtype}, not {value.dtype}")
    if problems:
        raise schema.SchemaError(f"{where} does not fit the network: {problems[0]}")


def check_optimizer(state, optimizer):
    """Raise SchemaError unless the state of an optimiser, as saved, fits `optimizer`."""
    groups, saved_groups = optimizer.param_groups, state["param_groups"]
    counts, saved_counts = (
        [len(group["params"]) for group in sequence] for sequence in (groups, saved_groups)
    )
    if counts != saved_counts:
        raise schema.SchemaError(f"optimizer has {saved_counts} parameters, not {counts}")
    for index, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        check_like(saved, group, f"optimizer.param_groups[{index}]")
    parameters = [parameter for group in groups for parameter in group["params"]]
    indices = [index for group in saved_groups for index in group["params"]]
    if indices != list(range(len(parameters))):
        raise schema.SchemaError("optimizer has unknown indices of parameters")
    if len(state["state"]) not in (0, len(parameters)):
        raise schema.SchemaError(
            f"optimizer has the state of {len(state['state'])} parameters only"
        )
    names = STATE_NAMES[type(optimizer).__name__]
    for index, saved in state["state"].items():
        where = f"optimizer.state[{index}]"
        if index >= len(parameters) or (saved and not names <= saved.keys()):
            raise schema.SchemaError(f"{where} is not a state of {type(optimizer).__name__}")
        for name, value in saved.items():
            shape = () if name == "step" else parameters[index].shape
            if value is None and names != STATE_NAMES["SGD"]:
                raise schema.SchemaError(f"{where}.{name} must be a tensor, not None")
            if value is not None and value.shape != shape:
                raise schema.SchemaError(
                    f"{where}.{name} is {tuple(value.shape)}, not {tuple(shape)}"
                )


def check_like(saved, current, where):
    """Raise SchemaError where values that two dicts have in common are of different kinds.

    Numbers are one kind; True, False and None are another. True must stay True, and False False.
    Keys that only one of the two has are allowed: versions of PyTorch differ in them.
    """
    for key in current.keys() & saved.keys() - {"params"}:
        kinds = [_kind(values[key]) for values in (saved, current)]
        is_flag = isinstance(current[key], bool) and key not in CHOICES_OF_SPEED
        if kinds[0] != kinds[1] or (is_flag and saved[key] != current[key]):
            raise schema.SchemaError(f"{where}[{key!r}] is {schema.show(saved[key])}")


def _kind(value):
    """What two values must have in common to be exchangeable."""
    if value is None or value == {} or isinstance(value, bool):
        return "switch"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, (list, tuple)):
        return [_kind(child) for child in value]
    return type(value)
