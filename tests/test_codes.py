"""Codes of every kind that load_codes takes, and each refusal by its line."""

import io
import zipfile

import numpy as np
import pytest
import torch

from retrieval.codes import binarize, load_codes, save_codes
from utils import files
from utils.errors import UserError

BITS = np.random.default_rng(0).random((9, 12)) < 0.5
BITS[0, :2] = True, False
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
MULTI = np.eye(3, dtype=np.uint8)[LABELS]


def write(path, codes=BITS, labels=LABELS, split=4, **changes):
    """An .npz with the first `split` items as queries; `changes` replace arrays, None drops one."""
    arrays = {
        "query_codes": codes[:split],
        "query_labels": labels[:split],
        "database_codes": codes[split:],
        "database_labels": labels[split:],
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


KINDS = {
    "real": (np.where(BITS, 0.3, -0.2), None),
    "real with zeros": (np.where(BITS, 0.0, -0.2), None),
    "float16": (np.where(BITS, 0.3, -0.2).astype(np.float16), None),
    "±1 integers": (np.where(BITS, 1, -1), None),
    "±1 int8": (np.where(BITS, 1, -1).astype(np.int8), None),
    "±1 floats": (np.where(BITS, 1.0, -1.0), None),
    "0/1 integers": (BITS.astype(np.int64), None),
    "0/1 uint8": (BITS.astype(np.uint8), None),
    "0/1 uint8, bits given": (BITS.astype(np.uint8), 12),
    "0/1 floats": (BITS.astype(np.float32), None),
    "bool": (BITS, None),
    "packed": (np.packbits(BITS, axis=1), 12),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_bits(tmp_path, kind):
    codes, bits = KINDS[kind]
    result = load_codes(write(tmp_path / "codes.npz", codes), bits=bits)
    assert torch.equal(result["query_codes"], torch.from_numpy(BITS[:4]))
    assert torch.equal(result["database_codes"], torch.from_numpy(BITS[4:]))
    assert result["query_labels"].tolist() == LABELS[:4].tolist()
    assert result["database_labels"].dtype == torch.int64
    assert "query_names" not in result


def test_kind_is_decided_on_query_and_database_together(tmp_path):
    """Queries that happen to be all +1 are ±1 codes if the database has -1."""
    ones, signs = np.ones((2, 12)), np.where(BITS, 1.0, -1.0)
    changes = {"query_codes": ones, "query_labels": LABELS[:2]}
    path = write(tmp_path / "codes.npz", signs, **changes)
    assert load_codes(path)["query_codes"].all()
    zeros = {"query_codes": 0 * ones, "query_labels": LABELS[:2]}
    path = write(tmp_path / "codes.npz", BITS.astype(float), **zeros)
    assert not load_codes(path)["query_codes"].any()


@pytest.mark.parametrize("kind", ["real", "±1 int8", "±1 floats", "0/1 integers", "0/1 floats"])
def test_bool_goes_with_every_kind(tmp_path, kind):
    for queries, database in ((BITS, KINDS[kind][0]), (KINDS[kind][0], BITS)):
        path = write(tmp_path / "codes.npz", queries, database_codes=database[4:])
        result = load_codes(path)
        assert torch.equal(result["query_codes"], torch.from_numpy(BITS[:4]))
        assert torch.equal(result["database_codes"], torch.from_numpy(BITS[4:]))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float64, bool])
def test_multi_label_matrices(tmp_path, kind):
    result = load_codes(write(tmp_path / "codes.npz", labels=MULTI.astype(kind)))
    assert torch.equal(result["query_labels"], torch.from_numpy(MULTI[:4] == 1))
    assert result["database_labels"].shape == (5, 3)


def test_whole_float_and_bool_labels_become_integers(tmp_path):
    result = load_codes(write(tmp_path / "codes.npz", labels=LABELS.astype(float)))
    assert result["query_labels"].dtype == torch.int64
    result = load_codes(write(tmp_path / "codes.npz", labels=LABELS > 0))
    assert result["query_labels"].tolist() == [0, 1, 1, 0]


def test_saved_codes_load_again(tmp_path):
    values = torch.where(torch.from_numpy(BITS), 0.5, -0.5).double()
    labels, names = torch.from_numpy(LABELS), [f"käse/{i} v.avi" for i in range(9)]
    path = tmp_path / "new" / "codes.npz"
    items = {"query_codes": values[:4], "database_codes": values[4:]}
    items |= {"query_labels": labels[:4], "database_labels": labels[4:]}
    save_codes(path, items | {"query_names": names[:4], "database_names": names[4:]})
    result = load_codes(path)
    assert torch.equal(result["query_codes"], torch.from_numpy(BITS[:4]))
    assert torch.equal(result["database_labels"], labels[4:])
    assert result["query_names"] == names[:4] and result["database_names"] == names[4:]
    with np.load(path) as file:
        assert file["query_codes"].dtype == np.float32
        assert np.array_equal(file["query_codes"], values[:4].numpy())
    assert [entry.name for entry in path.parent.iterdir()] == ["codes.npz"]


def test_binarize():
    assert binarize(torch.tensor([[0.0, -0.0, 0.1, -0.1]])).tolist() == [[True, True, True, False]]
    with pytest.raises(ValueError, match="NaN"):
        binarize(torch.tensor([[0.0, float("nan")]]))


SIGNS = np.where(BITS, 1.0, -1.0)
PACKED = np.packbits(BITS, axis=1)


