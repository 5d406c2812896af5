"""Facts of the cluster, not of the method: infra/ makes the objects of these names."""

from kfp import dsl, kubernetes

SETTINGS, CREDENTIALS = "maskocr-settings", "maskocr-s3"


def on_cluster(task: dsl.PipelineTask, memory: str) -> dsl.PipelineTask:
    """Resources, retries, settings and secrets of a task; a local run has none of them."""
    # KFP's cache sees the names of data and image, not what lies behind them; stages know by themselves what was done.
    task.set_caching_options(False)
    task.set_cpu_request("2").set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(num_retries=2, backoff_duration="60s", backoff_factor=2.0)
    kubernetes.use_config_map_as_env(
        task, SETTINGS, {name: name for name in ("MLFLOW_TRACKING_URI", "MASKOCR_STORE", "AWS_ENDPOINT_URL")}
    )
    kubernetes.use_secret_as_env(
        task, CREDENTIALS, {name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    )
    # All tasks of a KFP run find one MLflow run by this name.
    kubernetes.use_field_path_as_env(task, "MASKOCR_RUN", "metadata.labels['pipeline/runid']")
    kubernetes.set_security_context(task, run_as_user=1000, run_as_group=1000, run_as_non_root=True)
    return task
