"""A Kubeflow Pipelines API server for tests: answers what kfp's client asks, and refuses what the real one refuses.

It runs nothing: a run takes the states of its script, one at each look, and stays in the last one.
"""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import kfp_server_api
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

PREFIX = "/apis/v2beta1"
JSON_TYPES = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}
LOG_IN_PAGE = b"<!doctype html><title>Log in</title>"


class Refused(Exception):
    """A request that is answered with `status` and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass
class Server:
    """What the server does and, in `requests`, what it was asked: (method, path, body).

    states: the run's states, one at each look at it. task, message: the task whose state follows the run's, and its
    error once the run has failed. token: the only one let in. page: paths that begin so are answered with HTML.
    prefix: where the API lies. outage: so many looks at the run are answered with 503 first.
    """

    states: tuple[str, ...] = ("PENDING", "RUNNING", "SUCCEEDED")
    task: str = "make"
    message: str = ""
    token: str | None = None
    page: str | None = None
    prefix: str = PREFIX
    outage: int = 0
    url: str = ""
    requests: list[tuple[str, str, object]] = field(default_factory=list)
    experiments: dict[str, dict] = field(default_factory=dict)
    runs: dict[str, dict] = field(default_factory=dict)
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
        raise Refused(404, f"{method} {path} is unknown")

    def list_experiments(self, query: dict[str, str]) -> dict:
        wanted = [
            each["stringValue"]
            for each in json.loads(query["filter"])["predicates"]
            if (each["key"], each["operation"]) == ("display_name", 1)
        ]
        return {"experiments": [self.experiments[name] for name in wanted if name in self.experiments]}

    def create_experiment(self, body: dict) -> dict:
        only_fields_of(kfp_server_api.V2beta1Experiment, body)
        experiment = body | {"experiment_id": f"e{len(self.experiments) + 1}", "created_at": "2025-01-01T00:00:00Z"}
        self.experiments[body["display_name"]] = experiment
        return experiment

    def create_run(self, body: dict) -> dict:
        only_fields_of(kfp_server_api.V2beta1Run, body)
        if body.get("experiment_id") not in [each["experiment_id"] for each in self.experiments.values()]:
            raise Refused(404, f"experiment {body.get('experiment_id')} is unknown")
        check_arguments(pipeline(body["pipeline_spec"]), body["runtime_config"].get("parameters", {}))
        run = body | {"run_id": f"r{len(self.runs) + 1}", "created_at": "2025-01-01T00:00:00Z", "state": self.states[0]}
        self.runs[run["run_id"]] = run
        return run

    def look(self, run: dict) -> dict:
        if self.outage:
            self.outage -= 1
            raise Refused(503, "the server restarts")
        state = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        error = {"error": {"code": 2, "message": self.message}} if state == "FAILED" and self.message else {}
        tasks = [
            {"task_id": "t0", "display_name": "root-driver", "state": "SUCCEEDED"},
            {"task_id": "t1", "display_name": self.task, "state": state, **error},
        ]
        return run | {"state": state, "run_details": {"task_details": tasks}}


def only_fields_of(model: type, body: dict) -> None:
    """The API's own list of fields; it refuses any other."""
    unknown = body.keys() - set(model.attribute_map.values())
    if unknown:
        raise Refused(400, f"{model.__name__} has no field {', '.join(sorted(unknown))}")


def pipeline(sent: dict) -> pipeline_spec_pb2.PipelineSpec:
    """The pipeline in either form the client sends: alone, or with what its pods ask of Kubernetes."""
    document = sent.get("pipeline_spec", sent)
    try:
        json_format.ParseDict(sent.get("platform_spec", {}), pipeline_spec_pb2.PlatformSpec())
        return json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError as error:
        raise Refused(400, f"invalid pipeline spec: {error}") from error


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
        self.reply("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, method: str, data: bytes | None) -> None:
        url = urlsplit(self.path)
        status, content, kind = 200, LOG_IN_PAGE, "text/html"
        if self.kfp.page is None or not url.path.startswith(self.kfp.page):
            kind = "application/json"
            try:
                if self.kfp.token and self.headers.get("Authorization") != f"Bearer {self.kfp.token}":
                    raise Refused(401, "the token is not valid")
                if not url.path.startswith(f"{self.kfp.prefix}/"):
                    raise Refused(404, f"nothing lies at {url.path}")
                path, body = url.path.removeprefix(self.kfp.prefix), data and json.loads(data)
                answer = self.kfp.answer(method, path, dict(parse_qsl(url.query)), body)
            except Refused as refusal:
                status, answer = refusal.status, {"code": 3, "message": str(refusal)}
            content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Nothing: the requests are recorded."""
