"""Objects in S3, as `storage` asks for them. The one module that knows boto3; data are read through pyarrow's file system.

Sources: https://arrow.apache.org/docs/python/generated/pyarrow.fs.S3FileSystem.html,
https://boto3.amazonaws.com/v1/documentation/api/latest/reference/services/s3.html
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskocr_core.services.stored import File

SCHEME = "s3://"
_MEND = "check the bucket's name, AWS_ENDPOINT_URL and the AWS_* keys"


def files(uri: str) -> Iterator[File]:
    """The one object that the URI names, or all below it as a folder."""
    bucket, prefix = _bucket_and_key(uri)
    base = prefix.rstrip("/") + "/" if prefix else ""
    with _explained(uri, "listed"):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                key = item["Key"]
                if key == prefix or key.startswith(base):
                    name = key.removeprefix(base) if key.startswith(base) else key.rpartition("/")[2]
                    modified = item["LastModified"].timestamp()
                    yield File(f"{SCHEME}{bucket}/{key}", name, item["Size"], item["ETag"], modified)


def open_input(uri: str) -> Any:
    try:
        return _file_system().open_input_file(uri.removeprefix(SCHEME))
    except OSError as error:
        raise ValueError(f"{uri}: cannot be opened ({error}); {_MEND}") from None


def content(uri: str) -> bytes:
    """In one request: read in parts, an object that is replaced meanwhile would be half of one and half of the other."""
    bucket, key = _bucket_and_key(uri)
    with _explained(uri, "opened"):
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()


def put(uri: str, content: bytes) -> None:
    bucket, key = _bucket_and_key(uri)
    with _explained(uri, "written"):
        _client().upload_fileobj(io.BytesIO(content), bucket, key)


def upload(path: Path, uri: str) -> None:
    """Copy a local file to an object, which becomes visible only when it is whole."""
    bucket, key = _bucket_and_key(uri)
    with _explained(uri, "written"):
        _client().upload_file(str(path), bucket, key)


def replace(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    """By a conditional PUT, tried again when another writer was faster."""
    from botocore.exceptions import ClientError

    bucket, key = _bucket_and_key(uri)
    client = _client()
    for _ in range(20):
        with _explained(uri, "changed"):
            try:
                found = client.get_object(Bucket=bucket, Key=key)
                content, condition = found["Body"].read(), {"IfMatch": found["ETag"]}
            except client.exceptions.NoSuchKey:
                content, condition = None, {"IfNoneMatch": "*"}
            try:
                client.put_object(Bucket=bucket, Key=key, Body=change(content), **condition)
                return
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise
    raise ValueError(f"{uri}: other writers were faster twenty times: try again")


def erase(uri: str) -> None:
    """With every version of it, where the bucket keeps versions."""
    bucket, key = _bucket_and_key(uri)
    client = _client()
    with _explained(uri, "erased"):
        client.delete_object(Bucket=bucket, Key=key)
        # The prefix finds longer keys too, and a versioned bucket has put a marker in the place of what was deleted.
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key):
            for version in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
                if version["Key"] == key:
                    client.delete_object(Bucket=bucket, Key=key, VersionId=version["VersionId"])


def holds(folder: str) -> bool:
    return any(True for _ in files(folder))


def exists(uri: str) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = _bucket_and_key(uri)
    with _explained(uri, "looked up"):
        try:
            _client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                return False
            raise
    return True


def renew(uri: str) -> None:
    """Give the object the time of a new one."""
    bucket, key = _bucket_and_key(uri)
    with _explained(uri, "renewed"):
        _client().copy_object(
            Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": key}, MetadataDirective="REPLACE"
        )


def check_bucket(uri: str) -> None:
    """Raise ValueError with the mend unless the bucket of `uri` answers with the credentials at hand."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _ = _bucket_and_key(uri)
    try:
        _client().head_bucket(Bucket=bucket)
    except (ClientError, BotoCoreError) as error:
        raise ValueError(
            f"bucket {bucket!r} does not answer ({error}); check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None


@contextmanager
def _explained(uri: str, verb: str) -> Iterator[None]:
    """An error of S3 as a ValueError of one sentence with the mend."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise ValueError(f"{uri}: cannot be {verb} ({error}); {_MEND}") from None


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket; the form is s3://bucket/prefix")
    return bucket, key


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _client() -> Any:
    import boto3
    from botocore.config import Config

    settings = Config(
        s3={"addressing_style": "path"}, retries={"max_attempts": 4, "mode": "standard"}, connect_timeout=5
    )
    region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    return boto3.client("s3", endpoint_url=_endpoint(), region_name=region, config=settings)


def _file_system() -> Any:
    from pyarrow import fs

    endpoint = _endpoint()
    scheme, _, host = endpoint.partition("://") if endpoint else ("https", "", None)
    return fs.S3FileSystem(
        endpoint_override=host, scheme=scheme, region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    )
