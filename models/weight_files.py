"""Reading weight files: those of PyTorch and safetensors. No code in them is run.

PyTorch does not compare the checksums of a file that torch.save wrote; this module does. Files from
before PyTorch 1.6 and safetensors files have no checksums.
"""

import hashlib
import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from utils.errors import UserError, printable
from utils.files import file_lock

DOWNLOADS = {"r3d18_kinetics400": "R3D_18_Weights.KINETICS400_V1"}  # name -> torchvision's enum
TORCHVISION_NAME = r"r3d_18-([0-9a-f]{8})\.pth"  # it contains the first digits of the SHA-256
LONGEST_REASON = 120  # characters of another library's message
# What is often saved under the name of a weight file: (first bytes, what it is and the remedy).
OTHER_KINDS = (
    (rb"\s*$", "empty; download it again"),
    (
        rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)",
        "a web page, not weights: the download was redirected; open the address in a browser",
    ),
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a Git LFS pointer, not weights: run `git lfs pull` there, or download the file itself",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed archive; unpack it first"),
    (rb".{257}ustar", "a tar archive; unpack it first"),
    (rb"\x89HDF\r\n", "an HDF5 file, not one of PyTorch or safetensors"),
)


class PretrainedError(UserError):
    """Unsuitable weights; the message is one line that says what to do."""


def download(name):
    """Path of torchvision's file in the cache of torch.hub; downloads it on the first call."""
    from torchvision.models import get_weight

    url = get_weight(DOWNLOADS[name]).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    with file_lock(path.parent / ".lock", seconds=-1):  # one of several processes downloads
        prefix = path.stem.rpartition("-")[2]
        try:
            if not path.exists():
                torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise PretrainedError(
                f"--pretrained {name}: cannot download {url} ({error}); download it on another "
                "machine and pass its path"
            ) from error
    return path


def read_weight_file(path):
    """(content, SHA-256) of a file of PyTorch or safetensors; content is what torch.load returns.

    Raises PretrainedError, without the path, if the file is damaged, is of another kind or contains
    code.
    """
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    is_safetensors = _is_safetensors(data)
    for start, kind in OTHER_KINDS:
        if not is_safetensors and re.match(start, data[:1024], re.IGNORECASE | re.DOTALL):
            raise PretrainedError(kind)
    name = re.fullmatch(TORCHVISION_NAME, path.name)
    if name and not sha256.startswith(name[1]):
        raise PretrainedError(
            f"damaged or incomplete, since its SHA-256 begins with {sha256[:8]} "
            f"instead of {name[1]}; delete it and download it again"
        )
    if is_safetensors:
        return _read_safetensors(data), sha256
    if data.startswith(b"PK\x03\x04"):
        _check_archive(data)
    return _read_pytorch(data), sha256


def _read_pytorch(data):
    """What torch.save wrote; a pickle that needs more than tensors is refused, not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types that are refused below
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        if needs is None:
            raise _damaged("not a PyTorch file", error) from error
        raise PretrainedError(
            "refused, because loading it could run code: it needs "
            f"{printable(needs[1])[:LONGEST_REASON]}; save only model.state_dict()"
        ) from error
    except Exception as error:  # bytes that are no pickle can raise any exception
        raise _damaged("not a PyTorch file", error) from error


def _check_archive(data):
    """Refuse other ZIP archives, and records that do not have their checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records, names = archive.infolist(), set(archive.namelist())
            has_checksums = any(record.CRC for record in records)  # torch.save can omit them
            is_plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            is_plain = is_plain and len(names) == len(records)
            damaged = archive.testzip() if is_plain and has_checksums else None
    except Exception as error:  # zipfile raises many kinds
        raise _damaged("incomplete", error) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise PretrainedError(
            "a TorchScript archive; save torch.jit.load(FILE).state_dict() "
            "with torch.save and pass that file"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise PretrainedError("a ZIP archive that torch.save did not write; unpack it first")
    if not is_plain:
        raise PretrainedError(
            "a ZIP archive with compressed or duplicate records; pass a file that torch.save wrote"
        )
    if damaged:
        raise PretrainedError(
            f"damaged (the checksum of {printable(damaged)} is wrong); download it again"
        )


def _is_safetensors(data):
    """Whether the file begins with the length of a JSON header and that header."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data)


def _read_safetensors(data):
    """{key: tensor} of a safetensors file; needs the package of that name."""
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise PretrainedError(
            "a safetensors file; run `pip install safetensors` to read it"
        ) from error
    try:
        return load(data)
    except Exception as error:  # of the format, and of data types that PyTorch lacks
        raise _damaged("not a safetensors file", error) from error


def _damaged(alternative, error):
    """The PretrainedError for bytes that cannot be read, with the reason in one line."""
    known = re.search(r"(Unsupported|Trying|Can only)[^\n]*", str(error))  # in PyTorch's long text
    lines = (known[0] if known else str(error)).splitlines() or [type(error).__name__]
    reason = printable(re.sub(r"\x1b\[\d*m", "", lines[0])[:LONGEST_REASON])
    return PretrainedError(f"damaged, or {alternative} ({reason}); download it again")