def codes(array):
    """The first four items as queries, the others as database."""
    return {"query_codes": array[:4], "database_codes": array[4:]}


def labels(queries, database):
    return {"query_labels": queries[:4], "database_labels": database[4:]}


REFUSED = [
    ("missing array", {"query_labels": None}, None, "query_labels missing"),
    ("codes of one axis", {"query_codes": SIGNS[0]}, None, r"must be \(items, bits\)"),
    ("empty codes", {"query_codes": SIGNS[:0]}, None, "not empty"),
    ("text codes", {"query_codes": SIGNS[:4].astype(str)}, None, "must be numbers or bool"),
    ("complex codes", {"query_codes": SIGNS[:4] * 1j}, None, "must be numbers or bool"),
    ("objects", {"query_codes": SIGNS[:4].astype(object)}, None, "without objects"),
    ("NaN", {"query_codes": np.where(SIGNS[:4] > 0, np.nan, 0)}, None, "query_codes contains NaN"),
    ("infinity", {"database_codes": SIGNS[4:] * np.inf}, None, "database_codes contains NaN or"),
    ("bits differ", {"query_codes": SIGNS[:4, :8]}, None, "8 columns, database_codes 12"),
    ("label count", {"query_labels": LABELS[:3]}, None, "has 4 rows, query_labels 3"),
    ("label column", {"query_labels": LABELS[:4, None]}, None, "must both be"),
    ("label columns", labels(LABELS[:, None], LABELS[:, None]), None, "fewer than two labels"),
    ("label width", labels(MULTI[:, :2], MULTI), None, "must both be"),
    ("label fractions", {"query_labels": LABELS[:4] + 0.5}, None, "whole numbers"),
    ("label NaN", {"query_labels": LABELS[:4] * np.nan}, None, "whole numbers"),
    ("label text", {"query_labels": LABELS[:4].astype(str)}, None, "whole numbers"),
    ("label matrix", labels(2 * MULTI, MULTI), None, "holds only 0 and 1"),
    ("name count", {"query_names": np.array(["a"])}, None, "query_names must be 4 strings"),
    ("name type", {"query_names": np.arange(4)}, None, "query_names must be 4 strings"),
    (
        "integers",
        {"query_codes": np.full((4, 12), 7)},
        None,
        "query_codes: whole numbers from 7 to 7",
    ),
    ("no signs", codes(BITS * 0.9), None, "0.5 for sigmoid"),
    ("0/1 beside ±1", {"query_codes": BITS[:4] * 1}, None, "query_codes are 0/1, but the other"),
    ("±1 beside 0/1", {"database_codes": BITS[4:] * 1.0}, None, "database_codes are 0/1, but the"),
    ("label infinite", {"query_labels": np.full(4, np.inf)}, None, "beyond 64 bits"),
    ("label large", {"query_labels": LABELS[:4] + 1e19}, None, "beyond 64 bits"),
    ("label uint64", {"query_labels": LABELS[:4] + np.uint64(2**63)}, None, "beyond 64 bits"),
    ("name bytes", {"query_names": np.array([b"\xff"] * 4)}, None, "not Unicode"),
    ("wrong bits", {}, 16, "12 columns, not 16"),
    ("packed, no bits", codes(PACKED), None, "--bits"),
    ("packed, more bits", codes(PACKED), 24, "hold 24 bits, which take 3"),
    ("packed, fewer bits", codes(PACKED | 255), 12, "set after bit 12"),
    ("packed, no width", codes(PACKED), 0, "hold 0 bits"),
]


@pytest.mark.parametrize(("case", "changes", "bits", "message"), REFUSED)
def test_refusals(tmp_path, case, changes, bits, message):
    path = write(tmp_path / "codes.npz", SIGNS, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_codes(path, bits=bits)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_npz_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_codes(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="no such file"):
        load_codes(tmp_path)
    whole = write(tmp_path / "whole.npz", SIGNS).read_bytes()
    array = tmp_path / "array.npy"
    np.save(array, SIGNS)
    contents = {
        "text": b"query_codes",
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "array": array.read_bytes(),
        "damaged": whole.replace(whole[200:260], bytes(60), 1),
        "encrypted": set_zip_field(whole, flags=1),
        "of an unknown kind of compression": set_zip_field(whole, method=97),
        "for a later version of zip": set_zip_field(whole, version=99),
        "of a smaller type, which leaves half unread": whole.replace(b"'<f8'", b"'<f4'"),
        "of a smaller shape": whole.replace(b"(4, 12)", b"(3, 12)"),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or not an .npz"):
            load_codes(path)


def test_an_array_that_claims_more_than_the_memory_is_refused(tmp_path):
    path = write(tmp_path / "codes.npz", query_codes=None)
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**13, 12)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("query_codes.npy", header.getvalue())
    with pytest.raises(UserError, match="do not fit into memory|damaged"):
        load_codes(path)


def test_a_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "codes.npz", np.where(np.ones((2000, 500)), 1.0, -1.0), np.zeros(2000))
    monkeypatch.setattr(files, "_physical_memory", lambda: 15_000_000)
    with pytest.raises(UserError, match="do not fit into memory"):
        load_codes(path)


def set_zip_field(data, **fields):
    """`data` with a field of the first entry in the central directory of a zip file changed."""
    offsets = {"version": 6, "flags": 8, "method": 10}
    data, start = bytearray(data), data.index(b"PK\x01\x02")
    for name, value in fields.items():
        data[start + offsets[name]] = value
    return bytes(data)
