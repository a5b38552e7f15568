"""Damage for tests: random changes of bytes, and of values as JSON, YAML and checkpoints hold them.

Every function takes a NumPy Generator, so that a case is repeated from its seed alone.
"""

import copy

import numpy as np


def flip_bit(data, rng, first=0):
    """`data` (bytes) with one bit changed, at or after the byte `first`."""
    changed = bytearray(data)
    changed[rng.integers(first, len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(data, rng):
    """`data` without its end: from 0 bytes to all but one remain."""
    return data[: rng.integers(len(data))]


def remove_block(data, rng):
    """`data` without 1 to 64 bytes somewhere."""
    start = int(rng.integers(len(data)))
    return data[:start] + data[start + int(rng.integers(1, 65)) :]


def swap_blocks(data, rng):
    """`data` with two blocks of up to 64 bytes exchanged; they do not overlap."""
    size = int(rng.integers(1, max(2, min(64, len(data) // 2) + 1)))
    if len(data) < 2 * size:
        return data[::-1]
    a = int(rng.integers(len(data) - 2 * size + 1))
    b = int(rng.integers(a + size, len(data) - size + 1))
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


def overwrite(data, rng):
    """`data` with 1 to 64 bytes somewhere replaced by random ones."""
    start = int(rng.integers(len(data)))
    block = rng.bytes(int(rng.integers(1, 65)))[: len(data) - start]
    return data[:start] + block + data[start + len(block) :]


def append(data, rng):
    """`data` and 1 to 64 random bytes after its end."""
    return data + rng.bytes(int(rng.integers(1, 65)))


BYTE_CHANGES = (flip_bit, cut, remove_block, swap_blocks, overwrite, append)


def change_bytes(data, rng):
    """`data` (bytes, not empty) after one of BYTE_CHANGES; always different from `data`."""
    while True:
        changed = BYTE_CHANGES[rng.integers(len(BYTE_CHANGES))](data, rng)
        if changed != data:
            return changed


# Every type that JSON has, with the values at which readers fail most often.
ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "nan", "../x", "/etc/passwd", "a\nb", "\x1b[31m", "\udcff", "ä" * 300),
    *([], [0], [[]], [None], ["x"], {}, {"x": 1}, {"": {}}),
)


def find_paths(value, path=()):
    """The paths to all values inside nested dicts and lists: list of tuples of keys and indices."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, (list, tuple)):
        items = enumerate(value)
    paths = [path] if path else []
    for key, child in items:
        paths += find_paths(child, (*path, key))
    return paths


def change_value(value, rng, odd=ODD_VALUES):
    """A deep copy of nested dicts and lists with one change at one random path.

    A value is replaced by one of `odd`, removed, exchanged with another one, or put into a list.
    Returns (copy, path, name of the change).
    """
    root = [copy.deepcopy(value)]
    paths = [path for path in find_paths(root) if _is_mutable(root, path)]
    path = paths[rng.integers(len(paths))]
    parent, key = _get(root, path[:-1]), path[-1]
    change = ("replace", "replace", "replace", "remove", "exchange", "wrap")[rng.integers(6)]
    if change == "remove" and len(path) > 1:
        del parent[key]
    elif change == "exchange":
        other = paths[rng.integers(len(paths))]
        parent[key] = copy.deepcopy(_get(root, other))
    elif change == "wrap":
        parent[key] = [parent[key]]
    else:
        change = "replace"
        parent[key] = copy.deepcopy(odd[rng.integers(len(odd))])
    return root[0], path[1:], change


def _get(value, path):
    for key in path:
        value = value[key]
    return value


def _is_mutable(root, path):
    """Whether the value at `path` is in a dict or list, not in a tuple."""
    return not isinstance(_get(root, path[:-1]), tuple)


def cases(seed, count):
    """Yield `count` independent Generators; the i-th depends on (seed, i) only."""
    for index in range(count):
        yield np.random.default_rng((seed, index))
