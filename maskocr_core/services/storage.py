"""Files on this machine or in S3, by URI. The one module that knows boto3; data are read through pyarrow's file systems.

Sources: https://arrow.apache.org/docs/python/generated/pyarrow.fs.S3FileSystem.html,
https://boto3.amazonaws.com/v1/documentation/api/latest/reference/services/s3.html
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIST = "list+"  # before the URI of a file that lists which files are meant
_LIST_FORMAT = 1
_FRESH = 3600.0  # seconds
_MEND = "check the bucket's name, AWS_ENDPOINT_URL and the AWS_* keys"


@dataclass(frozen=True)
class File:
    """One file below a URI. `stamp` changes whenever the content does: size and mtime here, the ETag in S3.

    modified: seconds since 1970 by the clock of the store; 0 where only a list of files is known.
    """

    uri: str
    name: str
    size: int
    stamp: str
    modified: float = 0.0


@dataclass(frozen=True)
class Listing:
    """What `list+URI` stands for: some of the files below `root`, and what is read `beside` them (a URI or nothing)."""

    root: str
    beside: str
    files: tuple[File, ...]


def is_remote(uri: str) -> bool:
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """A local path made absolute, so that it is the same text from every working folder; other URIs as they are."""
    if uri.startswith(LIST):
        return LIST + absolute(uri.removeprefix(LIST))
    if not uri or is_remote(uri) or uri.startswith("models:/"):
        return uri
    path = Path(uri)
    return str(path.parent.resolve() / path.name)  # a link keeps its own name, of which a source may be called


def listed(uris: str) -> list[str]:
    """The URIs of an argument that takes several, separated by commas; a name with a comma in it cannot be given."""
    return [uri.strip() for uri in uris.split(",") if uri.strip()]


def files(uri: str, *, some: bool = True) -> list[File]:
    """All files below a folder or `s3://bucket/prefix`, the one file that `uri` names, or those of `list+URI`; by name.

    Raises ValueError if nothing is there, unless `some` is false.
    """
    if listed := listing(uri):
        return list(listed.files)
    found = sorted(_s3_files(uri) if is_remote(uri) else _local_files(Path(uri)), key=lambda file: file.name)
    if some and not found:
        raise ValueError(f"{uri}: there is no file here; give a folder or s3://bucket/prefix that holds line images")
    return found


def fingerprint(uri: str) -> str:
    """sha256 over names, sizes and stamps below `uri`: changes when any file there does."""
    # The name of the folder counts: image files take it for their source.
    digest = hashlib.sha256(f"{uri.rstrip('/').rpartition('/')[2]}\n".encode())
    listed = listing(uri)
    for file in listed.files if listed else files(uri):
        digest.update(f"{file.name}\0{file.size}\0{file.stamp}\n".encode())
    if listed and listed.beside:
        digest.update(fingerprint(listed.beside).encode())
    return digest.hexdigest()


def put_list(uri: str, listed: Listing) -> str:
    """Write a list of files to `uri`, whose last name should be the root's: a source may be called so.

    Returns `list+uri`.
    """
    entries = [{"name": file.name, "size": file.size, "stamp": file.stamp} for file in listed.files]
    facts = {"format_version": _LIST_FORMAT, "root": listed.root, "beside": listed.beside, "files": entries}
    put(uri, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    return LIST + uri


def listing(uri: str) -> Listing | None:
    """The list that `list+URI` names; None for a URI of another form. Raises ValueError if no list is there."""
    if not uri.startswith(LIST):
        return None
    place = uri.removeprefix(LIST)
    try:
        facts = json.loads(content(place))
        if facts["format_version"] != _LIST_FORMAT:
            raise KeyError
        found = [File(f"{facts['root']}/{entry['name']}", **entry) for entry in facts["files"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{place} is no list of files of format {_LIST_FORMAT}, as `fresh` writes it") from None
    return Listing(facts["root"], facts["beside"], tuple(found))


def clock(uri: str) -> float:
    """What time it is where a file at `uri` would lie: it is written, and its time read. Seconds since 1970."""
    put(uri, b"")
    (marker,) = files(uri)
    return marker.modified


def open_input(uri: str) -> Any:
    """A seekable binary file for `uri` that reads only the ranges asked for (a pyarrow NativeFile).

    Raises ValueError if it cannot be opened.
    """
    import pyarrow as pa

    try:
        return _file_system().open_input_file(uri.removeprefix("s3://")) if is_remote(uri) else pa.OSFile(uri)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be opened ({error}); {_MEND if is_remote(uri) else 'bring it back'}") from None


def content(uri: str) -> bytes:
    """A whole small file. Raises ValueError if it cannot be opened."""
    with open_input(uri) as file:
        return bytes(file.read())


def fetched(uri: str, folder: Path, most: int = 1 << 20) -> Path:
    """A small file, of at most `most` bytes, as a local one: itself where it lies here, else copied into `folder`."""
    if not is_remote(uri):
        return Path(uri)
    with open_input(uri) as file:
        if file.size() > most:
            raise ValueError(f"{uri} has {file.size():,} bytes, at most {most:,} were expected: is it the right file?")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uri.rpartition("/")[2]
        path.write_bytes(file.read())
        return path


def upload(path: Path, uri: str) -> None:
    """Copy a local file to `s3://…`; S3 makes an object visible only when it is whole."""
    bucket, key = _bucket_and_key(uri)
    with _explained(uri, "written"):
        _client().upload_file(str(path), bucket, key)


def put(uri: str, content: bytes) -> None:
    """Write a whole file: here under a temporary name, synced and renamed; an object of S3 is visible only when it is whole.

    Raises OSError (ENOSPC on a full disk) or ValueError (S3); what was there before is then as it was.
    """
    if is_remote(uri):
        import io

        bucket, key = _bucket_and_key(uri)
        with _explained(uri, "written"):
            _client().upload_fileobj(io.BytesIO(content), bucket, key)
        return
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # what was said to be written survives a power cut
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time has the lock file `path`; others wait for it. Source: man 2 flock."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def replace(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replace the content of a small file by `change(content)` (None: there is no file yet), losing no other writer's change.

    Here under a lock and by rename; in S3 by a conditional PUT, tried again when another writer was faster.
    """
    if not is_remote(uri):
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")):
            put(uri, change(path.read_bytes() if path.is_file() else None))
        return
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


