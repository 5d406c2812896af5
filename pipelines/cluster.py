"""Facts of the cluster, not of the method: infra/ makes the objects of these names."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

SETTINGS = ("maskocr-settings", ("MLFLOW_TRACKING_URI", "MASKOCR_STORE", "AWS_ENDPOINT_URL"))
# (name, keys, whether it may be left out): MLflow may ask for a log-in or not, and there may be nobody to tell.
SECRETS = (
    ("maskocr-s3", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), False),
    ("maskocr-mlflow-client", ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), True),
    ("maskocr-notify", ("MASKOCR_NOTIFY_WEBHOOK", "MASKOCR_NOTIFY_COMMAND", "MASKOCR_MLFLOW_UI"), True),
)


@dataclass(frozen=True)
class Accelerators:
    """GPUs of each task that trains or reads with a model; 0: none. resource: as the device plugin names them.

    They are written into the YAML. As parameters of a run they would be lost: kfp 2.17 does not hand the parameter of
    `set_accelerator_limit` on into the tasks of an exit handler.
    """

    gpus: int = 0
    resource: str = "nvidia.com/gpu"


_NONE = Accelerators()
_wanted = ContextVar("accelerators", default=_NONE)


@contextmanager
def accelerated(accelerators: Accelerators) -> Iterator[None]:
    """Tasks that are made meanwhile ask for these."""
    before = _wanted.set(accelerators)
    try:
        yield
    finally:
        _wanted.reset(before)


@dataclass(frozen=True)
class Nodes:
    """Where tasks that train or read with a model may run; parameters of a run."""

    selector: Any
    tolerations: Any


def on_cluster(
    task: dsl.PipelineTask, memory: str, *, hours: int, nodes: Nodes | None = None, cached: bool = False
) -> dsl.PipelineTask:
    """Resources, retries, settings and secrets of a task; a local run has none of them.

    hours: after which an attempt is stopped, for pods that hang. nodes: of a task that trains or reads with a model, which
    gets the GPUs too, and shared memory for the workers inside it. cached: where everything that decides the result is in
    the inputs. Elsewhere KFP's cache would take old for new: it sees the names of data, models and image, not what lies
    behind them. Stages know by themselves what was done.
    """
    task.set_caching_options(cached)
    task.set_cpu_request("2").set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(num_retries=2, backoff_duration="60s", backoff_factor=2.0)
    kubernetes.set_timeout(task, hours * 3600)
    if nodes:
        kubernetes.add_node_selector_json(task, nodes.selector)
        kubernetes.add_toleration_json(task, nodes.tolerations)
        # Ray's object store and PyTorch's workers: 64 MB, what a container has by itself, is too little.
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit="2Gi")
        if (wanted := _wanted.get()).gpus:
            task.set_accelerator_type(wanted.resource).set_accelerator_limit(wanted.gpus)
    settings, keys = SETTINGS
    kubernetes.use_config_map_as_env(task, settings, {key: key for key in keys})
    for secret, keys, optional in SECRETS:
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=optional)
    # All tasks of a KFP run find one MLflow run by this name.
    kubernetes.use_field_path_as_env(task, "MASKOCR_RUN", "metadata.labels['pipeline/runid']")
    kubernetes.set_security_context(task, run_as_user=1000, run_as_group=1000, run_as_non_root=True)
    return task
