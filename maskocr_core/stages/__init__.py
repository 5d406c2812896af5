"""The stages, in order. Each is one function: config first, then keyword-only paths and URIs; outputs end in `_out`.

`@stage` gives every one of them the same manners: it is keyed by what it reads, reused when that key was finished
before, resumed when it was killed, and published whole or not at all. Inside a stage an `_out` path is its unfinished
folder below `MASKOCR_WORK`, the same one at the next attempt; the caller's path is filled by a rename at the end.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from maskocr_core import artifacts
from maskocr_core.artifacts import work_folder
from maskocr_core.config import Config
from maskocr_core.services import jobs, storage
from maskocr_core.stages import keys

NAMES = ("ingest", "validate", "fit", "quantize", "pretrain", "finetune", "evaluate", "register")
BESIDE = ("fresh", "decide")  # of training again alone: what is new, and whether it is enough
DATA = NAMES[:4]  # versioned by DVC
Stage = Callable[..., dict[str, float]]


def get(name: str) -> Stage:
    """The stage of that name, imported on demand."""
    return getattr(importlib.import_module(f"maskocr_core.stages.{name}"), name)


def stage(
    *,
    reads: tuple[str, ...],
    also: Callable[[Config], str] = lambda config: "",
    reuse: bool = True,
    places: tuple[str, ...] = (),
    keeps: tuple[str, ...] = (),
) -> Callable[[Stage], Stage]:
    """Make a function a stage.

    reads: the config sections it depends on. also: what else, outside its inputs, decides its result (the champion's
    version, say). reuse: whether an earlier run with the same key stands in for this one. places: arguments that name
    where to look: the name is in the key, not what lies there. keeps: outputs that a pipeline's run keeps in MLflow, for
    later runs to start from.
    """

    def decorate(function: Stage) -> Stage:
        @functools.wraps(function)
        def run(config: Config, *, data_version: str = "", **arguments: Path | str) -> dict[str, float]:
            if data_version:
                _demand_version(arguments["lines"], data_version)
            types = inspect.get_annotations(function, eval_str=True)
            # KFP hands over strings.
            arguments = {name: Path(value) if types[name] is Path else value for name, value in arguments.items()}
            outputs = {name: path for name, path in arguments.items() if name.endswith("_out")}
            inputs = {name: value for name, value in arguments.items() if name not in outputs}
            for path in outputs.values():
                artifacts.demand_room(path)
            key = keys.key(function, config, reads, inputs, also(config), places)
            home = work_folder() / function.__name__ / key[:24]
            if jobs.wanted(function.__name__) and not (reuse and _finished(home, outputs)):
                return _as_a_job(function.__name__, key, config, arguments, outputs)
            with _kept_log(config, function.__name__), _alone(home, function.__name__):
                if not (reuse and _finished(home, outputs)):
                    metrics = function(config, **inputs, **{name: _unfinished(home, name, reuse) for name in outputs})
                    for name in outputs:
                        unfinished = home / f"{name}.unfinished"
                        artifacts.finish(
                            unfinished,
                            kind=name.removesuffix("_out"),
                            metrics=metrics,
                            config={section: getattr(config, section).model_dump(mode="json") for section in reads},
                        )
                        shutil.rmtree(home / name, ignore_errors=True)
                        unfinished.rename(home / name)
                    shutil.rmtree(home / "scratch", ignore_errors=True)
                    if stored := artifacts.in_store(home):
                        storage.erase_below(stored)
                else:
                    print(f"{function.__name__}: nothing it reads has changed, reused ({home})", file=sys.stderr)
                for name, path in outputs.items():
                    artifacts.publish(home / name, path)
                metrics = artifacts.Artifact(home / next(iter(outputs))).metrics
            _record(function.__name__, config, metrics, outputs, keeps)
            return metrics

        run.reads = reads
        return run

    return decorate


def _as_a_job(
    name: str, key: str, config: Config, arguments: dict[str, Path | str], outputs: dict[str, Path]
) -> dict[str, float]:
    """Have a job do it, which publishes where we see it; what it records in MLflow it records itself."""

    def missing() -> list[Path]:
        return [path for path in outputs.values() if not (path / artifacts.MANIFEST).is_file()]

    command = jobs.command(name, config, arguments)
    if jobs.run(name, key, command) and missing():
        print(f"{name}: that job's output went elsewhere, another fetches it for here", file=sys.stderr)
        # By a name of its own: the next attempt at this key may be that of a third, who wants it elsewhere again.
        jobs.run(name, hashlib.sha256(command.encode()).hexdigest(), command)
    for path in missing():
        raise ValueError(
            f"the job is done, but {path} is not seen here: give a folder that this machine and the cluster share"
        )
    return artifacts.Artifact(next(iter(outputs.values()))).metrics


def data_version(lines: Path | str) -> str:
    """Version of the lines at a path: what a pipeline tells its tasks, which refuse lines of any other (`data_version=`)."""
    return artifacts.Artifact(Path(lines)).version


def said(output: Path | str, name: str, *fields: str) -> tuple[Any, ...]:
    """What a stage says in a JSON file of its output, field by field: how the tasks of a pipeline hear of it."""
    facts = artifacts.Artifact(Path(output)).read_json(name)
    return tuple(facts[field] for field in fields)


def model_facts(model_uri: str) -> dict[str, Any]:
    """What MLflow wrote down of a registered model (`models:/name/version`): `run_id`, `utc_time_created` and more.

    Source: https://mlflow.org/docs/latest/ml/model/#mlmodel-file
    """
    import yaml

    from maskocr_core.services import logged

    return yaml.safe_load(logged.read(model_uri, "MLmodel"))


def kept(model_uri: str, name: str, into: Path) -> Path | None:
    """An artifact that the pipeline's run of a registered model kept (`@stage(keeps=…)`), fetched; None if it kept none."""
    from maskocr_core.services import logged

    try:
        home = logged.parent(model_facts(model_uri)["run_id"])
    except Exception as error:  # of MLflow, whose classes only services know: a model outlives a run that was deleted
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        home = None
    if not home:
        return None
    for file in logged.files(home, name):
        artifacts.write_bytes(into / file, logged.read(home, file))
    return into / name if (into / name / artifacts.MANIFEST).is_file() else None


