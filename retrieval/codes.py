"""Hash codes: from real values to bits, and .npz files with the codes and labels of any system."""

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic_write, read_arrays

SETS = ("query", "database")


def binarize(values):
    """Real codes (N, K) -> bits (N, K) bool: value >= 0 is True. Raises UserError for NaN."""
    if values.isnan().any():
        raise UserError("codes contain NaN: the training of the model has diverged")
    return values >= 0


def save_codes(path, items):
    """Write codes, labels and names as an .npz file that `load_codes` reads.

    items: dict with the keys that `load_codes` returns, names included. Codes (N, K) are real
    values, as the model outputs them, and are stored as float32.
    """
    arrays = {}
    for side in SETS:
        arrays[f"{side}_codes"] = items[f"{side}_codes"].detach().cpu().float().numpy()
    for side in SETS:
        arrays[f"{side}_labels"] = torch.as_tensor(items[f"{side}_labels"]).cpu().numpy()
    for side in SETS:
        arrays[f"{side}_names"] = np.array([str(name) for name in items[f"{side}_names"]])
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_codes(path, bits=None):
    """Read the codes and labels of any system from an .npz file, without pickle.

    The file has the arrays `query_codes`, `query_labels`, `database_codes`, `database_labels`, and
    optionally `query_names`, `database_names`. Codes (N, K) are real values (>= 0 is bit 1), ±1,
    0/1 or bool. 0/1 beside codes with negative values is refused, because 0 could be either bit;
    bool goes with all kinds. With `bits` = K they may also be uint8 (N, ceil(K/8)), packed as
    np.packbits does: first bit highest, zeros after the last.
    Labels are whole numbers (N,), or multi-label 0/1 or bool matrices (N, L).

    Returns a dict: `query_codes` (Q, K) and `database_codes` (N, K) bool tensors, `query_labels`
    and `database_labels` int64 (Q,), (N,) or bool (Q, L), (N, L) tensors, and the names that the
    file has, as lists of strings. Raises UserError with one line.
    """
    required = [f"{side}_{kind}" for kind in ("codes", "labels") for side in SETS]
    optional = [f"{side}_names" for side in SETS]
    arrays = read_arrays(path, required, optional, "codes and labels")
    try:
        codes = [arrays[f"{side}_codes"] for side in SETS]
        for side, array in zip(SETS, codes, strict=True):
            check_codes(f"{side}_codes", array)
        codes = to_bits(codes, bits)
        labels = to_labels([arrays[f"{side}_labels"] for side in SETS])
        result = {}
        for side, code, label in zip(SETS, codes, labels, strict=True):
            if len(code) != len(label):
                raise UserError(f"{side}_codes has {len(code)} rows, {side}_labels {len(label)}")
            result[f"{side}_codes"] = torch.from_numpy(code)
            result[f"{side}_labels"] = torch.from_numpy(label)
            if f"{side}_names" in arrays:
                result[f"{side}_names"] = to_names(side, arrays[f"{side}_names"], len(code))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return result


def check_codes(name, codes):
    """Raise UserError unless `codes` is a non-empty matrix of finite real numbers."""
    if codes.ndim != 2 or 0 in codes.shape:
        raise UserError(f"{name} has shape {codes.shape}; it must be (items, bits) and not empty")
    if codes.dtype.kind not in "biuf":
        raise UserError(f"{name} has type {codes.dtype}; it must be numbers or bool")
    if codes.dtype.kind == "f" and not np.isfinite(codes).all():
        raise UserError(f"{name} contains NaN or infinite values")


