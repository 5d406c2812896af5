"""Stages as jobs of a Ray cluster elsewhere: RAY_ADDRESS=http://…:8265. The code is in the cluster's image.

A job is known by the key of its work: whoever asks for the same work finds the job that is at it, after a restart of
his own machine too, and follows it. Source:
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/sdk.html
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from maskocr_core import config as configuration
from maskocr_core.config import Config
from maskocr_core.services import cluster, storage

STAGES = (
    "ingest",
    "validate",
    "fit",
    "quantize",
    "pretrain",
    "finetune",
)  # what the others do is not worth a way there
REFUSED = 2  # the exit code of a command whose user made a mistake
PATIENCE = 120  # seconds that a young or busy cluster is given to have an agent that takes a job


def wanted(stage: str) -> bool:
    """Whether a stage is to run as a job: RAY_ADDRESS is that of a job server, not of the cluster behind it."""
    return stage in STAGES and os.environ.get("RAY_ADDRESS", "").startswith(("http://", "https://"))


def command(stage: str, config: Config, arguments: dict[str, Path | str]) -> str:
    """The command line of a stage with this configuration; paths are absolute, as a job has a current folder of its own."""
    words = ["maskocr", stage, "--recipe", config.recipe]
    for change in differences(config):
        words += ["--set", change]
    for name, value in arguments.items():
        if isinstance(value, Path):
            text = str(value.absolute())
        else:
            text = ",".join(map(storage.absolute, storage.listed(value) if name.endswith("_uris") else [value]))
        if text:
            words += ["--" + name.replace("_", "-"), text]
    return shlex.join(words)


def differences(config: Config) -> list[str]:
    """The overrides that make `config` of its recipe."""
    recipe = configuration.load(config.recipe).model_dump(mode="json")
    return [
        f"{section}.{field}={json.dumps(value)}"
        for section, fields in config.model_dump(mode="json").items()
        if isinstance(fields, dict)
        for field, value in fields.items()
        if value != recipe[section][field]
    ]


def run(stage: str, key: str, entrypoint: str) -> None:
    """Return once the job of this key has succeeded; one that is at it already is followed, one that failed is made again.

    Raises ValueError if the job was refused as a user's mistake, RuntimeError if it failed or was stopped, each with what
    it said last.
    """
    cluster.check()
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(os.environ["RAY_ADDRESS"])
    name = f"maskocr-{stage}-{key[:24]}"
    if _under_way(client, name):
        print(f"{stage}: job {name} is at this very work, following it", file=sys.stderr)
    else:
        _submit(client, name, entrypoint)
        print(f"{stage}: submitted as job {name}", file=sys.stderr)
    said = asyncio.run(_followed(client, name))
    info = client.get_job_info(name)
    if info.status == "SUCCEEDED":
        return
    last = next((line for line in reversed(said) if line.startswith("maskocr: ")), f"maskocr: {info.message}")
    message = f"{last.removeprefix('maskocr: ')} (job {name} {info.status}, its log: ray job logs {name})"
    raise ValueError(message) if info.driver_exit_code == REFUSED else RuntimeError(message)


def _under_way(client: Any, name: str) -> bool:
    """Whether the job runs or waits; one that has ended makes room for another of its name."""
    known = {job.submission_id: job.status for job in client.list_jobs()}
    if name not in known:
        return False
    if known[name].is_terminal():
        client.delete_job(name)
        return False
    return True


def _submit(client: Any, name: str, entrypoint: str) -> None:
    """Submit the job; a cluster whose job agent is not up yet says so in an error 500, which is no refusal."""
    patient_until = time.monotonic() + PATIENCE
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env={"env_vars": _environment()})
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > patient_until:
                raise
            time.sleep(2)


async def _followed(client: Any, name: str) -> list[str]:
    """Print the log of a job until it ends; its lines."""
    said, rest = [], ""
    async for text in client.tail_job_logs(name):
        print(text, end="", file=sys.stderr, flush=True)
        *whole, rest = (rest + text).split("\n")
        said += whole
    while not client.get_job_status(name).is_terminal():  # the log may break off before the job ends
        time.sleep(1)
    return [*said, rest]


def _environment() -> dict[str, str]:
    tracking = {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI",) if name in os.environ}
    # Ray's workers get the job's environment and, of the command itself, the same again.
    return cluster.environment() | tracking | {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