def _kept_log(config: Config, name: str) -> AbstractContextManager[None]:
    """Inside a pipeline run, what the stage prints is kept there."""
    if not os.environ.get("MASKOCR_RUN"):
        return nullcontext()
    from maskocr_core.services import logs

    return logs.kept(config.registry, name)


def nothing_to_do(config: Config) -> None:
    """End the pipeline's run in MLflow, if there is one: no later stage will."""
    if os.environ.get("MASKOCR_RUN"):
        from maskocr_core.services import tracking

        tracking.finish(config.registry)


def scratch(output: Path) -> Path:
    """Where a stage keeps checkpoints while it runs: beside its unfinished output, gone once it is published."""
    folder = output.parent / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def code_versions() -> dict[str, str]:
    """`code_version` of every data stage: what DVC needs to be told."""
    return {name: keys.code_version(name) for name in DATA}


def config_version(config: Config) -> str:
    """Digest of what the data stages read of the resolved recipe: the other thing that DVC needs to be told."""
    return config.digest(tuple(sorted({section for name in DATA for section in get(name).reads})))


def _demand_version(lines: Path | str, wanted: str) -> None:
    """Raises ValueError unless the lines are of the version that the run is about."""
    if (found := data_version(lines)) != wanted:
        raise ValueError(
            f"{lines} holds data version {found[:12]}, this run is about {wanted[:12]}: give it the lines of that version, "
            "or start a run for these"
        )


def _finished(home: Path, outputs: dict[str, Path]) -> bool:
    return all((home / name / artifacts.MANIFEST).is_file() for name in outputs)


def _unfinished(home: Path, name: str, keep: bool) -> Path:
    folder = home / f"{name}.unfinished"
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _alone(home: Path, name: str) -> Iterator[None]:
    """One process at a time works on a key; a second waits, then finds it finished."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: another process is at this very work, waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _record(
    name: str, config: Config, metrics: dict[str, float], outputs: dict[str, Path], keeps: tuple[str, ...]
) -> None:
    """Inside a pipeline run, put the stage's numbers and data versions on that run in MLflow, and what is to be kept."""
    if os.environ.get("MASKOCR_RUN"):
        from maskocr_core.services import tracking

        tracking.record_stage(
            config.registry, name, metrics, {out: artifacts.Artifact(path).version for out, path in outputs.items()}
        )
        for out in keeps:
            store = tracking.artifact_store(f"runs:/{tracking.run_id(config.registry)}")
            store.log_artifacts(str(outputs[out]), out.removesuffix("_out"))
