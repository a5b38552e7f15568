"""Device, memory format, precision and determinism of PyTorch."""

import os

import torch

from utils.errors import UserError


def choose_device(name):
    """The torch.device of a name such as "cpu", "cuda", "cuda:1" or "mps".

    None means a GPU if there is one, else the CPU. Raises UserError if there is no such device.
    """
    local, local_size = (int(os.environ.get(f"LOCAL_{key}", 0)) for key in ("RANK", "WORLD_SIZE"))
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (number.isdecimal() or number == ""):
        raise UserError(f"--device {name}: must be cpu, cuda, cuda:1 or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: PyTorch finds no Apple GPU")
    if kind != "cuda":
        return torch.device(kind)
    if number and local_size > 1:
        raise UserError(
            f"--device {name} puts all {local_size} processes on one GPU; remove it, and choose "
            "GPUs with CUDA_VISIBLE_DEVICES"
        )
    index = int(number or local)
    if index >= torch.cuda.device_count():
        raise UserError(f"--device cuda:{index}: PyTorch finds {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def to_device(model, device):
    """Move a model to `device`, in the channels-last memory format."""
    model.to(device)
    if device.type != "mps":  # faster in half precision and on CPUs; MPS does not have it
        model.to(memory_format=torch.channels_last_3d)


def mixed_precision(device, wanted):
    """The dtype for autocast: bfloat16, float16 on GPUs without bfloat16, None for float32.

    device: torch.device. wanted: bool.
    """
    if device.type != "cuda" or not wanted:
        return None
    in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)  # emulation is slow
    return torch.bfloat16 if in_hardware else torch.float16


def set_threads(count):
    """Let PyTorch compute with `count` CPU threads; None keeps its default."""
    if count:
        torch.set_num_threads(count)


def set_deterministic(is_on):
    """Make PyTorch repeat its results bit for bit, with a warning where it cannot; or be fast.

    On CUDA the backward passes of 3D max-pooling and adaptive pooling have no deterministic form:
    https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
    """
    torch.backends.cudnn.benchmark = not is_on
    if is_on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
