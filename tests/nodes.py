"""Ray clusters for tests, on loopback, gone with the `with` block."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import REPOSITORY

# What workers find the tests' own modules by.
PYTHONPATH = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Binds every port to loopback, on the side of the caller too; read when Ray is imported, hence here and now.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
_HOLD = """
import sys
from ray.cluster_utils import Cluster
jobs, gpus, agent = map(int, sys.argv[1:])
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "num_gpus": gpus, "include_dashboard": bool(jobs), "dashboard_host": "127.0.0.1",
    "dashboard_port": jobs or None, "dashboard_agent_listen_port": agent, "object_store_memory": 100 << 20})
print(f"http://{cluster.webui_url}" if jobs else cluster.address, flush=True)
sys.stdin.read()
"""


@contextmanager
def one_node(jobs: int = 0, gpus: int = 0, agent: int = 0) -> Iterator[str]:
    """The address of a cluster of one node with two cores that another process holds.

    jobs: a free port for their server. gpus: how many it says that it has. agent: the port of what
    starts their jobs, or any free one: with Ray's own, which is fixed, a second node on a machine starts no job.
    """
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # socket paths may not exceed 107 bytes
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where a job finds `maskocr`
    environment = os.environ | QUIET | {"PYTHONPATH": PYTHONPATH, "PATH": path, "RAY_TMPDIR": folder}
    command = [sys.executable, "-c", _HOLD, str(jobs), str(gpus), str(agent)]
    holder = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield holder.stdout.readline().strip()
    finally:
        holder.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def submitted(client: Any, entrypoint: str, patience: float = 60) -> str:
    """The name of a job, once the node's agent that starts jobs is up: for some seconds a new cluster has none."""
    patient_until = time.monotonic() + patience
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > patient_until:
                raise
            time.sleep(1)
