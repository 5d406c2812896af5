"""Stages as jobs of a Ray cluster elsewhere: RAY_ADDRESS=http://…:8265. The code is in the cluster's image.

A job is known by the key of its work: whoever asks for the same work finds the job that is at it, after a restart of
his own machine too, and follows it. Source:
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/sdk.html

Each attempt has a number, and so a name that no other had. Ray watches a job by its name alone, once a second: whoever
gives the name of a job that has just ended to the next sees that one declared dead for the other's end.

Who is told to end by SIGTERM stops his job first, for that is how the pods of a cancelled pipeline are ended. An
eviction ends a pod in the same way, and from inside nobody can tell the two apart. So an eviction stops the job as
well: the retried task finds it stopped, submits it anew, and goes on from the last checkpoint. What was done since then
is lost, which is less than a job of a cancelled pipeline that nobody ends. SIGKILL and Ctrl-C leave the job at work.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
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
SILENCE = 60  # seconds in which a log says nothing until it is asked for anew: the connection may be dead
PATIENCE = 120  # seconds that a young or busy cluster is given to have an agent that takes a job, or to be heard again
GRACE = 25  # seconds that a job is given to stop: Kubernetes kills a pod 30 s after its SIGTERM
TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that was told to end


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


def run(stage: str, key: str, entrypoint: str) -> bool:
    """Return once a job of this key has succeeded; one that is at it is followed, after one that has ended comes the next.

    Whether it was followed: then it wrote where the one who submitted it asked for.

    Raises ValueError if the job was refused as a user's mistake, RuntimeError if it failed or was stopped, each with
    what it said last, and SystemExit after a SIGTERM: the job is stopped by then, unless another pipeline submitted it.
    """
    cluster.check()
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(os.environ["RAY_ADDRESS"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        name, followed, said = asyncio.run(_seen_through(client, stage, f"maskocr-{stage}-{key[:24]}", entrypoint))
    finally:
        if _hears_signals():
            signal.signal(signal.SIGTERM, before)  # asyncio leaves the system's own behind
    info = client.get_job_info(name)
    if info.status == "SUCCEEDED":
        return followed
    last = next((line for line in reversed(said) if line.startswith("maskocr: ")), f"maskocr: {info.message}")
    message = f"{last.removeprefix('maskocr: ')} (job {name} {info.status}, its log: ray job logs {name})"
    raise ValueError(message) if info.driver_exit_code == REFUSED else RuntimeError(message)


def _hears_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


async def _seen_through(client: Any, stage: str, work: str, entrypoint: str) -> tuple[str, bool, list[str]]:
    """Find or submit the job of this work, follow it to its end; its name, whether it was found, the lines of its log.

    SIGTERM ends the job, then this process.
    """
    task, told_to_end = asyncio.current_task(), asyncio.Event()

    def end() -> None:
        told_to_end.set()
        task.cancel()

    if _hears_signals():
        # Called between two waits of this task: a request that is under way is answered first, and no job gets lost.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    owner = _pipeline_run()
    try:
        while True:
            name, found = _attempt(client, work)
            if found is not None:
                owner = (found.metadata or {}).get("run", "")
                print(f"{stage}: job {name} is at this very work, following it", file=sys.stderr)
                break
            if await _submit(client, name, entrypoint):
                print(f"{stage}: submitted as job {name}", file=sys.stderr)
                break
        return name, found is not None, await _followed(client, name)
    except asyncio.CancelledError:
        if not told_to_end.is_set():
            raise
    # The request to stop goes out before anything else: where a pod's first process dies at once, little time is left.
    became = (
        _stopped(client, name) if owner == _pipeline_run() else f"goes on, as it belongs to the pipeline run {owner}"
    )
    print(f"{stage}: told to end (SIGTERM), job {name} {became}", file=sys.stderr, flush=True)
    raise SystemExit(TERMINATED)


def _attempt(client: Any, work: str) -> tuple[str, Any | None]:
    """The latest attempt at this work, by name, and what is known of it, if it runs or waits; else a name for the next."""
    made = {
        int(number): job
        for job in client.list_jobs()
        for name, _, number in [(job.submission_id or "").rpartition("-")]
        if name == work
    }
    latest = max(made, default=0)
    if latest and not made[latest].status.is_terminal():
        return f"{work}-{latest}", made[latest]
    return f"{work}-{latest + 1}", None


async def _submit(client: Any, name: str, entrypoint: str) -> bool:
    """Submit the job; False if there is one of this name by now.

    A cluster whose job agent is not up yet says so in an error 500, which is no refusal.
    """
    patient_until = time.monotonic() + PATIENCE
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=name,
                runtime_env={"env_vars": _environment()},
                metadata={"run": _pipeline_run()},
            )
            return True
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > patient_until:
                raise RuntimeError(
                    f"the Ray cluster at {os.environ['RAY_ADDRESS']} has no agent that starts jobs, for {PATIENCE} s by now: "
                    "look at dashboard_agent.log on its head; of two Ray nodes on a machine, each needs an agent's port "
                    "of its own (ray start --dashboard-agent-listen-port)"
                ) from error
            await asyncio.sleep(2)


async def _followed(client: Any, name: str) -> list[str]:
    """Print the log of a job until it ends; its lines.

    A connection of hours may break off, or die without a word, and the server be started anew, while the job goes on: it is
    asked again. Raises what it fails with once nothing was heard of it for `PATIENCE` seconds.
    """
    from aiohttp import ClientError

    said, rest, shown, heard, over = [], "", 0, time.monotonic(), False
    while True:
        try:
            at = 0
            with suppress(TimeoutError):
                async for text in _heard(client.tail_job_logs(name)):  # each time from the beginning
                    new = text[max(0, shown - at) :]
                    at += len(text)
                    shown, heard = max(shown, at), time.monotonic()
                    print(new, end="", file=sys.stderr, flush=True)
                    *whole, rest = (rest + new).split("\n")
                    said += whole
            if over:
                return [*said, rest]
            over, heard = client.get_job_status(name).is_terminal(), time.monotonic()
            if over:  # and what it said last may be unheard
                continue
        except (RuntimeError, ClientError, OSError):
            if time.monotonic() > heard + PATIENCE:
                raise
        await asyncio.sleep(2)


async def _heard(log: AsyncIterator[str]) -> AsyncIterator[str]:
    """What a log says; raises TimeoutError where it says nothing for `SILENCE` seconds."""
    while True:
        async with asyncio.timeout(SILENCE):
            text = await anext(log, None)
        if text is None:
            return
        yield text


def _stopped(client: Any, name: str) -> str:
    """Stop the job and wait until its processes are gone, for as long as there is time; what became of it, in words."""
    patient_until = time.monotonic() + GRACE
    try:
        while True:
            client.stop_job(name)  # said again: a job whose supervisor is still being started does not hear it
            status = client.get_job_status(name)
            if status.is_terminal():
                return f"is {status}"
            if time.monotonic() > patient_until:
                return f"was told to stop and is still {status} after {GRACE} s: look at `ray job status {name}`"
            time.sleep(0.2)
    except (RuntimeError, OSError) as error:  # the answers and the silence of a job server
        return f"could not be stopped ({cluster.last_line(error)}): if it runs, `ray job stop {name}`"


def _pipeline_run() -> str:
    """The run of a pipeline that this process works for; a task that is retried works for the same one."""
    return os.environ.get("MASKOCR_RUN", "")


def _environment() -> dict[str, str]:
    tracking = {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI",) if name in os.environ}
    # Ray's workers get the job's environment and, of the command itself, the same again.
    return cluster.environment() | tracking | {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
