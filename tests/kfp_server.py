"""A Kubeflow Pipelines API server for tests: answers what kfp's client asks, and refuses what the real one refuses.

Requests and replies have the fields and types of the models in kfp-server-api, and pipelines are read strictly into the
messages of kfp-pipeline-spec. It runs nothing: time passes by one step at each look at a run, which goes from task to
task of its pipeline to the end that it is to have; a recurring run is kept and checked as the real server and its
schedule controller would, and starts nothing. Which state the real server gives the tasks of a cancelled run is not
known: here they are CANCELED. A whole number is demanded of a NUMBER_INTEGER, where the real server takes any number.
"""

import email
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, tzinfo
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

PREFIX = "/apis/v2beta1"
MADE = "2025-01-01T00:00:00Z"
JSON_TYPES = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}
LOG_IN_PAGE = b"<!doctype html>\n<title>Log in</title>\n"
PLAIN = {"str": str, "bool": bool, "int": int, "object": object, "datetime": str}
WHOLE_NUMBERS = {"max_concurrency", "interval_second"}  # of 64 bits: texts in proto3's JSON, where numbers are read too
ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}


class SixFields:
    """Times of a cron line as robfig/cron reads it, which the schedule controller does: seconds first, weekdays from
    Sunday.

    A day matches by day of the month and day of the week where one of them is a star, else by either. Raises
    ValueError.
    """

    BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))

    def __init__(self, line: str):
        words = line.split()
        if len(words) != 6:
            raise ValueError(f"expected 6 fields, found {len(words)}: {line}")
        self.stars = [bool(re.search(r"[*?]", word)) for word in words]
        self.sets = [self.values(word, *bounds) for word, bounds in zip(words, self.BOUNDS)]

    @staticmethod
    def values(word: str, low: int, high: int) -> set[int]:
        found: set[int] = set()
        for part in word.split(","):
            form = re.fullmatch(r"(?:[*?]|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
            if not form:
                raise ValueError(f"failed to parse {part!r}")
            first = int(form[1]) if form[1] else low
            last = int(form[2]) if form[2] else first if form[1] and not form[3] else high
            if not low <= first <= last <= high:
                raise ValueError(f"{part!r} is out of {low}-{high}")
            found |= set(range(first, last + 1, int(form[3] or 1)))
        return found

    def times(self, after: datetime, there: tzinfo) -> Iterator[datetime]:
        seconds, minutes, hours, days, months, weekdays = self.sets
        day = after.astimezone(there).date()
        while True:
            by_month, by_week = day.day in days, day.isoweekday() % 7 in weekdays
            both = self.stars[3] or self.stars[5]
            if day.month in months and ((by_month and by_week) if both else (by_month or by_week)):
                for hour in sorted(hours):
                    for minute in sorted(minutes):
                        for second in sorted(seconds):
                            moment = datetime.combine(day, time(hour, minute, second), there)
                            if moment > after:
                                yield moment
            day += timedelta(days=1)


class Refused(Exception):
    """A request that is answered with `status` and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass
class Server:
    """What the server does and, in `requests`, what it was asked: (method, path, body).

    fails: the task at which runs fail, with `message`. cancelled: the task during which somebody cancels them. pace:
    how many tasks end between two looks. states: instead of all that, the run's states, one at each look, followed by a
    single task `make`. token: the only one let in. page: paths that begin so are answered with HTML of `page_status`.
    prefix: where the API lies. outage: so many looks at the run are answered with 503 first. broken: so are requests
    whose method and path this expression matches. page_limit: the most that one page of a list holds.
    """

    fails: str = ""
    message: str = ""
    cancelled: str = ""
    pace: int = 1
    states: tuple[str, ...] = ()
    token: str | None = None
    page: str | None = None
    page_status: int = 200
    prefix: str = PREFIX
    outage: int = 0
    broken: str = ""
    page_limit: int = 20
    url: str = ""
    requests: list[tuple[str, str, object]] = field(default_factory=list)
    experiments: dict[str, dict] = field(default_factory=dict)
    runs: dict[str, dict] = field(default_factory=dict)
    walks: dict[str, Iterator[tuple[str, dict[str, str]]]] = field(default_factory=dict)
    pipelines: dict[str, dict] = field(default_factory=dict)
    versions: dict[str, dict] = field(default_factory=dict)
    recurring: dict[str, dict] = field(default_factory=dict)
    made: int = 0
    looks: int = 0

    def __enter__(self) -> "Server":
        handler = type("BoundHandler", (Handler,), {"kfp": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, method: str, path: str, query: dict[str, str], body: dict | None) -> dict:
        """The reply to one request. Raises Refused."""
        self.requests.append((method, path, body))
        if self.broken and re.search(self.broken, f"{method} {path}"):
            raise Refused(503, "the server restarts")
        match method, path.split("/")[1:]:
            case "GET", ["healthz"]:
                return {"multi_user": False}
            case "GET", ["experiments"]:
                return self.list_experiments(query)
            case "POST", ["experiments"]:
                return self.create_experiment(body)
            case "POST", ["runs"]:
                return self.create_run(body)
            case "GET", ["runs", run_id] if run_id in self.runs:
                return self.look(self.runs[run_id])
            case "POST", ["runs", called] if called.removesuffix(":terminate") in self.runs:
                return self.terminate(self.runs[called.removesuffix(":terminate")])
            case "GET", ["pipelines"]:
                return self.one_page("pipelines", self.named(self.pipelines.values(), query), query)
            case "POST", ["pipelines"]:
                return self.create_pipeline(body)
            case "POST", ["pipelines", "upload_version"]:
                return self.upload_version(query, body)
            case "GET", ["pipelines", pipeline_id, "versions"] if pipeline_id in self.pipelines:
                own = [each for each in self.versions.values() if each["pipeline_id"] == pipeline_id]
                return self.one_page("pipeline_versions", self.named(own, query), query)
            case "GET", ["pipelines", _, "versions", version_id] if version_id in self.versions:
                return self.versions[version_id]
            case "GET", ["recurringruns"]:
                return self.one_page("recurringRuns", self.named(self.recurring.values(), query), query)
            case "POST", ["recurringruns"]:
                return self.create_recurring(body)
            case _, ["recurringruns", called]:
                return self.recurring_run(method, *called.partition(":")[::2])
        raise Refused(404, f"{method} {path} is unknown")

    def list_experiments(self, query: dict[str, str]) -> dict:
        wanted = [
            each["stringValue"]
            for each in json.loads(query["filter"])["predicates"]
            if (each["key"], each["operation"]) == ("display_name", 1)
        ]
        return {"experiments": [self.experiments[name] for name in wanted if name in self.experiments]}

    def create_experiment(self, body: dict) -> dict:
        conforming("V2beta1Experiment", body)
        experiment = body | {"experiment_id": f"e{len(self.experiments) + 1}", "created_at": MADE}
        self.experiments[body["display_name"]] = experiment
        return experiment

    def create_run(self, body: dict) -> dict:
        conforming("V2beta1Run", body)
        if body.get("experiment_id") not in [each["experiment_id"] for each in self.experiments.values()]:
            raise Refused(404, f"experiment {body.get('experiment_id')} is unknown")
        spec = self.asked_for(body)
        run = body | {"run_id": f"r{len(self.runs) + 1}", "created_at": MADE, "storage_state": "AVAILABLE"}
        self.walks[run["run_id"]] = self.scripted() if self.states else self.walk(tasks_of(spec))
        self.arrive(run, "PENDING", {})
        self.runs[run["run_id"]] = run
        return conforming("V2beta1Run", run)

    def asked_for(self, body: dict) -> pipeline_spec_pb2.PipelineSpec:
        """The pipeline of a run or recurring run, whose arguments fit it."""
        if ("pipeline_spec" in body) == ("pipeline_version_reference" in body):
            raise Refused(400, "give either a pipeline_spec or a pipeline_version_reference")
        sent = body.get("pipeline_spec")
        if reference := body.get("pipeline_version_reference"):
            version = self.versions.get(reference.get("pipeline_version_id"))
            if not version or version["pipeline_id"] != reference.get("pipeline_id"):
                raise Refused(404, f"pipeline version {reference} is unknown")
            sent = version["pipeline_spec"]
        spec = pipeline(sent)
        check_arguments(spec, body.get("runtime_config", {}).get("parameters", {}))
        return spec

    def named(self, all_of_them: object, query: dict[str, str]) -> list[dict]:
        if not query.get("filter"):
            return list(all_of_them)
        [predicate] = json.loads(query["filter"])["predicates"]
        if (predicate["key"], predicate["operation"]) not in {("display_name", 1), ("display_name", "EQUALS")}:
            raise Refused(400, f"invalid filter {predicate}")
        return [each for each in all_of_them if each["display_name"] == predicate["stringValue"]]

    def one_page(self, field_name: str, found: list[dict], query: dict[str, str]) -> dict:
        first, size = int(query.get("page_token") or 0), min(int(query.get("page_size", 10)), self.page_limit)
        more = {"next_page_token": str(first + size)} if first + size < len(found) else {}
        shown = {field_name: found[first : first + size]} if found else {}  # the real one sends no empty lists either
        return shown | {"total_size": len(found)} | more

    def next_id(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}"

    def create_pipeline(self, body: dict) -> dict:
        conforming("V2beta1Pipeline", body)
        if body["display_name"] in [each["display_name"] for each in self.pipelines.values()]:
            raise Refused(409, f"pipeline {body['display_name']} already exists")
        made = body | {"pipeline_id": self.next_id("p"), "created_at": MADE}
        return self.pipelines.setdefault(made["pipeline_id"], made)

    def upload_version(self, query: dict[str, str], content: bytes) -> dict:
        if query.get("pipelineid") not in self.pipelines:
            raise Refused(404, f"pipeline {query.get('pipelineid')} is unknown")
        spec, *platform = yaml.safe_load_all(content)
        pipeline({"pipeline_spec": spec, "platform_spec": platform[0] if platform else {}})
        taken = [each for each in self.versions.values() if each["pipeline_id"] == query["pipelineid"]]
        if query["name"] in [each["name"] for each in taken]:
            raise Refused(409, f"version {query['name']} already exists")
        made = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": self.next_id("v"),
            "name": query["name"],
            "display_name": query["display_name"],
            "created_at": MADE,
            "pipeline_spec": {"pipeline_spec": spec},
        }
        conforming("V2beta1PipelineVersion", made)
        return self.versions.setdefault(made["pipeline_version_id"], made)

    def create_recurring(self, body: dict) -> dict:
        conforming("V2beta1RecurringRun", body)
        if not body.get("display_name"):
            raise Refused(400, "a recurring run needs a name")
        if body.get("experiment_id") not in [each["experiment_id"] for each in self.experiments.values()]:
            raise Refused(404, f"experiment {body.get('experiment_id')} is unknown")
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise Refused(400, "max_concurrency must be within 1 and 10")
        if body.get("mode") not in ("ENABLE", "DISABLE"):
            raise Refused(400, f"mode {body.get('mode')} is unknown")
        trigger = body.get("trigger", {})
        if len(trigger) != 1:
            raise Refused(400, "a recurring run needs a cron_schedule or a periodic_schedule")
        if interval := trigger.get("periodic_schedule"):
            if int(interval.get("interval_second", 0)) < 1:
                raise Refused(400, "an interval must be at least a second")
        else:
            try:
                SixFields(trigger["cron_schedule"].get("cron", ""))
            except ValueError as error:
                raise Refused(400, f"invalid cron: {error}") from error
        self.asked_for(body)
        # As proto3 is written in JSON: whole numbers of 64 bits are texts.
        made = body | {"max_concurrency": str(body["max_concurrency"]), "created_at": MADE}
        made |= {"recurring_run_id": self.next_id("rr"), "status": f"{body['mode']}D"}
        conforming("V2beta1RecurringRun", made)
        return self.recurring.setdefault(made["recurring_run_id"], made)

    def recurring_run(self, method: str, recurring_run_id: str, verb: str) -> dict:
        run = self.recurring.get(recurring_run_id)
        if run is None:
            raise Refused(404, f"recurring run {recurring_run_id} is unknown")
        match method, verb:
            case "GET", "":
                return run
            case "DELETE", "":
                del self.recurring[recurring_run_id]
            case "POST", "enable" | "disable":
                run |= {"mode": verb.upper(), "status": f"{verb.upper()}D"}
            case _:
                raise Refused(404, f"{method} :{verb} is unknown")
        return {}

    def look(self, run: dict) -> dict:
        if self.outage:
            self.outage -= 1
            raise Refused(503, "the server restarts")
        self.looks += 1
        if step := next(self.walks[run["run_id"]], None):  # at the end it stays where it is
            self.arrive(run, *step)
        return conforming("V2beta1Run", run)

    def arrive(self, run: dict, state: str, tasks: dict[str, str]) -> None:
        """Let a run and its tasks be in these states."""
        if run.get("state") != state:
            run.setdefault("state_history", []).append({"update_time": MADE, "state": state})
        error = {"error": {"code": 2, "message": self.message}} if self.message else {}
        details = [{"task_id": "t0", "display_name": "root-driver", "state": "SUCCEEDED"}]
        for number, (name, of_task) in enumerate(tasks.items(), 1):
            task = {"task_id": f"t{number}", "display_name": name, "state": of_task, "run_id": run["run_id"]}
            details.append(task | (error if of_task == "FAILED" else {}))
        run |= {"state": state, "run_details": {"task_details": details}}
        run |= {"finished_at": MADE} if state in ENDED else {}

    def scripted(self) -> Iterator[tuple[str, dict[str, str]]]:
        for state in self.states:
            yield state, {"make": state}

    def walk(self, tasks: dict[str, bool]) -> Iterator[tuple[str, dict[str, str]]]:
        """(state of the run, states of its tasks so far), look by look."""
        if unknown := {self.fails, self.cancelled} - {"", *tasks}:
            raise Refused(500, f"the pipeline has no task {', '.join(unknown)}")
        done: dict[str, str] = {}
        yield "PENDING", {}
        for number, name in enumerate(tasks):
            if number % self.pace == 0 or name in (self.fails, self.cancelled):
                yield "RUNNING", done | {name: "RUNNING"}
            if name == self.cancelled:
                yield from self.cancelling(done | {name: "RUNNING"})
                return
            if name == self.fails:
                done[name] = "FAILED"
                for last in [last for last, in_any_case in tasks.items() if in_any_case]:
                    yield "RUNNING", done | {last: "RUNNING"}
                    done[last] = "SUCCEEDED"
                yield "FAILED", done
                return
            done[name] = "SUCCEEDED"
        yield "SUCCEEDED", done

    @staticmethod
    def cancelling(tasks: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
        yield "CANCELING", tasks
        yield "CANCELED", {name: "CANCELED" if state == "RUNNING" else state for name, state in tasks.items()}

    def terminate(self, run: dict) -> dict:
        if run["state"] not in {"PENDING", "RUNNING", "PAUSED"}:
            raise Refused(400, f"Failed to terminate a run {run['run_id']}. Row not found")  # the real one's own words
        details = run["run_details"]["task_details"][1:]
        walk = self.walks[run["run_id"]] = self.cancelling({each["display_name"]: each["state"] for each in details})
        self.arrive(run, *next(walk))
        return {}


def conforming(model: str, body: object, where: str = "") -> object:
    """`body`, which has the fields and types of the API's model of that name. Raises Refused."""
    where = where or model
    described = getattr(kfp_server_api, model)
    if values := getattr(described, "allowable_values", None):
        if body not in values:
            raise Refused(400, f"{where} is none of {', '.join(values)}: {body!r}")
        return body
    if not isinstance(body, dict):
        raise Refused(400, f"{where} must be an object, not {body!r}")
    types = {name: described.openapi_types[attribute] for attribute, name in described.attribute_map.items()}
    if unknown := body.keys() - types.keys():
        raise Refused(400, f"{where} has no field {', '.join(sorted(unknown))}")
    for name, value in body.items():
        kind, inner = types[name], f"{where}.{name}"
        if parts := re.fullmatch(r"list\[(.+)\]|dict\(str, (.+)\)", kind):
            if not isinstance(value, list if parts[1] else dict):
                raise Refused(400, f"{inner} must be a {kind}, not {value!r}")
            each_kind, values = parts[1] or parts[2], value if parts[1] else value.values()
            for each in values if each_kind not in PLAIN else ():
                conforming(each_kind, each, inner)
        elif kind not in PLAIN:
            conforming(kind, value, inner)
        elif not isinstance(value, (str, int) if name in WHOLE_NUMBERS else PLAIN[kind]):
            raise Refused(400, f"{inner} must be a {kind}, not {value!r}")
        elif kind == "datetime":
            datetime.fromisoformat(value)
    return body


def pipeline(sent: dict) -> pipeline_spec_pb2.PipelineSpec:
    """The pipeline in either form the client sends: alone, or with what its pods ask of Kubernetes. Raises Refused."""
    alone = "pipeline_spec" not in sent
    if not alone and (unknown := sent.keys() - {"pipeline_spec", "platform_spec"}):
        raise Refused(400, f"beside a pipeline spec there is no {', '.join(sorted(unknown))}")
    spec, deployment = pipeline_spec_pb2.PipelineSpec(), pipeline_spec_pb2.PipelineDeploymentConfig()
    platform = pipeline_spec_pb2.PlatformSpec()
    strictly(sent if alone else sent["pipeline_spec"], spec)
    strictly(json_format.MessageToDict(spec.deployment_spec), deployment)
    strictly({} if alone else sent.get("platform_spec", {}), platform)
    if spec.schema_version != "2.1.0":
        raise Refused(400, f"KFP only supports schema version 2.1.0, but the pipeline spec has {spec.schema_version!r}")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", spec.pipeline_info.name):
        raise Refused(400, f"invalid pipeline name {spec.pipeline_info.name!r}")
    for name, component in [("root", spec.root), *spec.components.items()]:
        for task in component.dag.tasks.values():
            if task.component_ref.name not in spec.components:
                raise Refused(400, f"component {task.component_ref.name} of task {task.task_info.name} is missing")
        if component.executor_label and component.executor_label not in deployment.executors:
            raise Refused(400, f"executor {component.executor_label} of component {name} is missing")
    for where, settings in platform.platforms.items():
        if where != "kubernetes":
            raise Refused(400, f"platform {where} is unknown")
        for label, asked in settings.deployment_spec.executors.items():
            if label not in deployment.executors:
                raise Refused(400, f"the platform spec speaks of executor {label}, which is missing")
            strictly(json_format.MessageToDict(asked), kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    return spec


def strictly(document: dict, message: object) -> None:
    """Read a JSON document into a protobuf message that knows all its fields. Raises Refused."""
    try:
        json_format.ParseDict(document, message, ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise Refused(400, f"invalid pipeline spec: {error}") from error


def tasks_of(spec: pipeline_spec_pb2.PipelineSpec) -> dict[str, bool]:
    """Tasks that do something, each after those it depends on: whether it runs even where one of those has failed.

    Conditions, loops and exit handlers are here as what they hold.
    """

    def within(dag: pipeline_spec_pb2.DagSpec) -> Iterator[tuple[str, bool]]:
        waiting = dict(dag.tasks)
        while waiting:
            name = next(name for name, task in waiting.items() if not waiting.keys() & set(task.dependent_tasks))
            task = waiting.pop(name)
            component = spec.components[task.component_ref.name]
            if component.HasField("dag"):
                yield from within(component.dag)
            else:
                yield name, task.trigger_policy.strategy == task.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED

    return dict(within(spec.root.dag))


def check_arguments(spec: pipeline_spec_pb2.PipelineSpec, arguments: dict) -> None:
    declared = spec.root.input_definitions.parameters
    for name, value in arguments.items():
        if name not in declared:
            raise Refused(400, f"parameter {name} is not an input of the pipeline")
        wanted = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(declared[name].parameter_type)
        if not isinstance(value, JSON_TYPES[wanted]) or (isinstance(value, bool) and wanted != "BOOLEAN"):
            raise Refused(400, f"parameter {name} must be a {wanted}, not {value!r}")
    for name, parameter in declared.items():
        if name not in arguments and not parameter.is_optional:
            raise Refused(400, f"parameter {name} is required")


class Handler(BaseHTTPRequestHandler):
    """Carries requests to `kfp`, the Server."""

    kfp: Server

    def do_GET(self) -> None:
        self.reply("GET", None)

    def do_POST(self) -> None:
        self.reply("POST", self.rfile.read(int(self.headers["Content-Length"] or 0)))

    def do_DELETE(self) -> None:
        self.reply("DELETE", None)

    def reply(self, method: str, data: bytes | None) -> None:
        url = urlsplit(self.path)
        status, content, kind = self.kfp.page_status, LOG_IN_PAGE, "text/html"
        if self.kfp.page is None or not url.path.startswith(self.kfp.page):
            status, kind = 200, "application/json"
            try:
                if self.kfp.token and self.headers.get("Authorization") != f"Bearer {self.kfp.token}":
                    raise Refused(401, "the token is not valid")
                if not url.path.startswith(f"{self.kfp.prefix}/"):
                    raise Refused(404, f"nothing lies at {url.path}")
                path, body = url.path.removeprefix(self.kfp.prefix), self.content(data)
                answer = self.kfp.answer(method, path, dict(parse_qsl(url.query)), body)
            except Refused as refusal:
                status, answer = refusal.status, {"code": 3, "message": str(refusal)}
            content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def content(self, data: bytes | None) -> object:
        """A JSON body as what it says; of a form, the file that it uploads."""
        kind = self.headers.get("Content-Type", "")
        if data and kind.startswith("multipart/form-data"):
            form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + data)
            [part] = [part for part in form.get_payload() if 'name="uploadfile"' in part["Content-Disposition"]]
            return part.get_payload(decode=True)
        return json.loads(data) if data else None

    def log_message(self, *_) -> None:
        """Nothing: the requests are recorded."""