def to_bits(codes, bits):
    """Query and database codes of any kind that `load_codes` accepts -> two bool matrices."""
    columns = [array.shape[1] for array in codes]
    if columns[0] != columns[1]:
        raise UserError(f"query_codes has {columns[0]} columns, database_codes {columns[1]}")
    binary = all(is_binary(array) for array in codes)
    uint8 = all(array.dtype == np.uint8 for array in codes)
    if bits is not None and uint8 and not (binary and columns[0] == bits):
        return unpack(codes, bits)
    if bits is not None and columns[0] != bits:
        raise UserError(f"codes have {columns[0]} columns, not {bits}; packed codes must be uint8")
    if binary:
        return [array == 1 for array in codes]
    check_values(codes)
    return [array if array.dtype == bool else array >= 0 for array in codes]


def check_values(codes):
    """Raise UserError if >= 0 does not separate the bits of query and database codes.

    codes: two matrices, of which one at least is neither 0/1 nor bool.
    """
    for side, array in zip(SETS, codes, strict=True):
        least, most = array.min(), array.max()
        if array.dtype.kind in "iu" and not (least >= -1 and most <= 1):
            raise UserError(
                f"{side}_codes: whole numbers from {least} to {most} are not codes: use 0/1, ±1 or "
                "real values; for packed uint8 set the number of bits (--bits)"
            )
    least, most = min(array.min() for array in codes), max(array.max() for array in codes)
    if least >= 0:
        raise UserError(
            f"values from {least:g} to {most:g} are all >= 0, so that all bits would be equal: "
            "subtract the threshold first (0.5 for sigmoid outputs)"
        )
    for side, array in zip(SETS, codes, strict=True):
        has_zeros = array.dtype != bool and is_binary(array) and not array.all()
        if has_zeros:
            raise UserError(
                f"{side}_codes are 0/1, but the other codes have negative values: use one kind for "
                "both, or bool instead of 0/1"
            )


def is_binary(array):
    """Whether an array has no values but 0 and 1."""
    return bool(((array == 0) | (array == 1)).all())


def unpack(codes, bits):
    """Packed uint8 matrices -> bool matrices (N, bits)."""
    columns, expected = codes[0].shape[1], (bits + 7) // 8
    if columns != expected:
        raise UserError(
            f"uint8 codes with {columns} columns do not hold {bits} bits, which take {expected}; "
            "check the number of bits"
        )
    unpacked = [np.unpackbits(array, axis=1) for array in codes]
    if any(array[:, bits:].any() for array in unpacked):
        raise UserError(f"packed codes have bits set after bit {bits}; check the number of bits")
    return [array[:, :bits].astype(bool) for array in unpacked]


def to_labels(labels):
    """Query and database labels -> two int64 vectors or two bool matrices."""
    shapes = f"query_labels {labels[0].shape} and database_labels {labels[1].shape}"
    dimensions = {array.ndim for array in labels}
    if dimensions not in ({1}, {2}) or labels[0].shape[1:] != labels[1].shape[1:]:
        raise UserError(f"{shapes} must both be (items,) or both (items, labels)")
    if labels[0].shape[1:] in ((0,), (1,)):
        raise UserError(f"{shapes} have fewer than two labels; for class ids use (items,)")
    for array in labels:
        if array.dtype.kind not in "biuf" or not (array == np.floor(array)).all():
            raise UserError(f"{shapes} must hold whole numbers, or 0 and 1 for multi-label")
        if array.dtype.kind in "uf" and (abs(array) >= 2.0**63).any():
            raise UserError(f"{shapes} hold numbers beyond 64 bits")
    if dimensions == {1}:
        return [array.astype(np.int64) for array in labels]
    if not all(is_binary(array) for array in labels):
        raise UserError(f"{shapes}: a multi-label matrix holds only 0 and 1")
    return [array == 1 for array in labels]


def to_names(side, names, count):
    """An array of names -> list of strings."""
    if names.dtype.kind not in "US" or names.shape != (count,):
        raise UserError(f"{side}_names must be {count} strings, not {names.shape} {names.dtype}")
    try:
        is_bytes = names.dtype.kind == "S"
        return [name.decode("utf-8") if is_bytes else name for name in names.tolist()]
    except ValueError:
        raise UserError(f"{side}_names has characters that are not Unicode") from None
