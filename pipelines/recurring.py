"""Recurring runs on a Kubeflow Pipelines endpoint: made what the file says, shown, paused, deleted.

Source: KFP API v2beta1. kfp is imported inside the functions.
"""

import contextlib
import difflib
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from maskocr_pipelines import client
from maskocr_pipelines.schedules_file import Plan, Row, upcoming

MARK = "maskocr schedule:"  # begins the description of every recurring run made here; no other is touched
PAGE = 100  # recurring runs asked for at once


@dataclass(frozen=True)
class Endpoint:
    """A KFP endpoint that answered; every method raises RuntimeError with the mend, as `opened` says."""

    url: str
    kfp: Any
    namespace: str | None

    def ask(self, call: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        """The reply as JSON: kfp's own classes read a log-in page as an answer without anything in it."""
        import kfp_server_api

        try:
            reply = call(**arguments, _preload_content=False, _request_timeout=client.REQUEST_SECONDS)
        except kfp_server_api.ApiException as error:
            if isinstance(error.body, bytes):
                error.body = error.body.decode(errors="replace")
            raise
        try:
            answer = json.loads(reply.data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RuntimeError(f"{self.url} {client.NO_API}")
        return answer

    def pages(self, call: Callable[..., Any], field: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            answer = self.ask(call, page_size=PAGE, page_token=token, **arguments)
            yield from answer.get(field) or []
            if not (token := answer.get("next_page_token") or ""):
                return

    def recurring(self) -> list[dict[str, Any]]:
        """All recurring runs, whoever made them."""
        where = {"namespace": self.namespace} if self.namespace else {}
        service = self.kfp.recurring_runs
        return list(self.pages(service.recurring_run_service_list_recurring_runs, "recurringRuns", **where))

    def version(self, plan: Plan) -> tuple[str, str, bool]:
        """(id of the pipeline, id of the version that is named by the digest, whether it was uploaded now)."""
        service, named = self.kfp.pipelines, _named(plan.pipeline_name)
        where = {"namespace": self.namespace} if self.namespace else {}
        found = self.pages(service.pipeline_service_list_pipelines, "pipelines", filter=named, **where)
        pipeline = next((one for one in found if one["display_name"] == plan.pipeline_name), None)
        if pipeline is None:
            wanted = {"display_name": plan.pipeline_name, "name": plan.pipeline_name, **where}
            pipeline = self.ask(service.pipeline_service_create_pipeline, pipeline=wanted)
        own = pipeline["pipeline_id"]
        versions = self.pages(
            service.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            pipeline_id=own,
            filter=_named(plan.digest),
        )
        for version in versions:
            if version["display_name"] == plan.digest:
                return own, version["pipeline_version_id"], False
        upload = self.kfp.pipeline_uploads.upload_pipeline_version
        made = self.ask(
            upload, uploadfile=str(plan.pipeline), name=plan.digest, display_name=plan.digest, pipelineid=own
        )
        return own, made["pipeline_version_id"], True

    def experiment(self, name: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()):  # kfp prints a link
            found = self.kfp.create_experiment(name, namespace=self.namespace).experiment_id
        if not found:
            raise RuntimeError(f"{self.url} {client.NO_API}")
        return found

    def act(self, verb: Literal["enable", "disable", "delete"], run: dict[str, Any]) -> None:
        call = getattr(self.kfp.recurring_runs, f"recurring_run_service_{verb}_recurring_run")
        self.ask(call, recurring_run_id=run["recurring_run_id"])


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


@contextlib.contextmanager
def opened(url: str, token: str | None = None, namespace: str | None = None) -> Iterator[Endpoint]:
    """A KFP endpoint.

    Raises ValueError for a URL without its scheme, RuntimeError where it does not answer as KFP does.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"endpoint {url} lacks its scheme: write http://{url} or https://{url}")
    url = url.rstrip("/")
    import kfp

    try:
        client.probe(url, token)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            made = kfp.Client(host=url, existing_token=token, namespace=namespace or "kubeflow")
        yield Endpoint(url, made, namespace)
    except client.api_errors() as error:
        raise RuntimeError(client.trouble(url, error)) from error


def apply(plans: list[Plan], endpoint: Endpoint, *, refresh: bool = False, say: Callable[[str], None] = print) -> None:
    """Make the endpoint's recurring runs those of the plans; what is as wanted stays untouched unless `refresh`.

    KFP cannot change a recurring run: one that differs is replaced. The new one is made paused, the old one deleted,
    the new one enabled, so that two are never enabled; after a crash between these there are two, or a paused one, and
    the next `apply` ends it. Raises ValueError, before anything is changed, where somebody else's recurring run has a
    name.
    """
    there = endpoint.recurring()
    for plan in plans:
        if foreign := [run for run in _of(there, plan.name) if not _ours(run)]:
            raise ValueError(
                f"{endpoint.url} has a recurring run {plan.name} ({foreign[0]['recurring_run_id']}) that was not made "
                "by `maskocr schedule`: give the schedule another name, or delete that one"
            )
    for plan in plans:
        if plan.warning:
            say(f"warning: {plan.warning}")
        _replace(plan, _of(there, plan.name), endpoint, refresh, say)
    for name in sorted({run["display_name"] for run in there if _ours(run)} - {plan.name for plan in plans}):
        say(f"{name}: on the endpoint and not in the file; `maskocr schedule delete {name}` removes it")


def _replace(
    plan: Plan, before: list[dict[str, Any]], endpoint: Endpoint, refresh: bool, say: Callable[[str], None]
) -> None:
    pipeline, version, uploaded = endpoint.version(plan)
    if uploaded:
        say(f"{plan.name}: pipeline {plan.pipeline_name} uploaded as version {plan.digest[:12]}")
    wanted = _request(plan, pipeline, version, endpoint.experiment(plan.schedule.experiment))
    same = [run for run in before if run["description"] == wanted["description"]]
    kept = same[0] if same and not refresh else None
    run = kept or endpoint.ask(
        endpoint.kfp.recurring_runs.recurring_run_service_create_recurring_run, recurring_run=wanted
    )
    for old in before:
        if old is not kept:
            endpoint.act("delete", old)
    done = [] if kept else ["replaced" if before else "created"]
    if kept and len(before) > 1:
        done.append(f"{len(before) - 1} left over from an interrupted apply deleted")
    if _enabled(run) != plan.schedule.enabled:
        endpoint.act("enable" if plan.schedule.enabled else "disable", run)
        if kept:
            done.append("resumed, it was paused" if plan.schedule.enabled else "paused")
    state, cron = "enabled" if plan.schedule.enabled else "paused", plan.times.six_fields()
    say(f"{plan.name}: {', '.join(done) or 'unchanged'} ({state}, {cron!r} in {plan.zone.key})")


def _request(plan: Plan, pipeline: str, version: str, experiment: str) -> dict[str, Any]:
    """The recurring run as it is asked for, paused; its description has the digest of it all, which tells it again."""
    asked = {
        "display_name": plan.name,
        "experiment_id": experiment,
        "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version},
        "runtime_config": {"parameters": plan.arguments},
        "trigger": {"cron_schedule": {"cron": plan.times.six_fields()}},
        "max_concurrency": 1,
        "no_catchup": True,
        "mode": "DISABLE",
    }
    schedule = plan.schedule
    said = f"{MARK} {schedule.cron} in {schedule.timezone}, controller in {plan.zone.key}, {schedule.experiment}"
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    return asked | {"description": f"{said}; request {digest}"}


def _of(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["display_name"] == name]


def _ours(run: dict[str, Any]) -> bool:
    return (run.get("description") or "").startswith(MARK)


def _enabled(run: dict[str, Any]) -> bool:
    return run.get("mode") == "ENABLE"


def show(plans: list[Plan], endpoint: Endpoint, now: datetime) -> list[Row]:
    """The schedules of a file as they are on the endpoint, then those made by `apply` that the file has no more."""
    there, names = endpoint.recurring(), [plan.name for plan in plans]
    rows = [Row(plan.name, *_state(plan, _of(there, plan.name), endpoint), upcoming(plan, now)) for plan in plans]
    for name in sorted({run["display_name"] for run in there if _ours(run)} - set(names)):
        states = {"enabled" if _enabled(run) else "paused" for run in _of(there, name)}
        rows.append(Row(name, f"{' and '.join(sorted(states))}, not in the file", "", []))
    return rows


def _state(plan: Plan, runs: list[dict[str, Any]], endpoint: Endpoint) -> tuple[str, str]:
    """(what it does and how that differs from the file, its version)"""
    if not runs:
        return "absent: apply", ""
    if not all(map(_ours, runs)):
        return "not made by maskocr", ""
    if len(runs) > 1:
        return f"{len(runs)} of it: apply", ""
    [run] = runs
    state, ids = "enabled" if _enabled(run) else "paused", run["pipeline_version_reference"]
    wanted = _request(plan, ids["pipeline_id"], ids["pipeline_version_id"], run["experiment_id"])
    if run["description"] != wanted["description"] or _enabled(run) != plan.schedule.enabled:
        state += ", not as in the file: apply"
    version = _version_name(run, endpoint)
    age = "of today's YAML" if version == plan.digest else "of another YAML: apply"
    return state, f"{version[:12]} {age}" if version else "deleted: apply"


def _version_name(run: dict[str, Any], endpoint: Endpoint) -> str:
    import kfp_server_api

    reference = run["pipeline_version_reference"]
    service = endpoint.kfp.pipelines.pipeline_service_get_pipeline_version
    try:
        return endpoint.ask(service, **reference)["display_name"]
    except kfp_server_api.ApiException as error:
        if error.status == 404:
            return ""
        raise


def pause(name: str, endpoint: Endpoint) -> None:
    """Stop a schedule from starting runs until the next `apply`.

    Raises ValueError if the endpoint has none of that name made by `apply`.
    """
    for run in _demanded(name, endpoint):
        endpoint.act("disable", run)


def delete(name: str, endpoint: Endpoint) -> None:
    """Remove a schedule; its runs stay. Raises ValueError if the endpoint has none of that name made by `apply`."""
    for run in _demanded(name, endpoint):
        endpoint.act("delete", run)


def _demanded(name: str, endpoint: Endpoint) -> list[dict[str, Any]]:
    ours = [run for run in endpoint.recurring() if _ours(run)]
    if found := _of(ours, name):
        return found
    names = sorted({run["display_name"] for run in ours})
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ValueError(
        f"{endpoint.url} has no schedule {name} made by `maskocr schedule apply`: {hint}"
        f"It has {', '.join(names) or 'none'}"
    )
