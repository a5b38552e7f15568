"""Hash codes: real values to bits, and .npz files of codes and labels, our own and others'."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic_write

SETS = ("query", "database")
# What np.load raises for files that are no .npz, are cut short or damaged, or hold objects, and an
# array instead of an .npz at `with`, which is AttributeError or, from Python 3.11, TypeError.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    AttributeError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)


def binarize(values):
    """Real codes (N, K) -> bits (N, K) bool: value >= 0 is True. Raises UserError for NaN."""
    if values.isnan().any():
        raise UserError("codes contain NaN: the model that made them has diverged")
    return values >= 0


def save_codes(
    path, query_codes, query_labels, query_names, database_codes, database_labels, database_names
):
    """Write codes (N, K), real-valued as the model gives them, with labels and names to an .npz.

    Labels as in `load_codes`; names are sequences of N strings. Codes are stored as float32.
    """
    codes = [codes.detach().cpu().float().numpy() for codes in (query_codes, database_codes)]
    labels = [torch.as_tensor(labels).cpu().numpy() for labels in (query_labels, database_labels)]
    names = [np.array([str(name) for name in names]) for names in (query_names, database_names)]
    arrays = {
        f"{side}_{kind}": array
        for kind, pair in (("codes", codes), ("labels", labels), ("names", names))
        for side, array in zip(SETS, pair, strict=True)
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_codes(path, bits=None):
    """Read the codes and labels of any system from an .npz, without pickles.

    Arrays `query_codes`, `query_labels`, `database_codes`, `database_labels`; `query_names` and
    `database_names` may be absent. Codes (N, K) are real values (>= 0 is bit 1), ±1, 0/1 or bool,
    the kind being decided on query and database together; or, with `bits` = K, uint8 (N, ceil(K/8))
    packed in the order of np.packbits: first bit highest in its byte, zeros after the last.
    Labels are whole numbers (N,), or multi-label 0/1 or bool matrices (N, L).

    Returns a dict: `query_codes` (Q, K) and `database_codes` (N, K) bool tensors, `query_labels`
    and `database_labels` int64 (Q,), (N,) or bool (Q, L), (N, L) tensors, and of the names those
    that are there, as lists of strings. Raises UserError with one line.
    """
    arrays = read_arrays(path)
    try:
        codes = [arrays[f"{side}_codes"] for side in SETS]
        for side, array in zip(SETS, codes, strict=True):
            check_codes(f"{side}_codes", array)
        codes = to_bits(codes, bits)
        labels = to_labels([arrays[f"{side}_labels"] for side in SETS])
        result = {}
        for side, code, label in zip(SETS, codes, labels, strict=True):
            if len(code) != len(label):
                raise UserError(f"{side}_codes has {len(code)} items, {side}_labels {len(label)}")
            result[f"{side}_codes"] = torch.from_numpy(code)
            result[f"{side}_labels"] = torch.from_numpy(label)
            if f"{side}_names" in arrays:
                result[f"{side}_names"] = to_names(side, arrays[f"{side}_names"], len(code))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return result


def read_arrays(path):
    """The arrays that `load_codes` knows from the .npz at `path`, as a dict."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; give an .npz of codes and labels")
    required = [f"{side}_{kind}" for kind in ("codes", "labels") for side in SETS]
    try:
        with np.load(path, allow_pickle=False) as file:
            known = required + [f"{side}_names" for side in SETS]
            arrays = {name: file[name] for name in known if name in file.files}
    except UNREADABLE:
        raise UserError(
            f"{path}: not a whole .npz of plain arrays; write it with np.savez, without objects"
        ) from None
    missing = [name for name in required if name not in arrays]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; it needs {', '.join(required)}")
    return arrays


def check_codes(name, codes):
    """Raise UserError unless `codes` is a non-empty matrix of finite real numbers."""
    if codes.ndim != 2 or 0 in codes.shape:
        raise UserError(f"{name} has shape {codes.shape}; it must be (items, bits), not empty")
    if codes.dtype.kind not in "biuf":
        raise UserError(f"{name} has type {codes.dtype}; it must be real numbers, bool or uint8")
    if codes.dtype.kind == "f" and not np.isfinite(codes).all():
        raise UserError(f"{name} contains NaN or infinite values; no bit can be made of them")


def to_bits(codes, bits):
    """Query and database codes of any kind that `load_codes` takes -> two bool matrices."""
    widths = [array.shape[1] for array in codes]
    if widths[0] != widths[1]:
        raise UserError(f"query_codes are {widths[0]} wide, database_codes {widths[1]}")
    binary = all(((array == 0) | (array == 1)).all() for array in codes)
    uint8 = all(array.dtype == np.uint8 for array in codes)
    if bits is not None and uint8 and not (binary and widths[0] == bits):
        return unpack(codes, bits)
    if bits is not None and widths[0] != bits:
        raise UserError(f"codes are {widths[0]} wide, not {bits}, and only uint8 can be packed")
    if binary:
        return [array == 1 for array in codes]
    least, most = min(array.min() for array in codes), max(array.max() for array in codes)
    if any(array.dtype.kind in "iu" for array in codes) and not (least >= -1 and most <= 1):
        raise UserError(
            f"whole numbers from {least:g} to {most:g} are no codes: give 0/1, ±1 or real values; "
            "for packed uint8 give the number of bits (--bits)"
        )
    if least >= 0:
        raise UserError(
            f"values from {least:g} to {most:g} have no sign to make bits of: subtract the "
            "threshold first (0.5 for sigmoid outputs)"
        )
    return [array >= 0 for array in codes]


def unpack(codes, bits):
    """Packed uint8 matrices -> bool matrices (N, bits)."""
    if bits < 1 or codes[0].shape[1] != (bits + 7) // 8:
        raise UserError(
            f"uint8 codes {codes[0].shape[1]} wide hold no {bits} bits: packed they are "
            f"{max(0, bits + 7) // 8} wide; is the number of bits right?"
        )
    unpacked = [np.unpackbits(array, axis=1) for array in codes]
    if any(array[:, bits:].any() for array in unpacked):
        raise UserError(f"packed codes have bits set after bit {bits}; is the number right?")
    return [array[:, :bits].astype(bool) for array in unpacked]


def to_labels(labels):
    """Query and database labels -> two int64 vectors or two bool matrices."""
    shapes = f"query_labels {labels[0].shape} and database_labels {labels[1].shape}"
    dimensions = {array.ndim for array in labels}
    if dimensions not in ({1}, {2}) or labels[0].shape[1:] != labels[1].shape[1:]:
        raise UserError(f"{shapes} must both be (items,) or both (items, labels)")
    if labels[0].shape[1:] in ((0,), (1,)):
        raise UserError(f"{shapes} have no class to share: give (items,) for one label an item")
    for array in labels:
        if array.dtype.kind not in "biuf" or not (array == np.floor(array)).all():
            raise UserError(f"{shapes} must be whole numbers, or 0/1 matrices for multi-label")
    if dimensions == {1}:
        return [array.astype(np.int64) for array in labels]
    if not all(((array == 0) | (array == 1)).all() for array in labels):
        raise UserError(f"{shapes}: a multi-label matrix holds only 0 and 1")
    return [array == 1 for array in labels]


def to_names(side, names, count):
    """An array of names -> list of strings."""
    if names.dtype.kind not in "US" or names.shape != (count,):
        raise UserError(f"{side}_names must be {count} strings, not {names.shape} {names.dtype}")
    return np.strings.decode(names, "utf-8").tolist() if names.dtype.kind == "S" else names.tolist()