def create(uri: str, content: bytes) -> bool:
    """Write a small file where there is none; False if another writer made it. Of two at once, one gets it."""

    def only_where_there_is_none(found: bytes | None) -> bytes:
        # A PUT whose answer was lost is sent again by the client: what it then finds is its own.
        if found not in (None, content):
            raise _Taken
        return content

    try:
        replace(uri, only_where_there_is_none)
    except _Taken:
        return False
    return True


class _Taken(Exception):
    """Another writer was faster."""


def erase(uri: str) -> None:
    """Remove a file or object for good: in S3 every version of it, where the bucket keeps versions. Absent is fine.

    A store may keep the bytes of what was deleted until it cleans up (SeaweedFS: vacuum; disks: until overwritten).
    """
    if not is_remote(uri):
        Path(uri).unlink(missing_ok=True)
        return
    bucket, key = _bucket_and_key(uri)
    client = _client()
    with _explained(uri, "erased"):
        client.delete_object(Bucket=bucket, Key=key)
        # The prefix finds longer keys too, and a versioned bucket has put a marker in the place of what was deleted.
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key):
            for version in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
                if version["Key"] == key:
                    client.delete_object(Bucket=bucket, Key=key, VersionId=version["VersionId"])


def erase_below(uri: str, but: frozenset[str] = frozenset()) -> None:
    """Remove every file below a folder or prefix whose name there is not in `but`, for good. Nothing there is fine."""
    for file in _s3_files(uri.rstrip("/") + "/") if is_remote(uri) else _local_files(Path(uri)):
        if file.name not in but:
            erase(file.uri)


def holds(uri: str) -> bool:
    """Whether any file lies below a folder or prefix."""
    folder = uri.rstrip("/") + "/"
    return any(True for _ in (_s3_files(folder) if is_remote(uri) else Path(uri).rglob("*")))


def exists(uri: str) -> bool:
    """Whether the object or file is there."""
    if not is_remote(uri):
        return Path(uri).exists()
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


def renewed(uri: str) -> bool:
    """Whether the object or file is there. One that is older than an hour gets the time of a new one.

    Whoever cleans up goes by that time, and cannot know that it is about to be used again.
    """
    if not exists(uri):
        return False
    found = files(uri, some=False)
    if found and found[0].modified < time.time() - _FRESH:
        if is_remote(uri):
            bucket, key = _bucket_and_key(uri)
            with _explained(uri, "renewed"):
                _client().copy_object(
                    Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": key}, MetadataDirective="REPLACE"
                )
        else:
            os.utime(uri)
    return bool(found)


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


def _local_files(root: Path) -> Iterator[File]:
    if root.is_file():
        paths = [root]
        root = root.parent
    elif root.is_dir():
        paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    else:
        raise ValueError(f"{root}: no such file or folder")
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:  # another program took it away, or gave it its final name
            continue
        name = path.relative_to(root).as_posix()
        yield File(str(path), name, stat.st_size, str(stat.st_mtime_ns), stat.st_mtime)


def _s3_files(uri: str) -> Iterator[File]:
    bucket, prefix = _bucket_and_key(uri)
    base = prefix.rstrip("/") + "/" if prefix else ""
    with _explained(uri, "listed"):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                key = item["Key"]
                if key == prefix or key.startswith(base):
                    name = key.removeprefix(base) if key.startswith(base) else key.rpartition("/")[2]
                    modified = item["LastModified"].timestamp()
                    yield File(f"s3://{bucket}/{key}", name, item["Size"], item["ETag"], modified)


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
    bucket, _, key = uri.removeprefix("s3://").partition("/")
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
