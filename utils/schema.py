"""Schemas of nested plain values, as JSON files and checkpoints contain them.

A schema is a function of (value, name of the field) that returns nothing, or raises SchemaError
with one short line. The functions below build schemas.
"""

import json
import os

from utils.errors import UserError

LARGEST = 2**53  # whole numbers up to here are exact in JSON and as float
MOST_JSON = 2**24  # bytes


class SchemaError(UserError):
    """A value that its schema does not allow; the message names the field."""


def show(value):
    """A value for an error message: one line of at most 60 characters."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**50 else "a huge number"
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
    return f"a {type(value).__name__}"


def _refuse(where, wanted, value):
    raise SchemaError(f"{where} must be {wanted}, not {show(value)}")


def is_text(value):
    """Whether `value` is a str that the system accepts as the name of a file."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


# ==== schemas of scalars ====


def text(value, where):
    """Schema: str."""
    if not is_text(value):
        _refuse(where, "text", value)


def whole(least=0, most=LARGEST):
    """Schema: int in a range; True and False are none."""

    def check(value, where):
        if type(value) is not int or not least <= value <= most:
            _refuse(where, f"a whole number from {least} to {most}", value)

    return check


def real(least=-1e300, most=1e300, above=None):
    """Schema: finite int or float in a range."""
    limits = f" from {least:g} to {most:g}" if above is None else f" above {above:g}"

    def check(value, where):
        is_number = type(value) in (int, float) and least <= value <= most
        if not is_number or (above is not None and value <= above):
            _refuse(where, f"a number{limits}", value)

    return check


def one_of(*choices):
    """Schema: one of some values, of the same type."""

    def check(value, where):
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            _refuse(where, " or ".join(map(repr, choices)), value)

    return check


def scalar(value, where):
    """Schema: None, bool, text or a finite number."""
    if value is None or isinstance(value, bool):
        return
    (text if isinstance(value, str) else real())(value, where)


# ==== schemas of lists and dicts ====


def list_of(item, least=0, most=LARGEST):
    """Schema: list or tuple of `least` to `most` items of the schema `item`."""

    def check(value, where):
        if not isinstance(value, (list, tuple)):
            _refuse(where, "a list", value)
        if not least <= len(value) <= most:
            count = f"{least}" if least == most else f"at least {least}"
            raise SchemaError(f"{where} must have {count} items, not {len(value)}")
        for index, child in enumerate(value):
            item(child, f"{where}[{index}]")

    return check


def dict_of(item, key=text):
    """Schema: dict whose keys have the schema `key` and whose values have the schema `item`."""

    def check(value, where):
        if not isinstance(value, dict):
            _refuse(where, "a dict", value)
        for name, child in value.items():
            key(name, f"{where}: a key")
            item(child, f"{where}[{show(name)}]")

    return check


def record(required, optional=None, others=None):
    """Schema: dict with the keys of `required`, and perhaps those of `optional`.

    required, optional: {key: schema}. others: schema of values under other keys; None allows any.
    """
    optional = optional or {}

    def check(value, where):
        if not isinstance(value, dict):
            _refuse(where, "a dict", value)
        missing = [key for key in required if key not in value]
        if missing:
            raise SchemaError(f"{where} lacks {missing[0]!r}")
        for key, child in value.items():
            schema = required.get(key) or optional.get(key) or others
            if schema:
                schema(child, f"{where}[{show(key)}]")

    return check


def nullable(schema):
    """Schema: None, or a value of another schema."""

    def check(value, where):
        if value is not None:
            schema(value, where)

    return check


def plain(value, where):
    """Schema: a scalar, a list of scalars, or a dict of both; no deeper."""
    if isinstance(value, dict):
        dict_of(plain_list)(value, where)
    else:
        plain_list(value, where)


def plain_list(value, where):
    """Schema: a scalar or a list of scalars."""
    (list_of(scalar) if isinstance(value, (list, tuple)) else scalar)(value, where)


# ==== files ====


def read_json(path, schema):
    """The value in a JSON file. Raises SchemaError, whose message does not name the file."""
    with open(path, "rb") as file:
        content = file.read(MOST_JSON + 1)
    if len(content) > MOST_JSON:
        raise SchemaError(f"has more than {MOST_JSON} bytes")
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SchemaError("is not JSON") from error
    schema(value, "content")
    return value
