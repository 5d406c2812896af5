"""How a pipeline run ended: its run in MLflow says so, and people are told of a failure.

Source: https://www.kubeflow.org/docs/components/pipelines/user-guides/core-functions/control-flow/ (an exit handler is told the
final state and a message, and nothing of the tasks inside).
"""

from __future__ import annotations

import os

from maskocr_core import config
from maskocr_core.config import Registry
from maskocr_core.services import notify, tracking

GOOD = "SUCCEEDED"


def ended(recipe: str, overrides: list[str], state: str, message: str) -> None:
    """Close the run of MASKOCR_RUN in MLflow unless a stage has done that, and tell who is to be told where it failed.

    state, message: as `PipelineTaskFinalStatus` of kfp has them. A recipe that cannot be loaded, which may be why the run
    failed, leaves the names of the registry as they are by default. A tracker that is away raises nothing: the run's own
    error is what a person has to see.
    """
    try:
        registry = config.load(recipe, overrides).registry
    except ValueError:
        registry = Registry()
    name, where = os.environ.get("MASKOCR_RUN", ""), ""
    print(f"the run {name} ended as {state}" + (f": {message}" if message else ""), flush=True)
    try:
        where = tracking.end(registry, good=state == GOOD, reason=message)
    except ValueError as error:
        print(f"MLflow could not be told: {error}", flush=True)
    if state != GOOD:
        notify.failed_run(name, state, message, where)
