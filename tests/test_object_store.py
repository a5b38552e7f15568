"""Indexes on an object store, here a local one with the interface of S3."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from test_index import make_index, random_codes, rows_of

from configs.search_flags import build_parser
from retrieval.index import Index, IndexFileError, write_parquet
from retrieval.nearest import find_nearest


@pytest.fixture
def store(monkeypatch):
    """The file system of a store with an empty bucket; Lance finds the store by the environment."""
    moto = pytest.importorskip("moto.server", reason="no moto; pip install 'moto[server]'")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT", f"http://{host}:{port}")
    monkeypatch.setenv("ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    address = {"endpoint_override": f"{host}:{port}", "scheme": "http", "region": "us-east-1"}
    system = fs.S3FileSystem(**address, allow_bucket_creation=True)
    system.create_dir("bucket")
    yield system
    server.stop()


def test_indexes_on_an_object_store_are_searched_and_exported(tmp_path, store):
    rows = rows_of(random_codes(300, 12))
    local = [make_index(tmp_path / str(number), rows[number::2]) for number in range(2)]
    for number in range(2):
        folder = f"bucket/some/{number}"
        fs.copy_files(str(tmp_path / str(number)), folder, destination_filesystem=store)
    remote = [Index("s3://bucket/some/0"), Index("s3://bucket/some/1/")]
    codes = np.packbits(random_codes(5, 12, seed=1), axis=1)
    for indexes in (remote, [local[0], remote[1]]):
        for one, other in zip(
            find_nearest(local, codes, 20), find_nearest(indexes, codes, 20), strict=True
        ):
            assert one.rows == other.rows and one.total == other.total == 300
    write_parquet(remote[0], tmp_path / "0.parquet")
    assert pq.read_table(tmp_path / "0.parquet").equals(local[0].table.to_table())
    with pytest.raises(IndexFileError, match="^s3://bucket/none: cannot be used: .*not found") as e:
        Index("s3://bucket/none")
    assert "\n" not in str(e.value) and ".rs" not in str(e.value)


def test_an_index_is_written_to_a_local_folder_only(capsys):
    flags = ["--videos", "videos", "--output", "s3://bucket/index"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["index", *flags])
    assert "copy it to the object store" in capsys.readouterr().err
