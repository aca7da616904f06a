"""Object storage by URL, against a server of moto, with pyarrow's client and s3fs if installed."""

import contextlib
import io
import json
import sys
import tarfile
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pictures import everything

from input import InputError, remote
from input.images import Images
from input.tables import Table

SECRET = "hush-hush-hush"


@pytest.fixture(scope="module")
def server():
    """A server in this process; yields its address."""
    found = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    yield f"http://{host}:{port}"
    found.stop()


@pytest.fixture(params=["s3fs", "pyarrow"])
def bucket(request, server, monkeypatch):
    """A client, with the settings in the environment; yields what puts content at a key."""
    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    if request.param == "s3fs":
        pytest.importorskip("s3fs")
    else:
        found = remote.importlib.util.find_spec
        monkeypatch.setattr(
            remote.importlib.util, "find_spec", lambda x: None if x == "s3fs" else found(x)
        )
    remote._arrow_s3.cache_clear()
    client = boto3.client("s3", endpoint_url=server)
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="data")
    for item in client.list_objects_v2(Bucket="data").get("Contents", ()):
        client.delete_object(Bucket="data", Key=item["Key"])
    yield lambda key, content: client.put_object(Bucket="data", Key=key, Body=content)
    if request.param == "s3fs":
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


def png(i):
    import tensorflow as tf

    return tf.io.encode_png(np.full([4, 4, 3], 10 * i, np.uint8)).numpy()


def shard(examples):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for i in examples:
            for suffix, part in (("png", png(i)), ("cls", b"%d" % (i % 2))):
                member = tarfile.TarInfo(f"{i:03}.{suffix}")
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
    return content.getvalue()


def test_images_in_tar_shards_of_a_bucket(bucket, tmp_path):
    bucket("train/0.tar", shard(range(10)))
    bucket("train/1.tar", shard(range(10, 20)))
    bucket("train/readme.txt", b"no shard")
    folder = tmp_path / "train"
    folder.mkdir()
    for k in range(2):
        (folder / f"{k}.tar").write_bytes(shard(range(10 * k, 10 * k + 10)))
    found = []
    for dataset in ("s3://data/train/*.tar", str(folder / "*.tar")):
        config = Images(dataset, size=4)
        assert "(train 16, test 4)" in config.prepare(str(tmp_path / "data"))
        data = config.open(str(tmp_path / "data"))
        found.append([everything(data.train(3, 4, lambda k: k, 4)),
                      everything(data.evaluation(2, range(4)))])  # fmt: skip
        assert SECRET not in repr(vars(data)) and SECRET not in repr(config)
    for ours, theirs in zip(*found, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a, b)
    written = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert written and not any(SECRET.encode() in content for content in written)
    bucket("train/1.tar", shard(range(10, 21)))
    remote_again = Images("s3://data/train/*.tar", size=4)
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"a shard changed since"):
        remote_again.open(str(tmp_path / "data"))


def test_a_parquet_and_a_csv_of_a_bucket(bucket, tmp_path):
    columns = {"x": np.arange(10.0), "y": np.arange(10.0) * 2}
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    bucket("a/one.parquet", content.getvalue())
    rows = [f"{x},{y}" for x, y in zip(*columns.values(), strict=True)]
    bucket("a/one.csv", "\n".join(["x,y", *rows]).encode())
    for name in ("s3://data/a/one.parquet", "s3://data/a/one.csv"):
        config = Table(name, ("x",), ("y",))
        with pytest.raises(InputError, match=r"is not prepared"):
            config.open(str(tmp_path))
        config.prepare(str(tmp_path))
        x, y, _ = everything(config.open(str(tmp_path)).evaluation(2, range(2)))
        assert x[:, 0].tolist() == [4, 9] and y[:, 0].tolist() == [8, 18]


def test_what_is_not_there_is_named_without_the_credentials(bucket, tmp_path):
    for name in ("s3://data/none.parquet", "s3://no-such-bucket/x/*.tar"):
        with pytest.raises(InputError, match=r"s3://.*\.$") as error:
            Table(name, ("x",), ("y",)).prepare(str(tmp_path))
        assert SECRET not in str(error.value) and "\n" not in str(error.value)


def test_a_scheme_without_its_package_says_what_to_install():
    with pytest.raises(InputError, match=r"cannot read gs:// URLs .*install gcsfs into"):
        remote.find("gs://bucket/x.parquet")


def test_a_url_is_recorded_as_it_is():
    from app.config import as_dict

    recorded = json.dumps(as_dict(Table("s3://data/x.parquet", ("x",), ("y",))))
    assert "s3://data/x.parquet" in recorded and Path("x").name in recorded
