"""A compiled pipeline's parameters, and its run on a Kubeflow Pipelines endpoint to the end.

kfp is imported inside the functions, so that a command line which never runs a pipeline does not wait for it.
"""

import contextlib
import difflib
import io
import json
import math
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
PORT_FORWARD = "`kubectl -n kubeflow port-forward svc/ml-pipeline 8888:8888`"
NO_API = (
    "does not answer as the KFP API does (a log-in page, a redirect, another path?): give a token, or the "
    f"address of the service itself, such as http://localhost:8888 after {PORT_FORWARD}"
)
REQUEST_SECONDS = (3, 30)  # to connect, to answer: a half-open connection must not hold a wait of days
OUTAGE_SECONDS = 300.0  # an endpoint that restarts is away for less, and the run goes on without it
FIRST_LOOK_SECONDS = 0.5  # doubled from look to look: what fails at once is told at once


class RunFailed(RuntimeError):
    """A submitted run that did not succeed; `run_id` and `state` say which and how."""

    def __init__(self, run_id: str, state: str, sentence: str):
        super().__init__(sentence)
        self.run_id, self.state = run_id, state


@dataclass(frozen=True)
class Parameter:
    """One input of a pipeline; `type` is KFP's name: STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST, STRUCT."""

    name: str
    type: str
    default: object
    required: bool
    description: str


def parameters(pipeline_yaml: Path) -> dict[str, Parameter]:
    """Parameters by name, as the compiler wrote them (first document, `root.inputDefinitions.parameters`).

    Raises ValueError where the file is absent or is no compiled pipeline.
    """
    import yaml

    try:
        spec = next(yaml.safe_load_all(Path(pipeline_yaml).read_text(encoding="utf-8")))
        declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    except (OSError, UnicodeDecodeError, StopIteration, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{pipeline_yaml} cannot be read as a compiled pipeline: give the .yaml that "
            "`python -m maskocr_pipelines` writes"
        ) from error
    return {
        name: Parameter(
            name,
            entry["parameterType"],
            entry.get("defaultValue"),
            not entry.get("isOptional", False),
            entry.get("description", ""),
        )
        for name, entry in declared.items()
    }


def parse(pipeline_yaml: Path, assignments: list[str]) -> dict[str, object]:
    """Typed arguments from `name=value` strings; LIST and STRUCT values are JSON.

    Raises ValueError for an unknown, missing or repeated name and for a value of another type: the KFP client sends
    all of these on, and the run fails only later.
    """
    known = parameters(pipeline_yaml)
    arguments: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} assigns nothing: write it as name=value")
        if name in arguments:
            raise ValueError(f"{name} is given twice: keep one of the two")
        arguments[name] = _typed(known[name], text) if name in known else text
    check_names(pipeline_yaml, known, arguments)
    return arguments


def check_names(pipeline_yaml: Path, known: dict[str, Parameter], arguments: dict[str, object]) -> None:
    for name in arguments:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ValueError(f"{pipeline_yaml} has no parameter {name}: {hint}It has {', '.join(sorted(known))}")
    missing = [name for name, parameter in known.items() if parameter.required and name not in arguments]
    if missing:
        raise ValueError(f"{pipeline_yaml} needs {', '.join(missing)}: add {' '.join(f'{m}=…' for m in missing)}")


def _typed(parameter: Parameter, text: str) -> object:
    def as_json(kind: type) -> object:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError
        return value

    def number() -> float:
        value = float(text)
        if not math.isfinite(value):  # JSON has no word for it
            raise ValueError
        return value

    readers: dict[str, tuple[Callable[[], object], str]] = {
        "STRING": (lambda: text, "a text"),
        "NUMBER_INTEGER": (lambda: int(text), "a whole number, such as 3"),
        "NUMBER_DOUBLE": (number, "a finite number, such as 0.5"),
        "BOOLEAN": (lambda: {"true": True, "false": False}[text.lower()], "true or false"),
        "LIST": (lambda: as_json(list), """a JSON list, such as '["a", "b"]'"""),
        "STRUCT": (lambda: as_json(dict), """a JSON object, such as '{"a": 1}'"""),
    }
    read, wanted = readers[parameter.type]
    try:
        return read()
    except (ValueError, KeyError):  # JSONDecodeError is a ValueError
        raise ValueError(f"{parameter.name}={text} is of the wrong type: {parameter.name} is {wanted}") from None


