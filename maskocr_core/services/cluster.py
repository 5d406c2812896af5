"""A Ray cluster at RAY_ADDRESS, or a quiet one on loopback for this process alone, and tasks on it.

Source: https://docs.ray.io/en/latest/ray-core/configure.html. Workers that train together are in `workers`, whole stages as
jobs of a cluster elsewhere in `jobs`.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from maskocr_core.services import post, storage

RETRIES = 3
GPU_SHARE = 0.25  # of a GPU that a run of fine-tuning asks for at the least: a small recogniser leaves most of one idle
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # the pace of the controller: 2 s a report otherwise; workers answer each time
    # Ray believes for half a minute in a node that is gone: how long it then tries to start as many workers as before.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# On a cluster of our own nobody reads Ray's metrics, the events of its tasks or how long its loops took, and nobody takes its
# node away; the first four of it cost two workers on two cores 4 % of their speed, the last within a per cent.
_UNSEEN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
}


def given() -> bool:
    """Whether RAY_ADDRESS names a cluster; otherwise each stage that needs one has its own."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def connected(cpus: int) -> Iterator[Any]:
    """The `ray` module, connected: to RAY_ADDRESS if set, else to a new cluster of `cpus` on 127.0.0.1 that ends with the block."""
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (_SETTINGS if address else _SETTINGS | _UNSEEN).items():
        os.environ.setdefault(name, value)
    if address:
        check()  # Ray itself would wait for minutes
    else:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # binds every port to loopback
    import ray

    if address:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": environment()})
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # socket paths may not exceed 107 bytes
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 << 20,
            _temp_dir=folder,
        )
        _end_idle_processes()
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _end_idle_processes() -> None:
    """Of a cluster of our own: who would show logs, who would add nodes, and the server of a dashboard that there is not.

    Ray has no setting that leaves them out, and they take a hundredth of a core from those who train.
    """
    from ray._private import worker

    node = worker._global_node
    for end in (node.kill_log_monitor, node.kill_monitor, node.kill_dashboard):
        end(check_alive=False)


def environment() -> dict[str, str]:
    """What workers on other nodes need to know of where things lie; keys to it are their nodes' own, a cluster shows these."""
    places = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
    told = {name: value for name, value in os.environ.items() if name.startswith("MASKOCR_") or name in places}
    # Workers have another current folder, and by these they find what is forgotten.
    paths = {
        name: told.get(name, default) for name, default in (("MASKOCR_WORK", "work/stages"), ("MASKOCR_TOMBSTONES", ""))
    }
    return told | {name: storage.absolute(path) for name, path in paths.items() if path}


def check() -> str:
    """Say which cluster a run will use; raises ValueError with the mend if RAY_ADDRESS is set and nothing listens there."""
    from importlib.metadata import version

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return f"{version('ray')}, a cluster on loopback for each stage that needs one"
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"RAY_ADDRESS={address} does not answer ({error}): start the cluster, or unset RAY_ADDRESS to use this machine"
        ) from None
    return f"{version('ray')}, {'jobs' if address.startswith('http') else 'cluster'} at {address}"


def has_gpus(ray: Any) -> bool:
    """Whether to ask for GPUs: the cluster has one, or MASKOCR_GPUS=1 says that a given one's autoscaler brings one to who asks."""
    brought = given() and os.environ.get("MASKOCR_GPUS") == "1"
    return brought or ray.cluster_resources().get("GPU", 0) > 0


def gpus_held() -> float:
    """GPUs that Ray gave the task or actor which this process is; 1 where Ray has nothing to do with it."""
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        return 1.0
    return sys.modules["ray"].get_runtime_context().get_assigned_resources().get("GPU", 0.0)


def each(function: Callable[..., Any], calls: list[tuple[Any, ...]], jobs: int, office: str = "") -> list[Any]:
    """`function(*call)` for every call as Ray tasks of one core, `jobs` at a time; results in the order of the calls.

    Where there are GPUs, or will be, each gets a share of one, evenly among `jobs` but no less than `GPU_SHARE`; without it
    Ray would hide them all.

    office: under which name tasks on nodes of a given cluster bring what they log, if they share no folder with the caller.

    A task whose worker or node dies is started again, up to `RETRIES` times, and goes on from where its checkpoints are. What
    a task raises is raised at once, and no other is begun. Raises RuntimeError if one was lost more often.
    """
    with connected(cpus=jobs) as ray, post.opened(ray, office) if office and given() else nullcontext():
        # A process of its own for each task: nothing of one run is left when the next begins.
        options = {"num_cpus": 1, "num_gpus": max(GPU_SHARE, 1 / jobs) if has_gpus(ray) else 0}
        remote = ray.remote(**options, max_retries=RETRIES, retry_exceptions=False, max_calls=1)(function)
        started: list[Any] = []
        running: list[Any] = []
        try:
            for call in calls:
                if len(running) >= jobs:  # a given cluster may have more cores than this
                    running = _after_one_more(ray, running)
                started.append(remote.remote(*call))
                running.append(started[-1])
            while running:
                running = _after_one_more(ray, running)
            return ray.get(started)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"a run failed: {last_line(error)}") from error


def _after_one_more(ray: Any, running: list[Any]) -> list[Any]:
    """The tasks that still run once another is done; raises what that one raised, without waiting for the others."""
    (done,), running = ray.wait(running, num_returns=1)
    ray.get(done)
    return running


def tasks(
    function: Callable[..., Any], calls: dict[str, tuple[Any, ...]], jobs: int, retries: int
) -> Iterator[tuple[str, Any]]:
    """(name, `function(*call)`) as they are done, as Ray tasks of one core, `jobs` at a time on a cluster of our own.

    A task whose worker or node dies is started again, up to `retries` times; what the function raises is raised here.
    Raises RuntimeError if a task was lost more often.
    """
    if not calls:
        return
    with connected(cpus=jobs) as ray:
        own = not given()
        # Nodes are used evenly, so that the death of one costs no more than its share.
        options = {"num_cpus": 1, "max_retries": retries, "retry_exceptions": False, "scheduling_strategy": "SPREAD"}
        remote = ray.remote(**options)(function)
        waiting, running = _with_shared_sent_once(ray, calls), {}
        try:
            while waiting or running:
                # Of a given cluster twice the cores that it has by now: they never wait, and an autoscaler sees the need.
                at_once = jobs if own else max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
                while waiting and len(running) < at_once:
                    name = next(iter(waiting))
                    running[remote.remote(*waiting.pop(name))] = name
                for done in ray.wait(list(running), num_returns=1)[0]:
                    yield running.pop(done), ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"a worker died {retries + 1} times: {last_line(error)}") from error


def _with_shared_sent_once(ray: Any, calls: dict[str, tuple[Any, ...]]) -> dict[str, list[Any]]:
    """The calls with what several of them are given, an encoder that describes steps above all, put where nodes fetch it once."""
    arguments = [argument for call in calls.values() for argument in call]
    times = Counter(map(id, arguments))
    sent = {key: ray.put(argument) for key, argument in zip(map(id, arguments), arguments) if times.pop(key, 0) > 1}
    return {name: [sent.get(id(argument), argument) for argument in call] for name, call in calls.items()}


def last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