def submit(
    pipeline_yaml: Path,
    arguments: dict[str, object],
    *,
    endpoint: str,
    experiment: str = "maskocr",
    run_name: str | None = None,
    token: str | None = None,
    namespace: str | None = None,
    wait: bool = True,
    poll_seconds: float = 5.0,
    timeout_seconds: float | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Starts a run on a KFP endpoint, follows it to its end unless `wait` is false, and returns its id.

    Raises ValueError for wrong names in `arguments` and an endpoint without http(s)://, RunFailed where the run ends
    otherwise than SUCCEEDED or outlives `timeout_seconds` (it then goes on), RuntimeError where the endpoint does not
    answer as KFP does. Source: KFP API v2beta1.
    """
    check_names(pipeline_yaml, parameters(pipeline_yaml), arguments)
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"endpoint {endpoint} lacks its scheme: write http://{endpoint} or https://{endpoint}")
    endpoint = endpoint.rstrip("/")
    import kfp

    try:
        probe(endpoint, token)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # kfp prints links of its own
            warnings.simplefilter("ignore", FutureWarning)
            client = kfp.Client(host=endpoint, existing_token=token, namespace=namespace or "kubeflow")
            # Without an id, from a page of HTML, kfp would go on and have the run in some other experiment.
            if not client.create_experiment(experiment, namespace=namespace).experiment_id:
                raise RuntimeError(f"{endpoint} {NO_API}")
            run_id = client.create_run_from_pipeline_package(
                str(pipeline_yaml), arguments, run_name=run_name, experiment_name=experiment, namespace=namespace
            ).run_id
    except api_errors() as error:
        raise RuntimeError(trouble(endpoint, error)) from error
    if not run_id:  # kfp reads a page of HTML as a run without anything
        raise RuntimeError(f"{endpoint} {NO_API}")
    say(f"run {run_id}: {_page(endpoint, run_id)}")
    if wait:
        _follow(client, endpoint, run_id, poll_seconds, timeout_seconds, say)
    return run_id


def _page(endpoint: str, run_id: str) -> str:
    return f"{endpoint}/#/runs/details/{run_id}"


def api_errors() -> tuple[type[Exception], ...]:
    """What kfp raises where an endpoint refuses or cannot be reached; `trouble` says it in words."""
    import kfp_server_api
    import urllib3

    return kfp_server_api.ApiException, urllib3.exceptions.HTTPError


def probe(endpoint: str, token: str | None) -> None:
    """Ask an endpoint whether it is there, once: kfp.Client itself asks a refusing one five times, five seconds apart.

    Raises RuntimeError where something else than KFP answers, and what `api_errors` names.
    """
    import kfp_server_api

    config = kfp_server_api.Configuration(host=endpoint)
    config.retries = False
    if token:
        config.api_key, config.api_key_prefix = {"authorization": token}, {"authorization": "Bearer"}
    health = kfp_server_api.HealthzServiceApi(kfp_server_api.ApiClient(config))
    try:
        json.loads(health.healthz_service_get_healthz(_preload_content=False, _request_timeout=REQUEST_SECONDS).data)
    except (ValueError, kfp_server_api.ApiException) as error:
        status = getattr(error, "status", 200)
        if status == 404 or 200 <= status < 400:
            raise RuntimeError(f"{endpoint} {NO_API}") from error
        raise


def trouble(endpoint: str, error: Exception) -> str:
    """One sentence with the mend for an error of those that `api_errors` names."""
    status = getattr(error, "status", None)
    if not status:
        reason = str(getattr(error, "reason", None) or error).strip().rsplit(": ", 1)[-1]
        return f"{endpoint} cannot be reached ({reason}): check the address, or start {PORT_FORWARD}"
    if status in (401, 403):
        return f"{endpoint} refuses ({status}): give a token that is still valid and may create runs in this namespace"
    if status >= 500:
        return f"{endpoint} is in trouble ({status}): try again, or read `kubectl -n kubeflow logs deploy/ml-pipeline`"
    try:
        said = " ".join(json.loads(error.body)["message"].split())
    except (ValueError, KeyError, TypeError, AttributeError):  # a page, or nothing at all: a gateway's, not KFP's
        return f"{endpoint} ({status}) {NO_API}"
    return f"{endpoint} refuses the request ({status}): {said}"


def _follow(
    client, endpoint: str, run_id: str, poll_seconds: float, timeout_seconds: float | None, say: Callable[[str], None]
) -> None:
    """Polls by itself: kfp's wait_for_run_completion never returns from a canceled run."""
    told: dict[str, str] = {"run": "PENDING"}
    pause = FIRST_LOOK_SECONDS
    started = answered = time.monotonic()
    while True:
        try:
            run = client.runs.run_service_get_run(run_id=run_id, _request_timeout=REQUEST_SECONDS)
            if run.run_id != run_id:
                raise RuntimeError(f"{endpoint} {NO_API}; run {run_id} goes on unwatched")
            answered = time.monotonic()
            for key, name, state in [
                *((task.task_id, f"task {task.display_name}", task.state) for task in _tasks(run)),
                ("run", "run", run.state),
            ]:
                if state and told.get(key) != state:
                    say(f"{name}: {state}")
                    told[key] = state
        except api_errors() as error:
            lasting = 400 <= (getattr(error, "status", None) or 0) < 500
            if lasting or time.monotonic() - answered > OUTAGE_SECONDS:
                raise RuntimeError(f"{trouble(endpoint, error)}; run {run_id} goes on unwatched") from error
        if told["run"] == "SUCCEEDED":
            return
        if told["run"] in ENDED:
            raise RunFailed(run_id, told["run"], _ending(endpoint, run))
        if timeout_seconds is not None and time.monotonic() - started >= timeout_seconds:
            raise RunFailed(
                run_id,
                told["run"],
                f"run {run_id} is still {told['run']} after {timeout_seconds:g} s and "
                f"goes on: look at {_page(endpoint, run_id)}, or allow more time",
            )
        time.sleep(min(pause, poll_seconds))
        pause *= 2


def _tasks(run) -> list:
    """The pipeline's own tasks; `root`, `executor` and the drivers are KFP's."""
    details = (run.run_details and run.run_details.task_details) or []
    return [task for task in details if not re.fullmatch("|root|executor|.*-driver", task.display_name or "")]


def _ending(endpoint: str, run) -> str:
    page = _page(endpoint, run.run_id)
    if run.state != "FAILED":
        return f"run {run.run_id} ended as {run.state}: submit it again if nobody meant that ({page})"
    failed = [task for task in _tasks(run) if task.state == "FAILED"]
    # KFP 2.17 leaves the error of most tasks empty, so the page with their logs is named in any case.
    said = next((each.error.message for each in [*failed, run] if each.error and each.error.message), "no message came")
    where = f"task {', '.join(task.display_name for task in failed)}" if failed else "its end"
    return f"run {run.run_id} FAILED at {where}: {said} (logs: {page})"
