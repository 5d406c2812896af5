"""The deployment, checked without a cluster: schemas, references between files, and the rules that containers keep."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from copy import deepcopy
from typing import Any

import kubernetes_validate
import manifests
import pytest
import validation
from validation import CHECKS, EXAMPLES, INFRA, JOB, OVERLAYS, ROOT, VERSION, documents, rendered, validate

BASE = INFRA / "base"
LOCK = (ROOT / "requirements.lock").read_text()

NEEDS_KUBECTL = [
    pytest.mark.infra,
    pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed"),
]


def needs_kubectl(test):
    for mark in NEEDS_KUBECTL:
        test = mark(test)
    return test


@pytest.fixture(params=[pytest.param(overlay, marks=NEEDS_KUBECTL) for overlay in OVERLAYS])
def overlay(request) -> list[dict[str, Any]]:
    """The manifests of an overlay, for a test to change as it likes."""
    return deepcopy(rendered(request.param))


@pytest.fixture
def production() -> list[dict[str, Any]]:
    return deepcopy(rendered("production"))


def one(among: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = (
        manifest for manifest in manifests.of_kind(among, kind) if name is None or manifest["metadata"]["name"] == name
    )
    return found


def read_by_tasks() -> set[tuple[str, str, str]]:
    read = set()
    for _, executor in validation.tasks():
        for secret in executor.get("secretAsEnv", []):
            read |= {("Secret", secret["secretName"], pair["secretKey"]) for pair in secret["keyToEnv"]}
        for settings in executor.get("configMapAsEnv", []):
            read |= {("ConfigMap", settings["configMapName"], pair["configMapKey"]) for pair in settings["keyToEnv"]}
    return read


def instructions() -> list[list[str]]:
    """The instructions of the Containerfile, one list a stage; the first holds what stands before any FROM."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            stages.append([])
        stages[-1].append(line)
    return stages


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_an_overlay_agrees_with_itself_and_its_surroundings(check, overlay):
    assert not list(check(overlay))


def ray(among: list[dict[str, Any]]) -> dict[str, Any]:
    return one(among, "RayCluster")["spec"]


def head(among: list[dict[str, Any]]) -> dict[str, Any]:
    return ray(among)["headGroupSpec"]["template"]["spec"]


def worker(among: list[dict[str, Any]], group: int = 0) -> dict[str, Any]:
    return ray(among)["workerGroupSpecs"][group]["template"]["spec"]


def mlflow(among: list[dict[str, Any]]) -> dict[str, Any]:
    return one(among, "Deployment")["spec"]["template"]["spec"]


def server(among: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = mlflow(among)["containers"]
    return container


def resources(among: list[dict[str, Any]]) -> dict[str, Any]:
    return worker(among)["containers"][0]["resources"]


def add_policy(among: list[dict[str, Any]], peers: list[dict[str, Any]], ports: list[str]) -> None:
    another = deepcopy(one(among, "NetworkPolicy", "ray"))
    rule = {"from": peers, "ports": [{"protocol": "TCP", "port": port} for port in ports]}
    another["spec"]["ingress"] = [{field: value for field, value in rule.items() if value}]
    among.append(another)


HOST_FOLDER = {"name": "host", "hostPath": {"path": "/dev"}}
OTHER_KEY = {"secretKeyRef": {"name": "maskocr-s3", "key": "KEY"}}
OTHER_FILE = {"secretName": "maskocr-mlflow-auth", "items": [{"key": "auth.ini", "path": "auth.ini"}]}
ANY_NAMESPACE = {"namespaceSelector": {}}
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
EVERYWHERE = {"ipBlock": {"cidr": "0.0.0.0/0"}}

# Check, mistake planted in what the overlay renders to, words of the complaint.
MISTAKES = {
    "production": [
        ("references", lambda m: server(m)["env"][0].update(valueFrom=OTHER_KEY), "Secret/maskocr-s3 KEY"),
        (
            "references",
            lambda m: worker(m)["containers"][0]["envFrom"][0]["configMapRef"].update(name="set"),
            "Map/set",
        ),
        ("references", lambda m: mlflow(m)["volumes"][-1].update(secret=OTHER_FILE), "auth.ini"),
        ("references", lambda m: redis_password(m).update(key="PASSWORD"), "maskocr-redis PASSWORD"),
        ("variables", lambda m: server(m)["env"].insert(0, {"name": "A", "value": "$(HOME)"}), "names $(HOME)"),
        ("images", lambda m: server(m).update(image="maskocr-python:0.0.9"), "the package is"),
        ("images", lambda m: server(m).update(image="docker.io/library/postgres:latest"), "no exact version"),
        (
            "accounts",
            lambda m: one(m, "ServiceAccount", "ray-head").pop("automountServiceAccountToken"),
            "Account/ray-head",
        ),
        ("accounts", lambda m: head(m).pop("automountServiceAccountToken"), "head hands a token"),
        ("accounts", lambda m: worker(m, 1).update(serviceAccountName="ray"), "nobody makes"),
        (
            "restricted",
            lambda m: worker(m, 1)["securityContext"].pop("runAsNonRoot"),
            "gpu-workers ray-worker may be root",
        ),
        ("restricted", lambda m: head(m)["securityContext"].update(runAsUser=0), "may be root"),
        ("restricted", lambda m: ray(m)["autoscalerOptions"].pop("securityContext"), "autoscaler may gain privileges"),
        ("restricted", lambda m: server(m)["securityContext"]["capabilities"].update(add=["NET_RAW"]), "capabilities"),
        ("restricted", lambda m: server(m)["securityContext"]["capabilities"].clear(), "capabilities"),
        ("restricted", lambda m: mlflow(m)["securityContext"].pop("seccompProfile"), "seccomp"),
        ("restricted", lambda m: worker(m)["volumes"].append(HOST_FOLDER), "hostPath"),
        ("restricted", lambda m: worker(m).update(hostNetwork=True), "hostNetwork"),
        ("restricted", lambda m: head(m)["containers"][0]["ports"][0].update(hostPort=6379), "port of its node"),
        ("restricted", lambda m: head(m)["containers"].append({"name": "second", "image": "a"}), "second may gain"),
        ("file systems", lambda m: server(m)["securityContext"].pop("readOnlyRootFilesystem"), "write everywhere"),
        ("file systems", lambda m: head(m)["volumes"].pop(1), "autoscaler cannot write to /tmp"),
        ("file systems", lambda m: head(m)["volumes"].pop(2), "mounts kubernetes-api"),
        ("file systems", lambda m: ray(m)["autoscalerOptions"].pop("env"), "no home"),
        ("quota", lambda m: resources(m).pop("limits"), "says nothing of limits.memory"),
        ("quota", lambda m: resources(m)["requests"].update(memory="17Gi"), "requests more memory"),
        ("quota", lambda m: ray(m)["workerGroupSpecs"][1].update(maxReplicas=9), "requests.nvidia.com/gpu: 9"),
        ("quota", lambda m: one(m, "ResourceQuota")["spec"]["hard"].pop("requests.memory"), "requests.memory"),
        ("ports", lambda m: one(m, "Service")["spec"]["ports"][0].update(port=5001), "which is not 5001"),
        ("ports", lambda m: one(m, "Service")["spec"]["selector"].update({"app": "web"}), "0 kinds of pods"),
        ("ports", lambda m: server(m)["command"].append("--port=5001"), "--port=5001"),
        ("ports", lambda m: server(m)["readinessProbe"]["httpGet"].update(port="web"), "readinessProbe"),
        (
            "ports",
            lambda m: one(m, "NetworkPolicy", "mlflow")["spec"]["ingress"][0]["ports"][0].update(port="w"),
            "opens w,",
        ),
        (
            "ports",
            lambda m: one(m, "PodMonitor")["spec"]["podMetricsEndpoints"][1].update(port="metric"),
            "not all have",
        ),
        (
            "ports",
            lambda m: one(m, "PodMonitor")["spec"]["podMetricsEndpoints"].pop(0),
            "nothing of RayCluster/maskocr workers",
        ),
        ("ports", lambda m: m.remove(one(m, "NetworkPolicy", "scraping")), "is kept from metrics"),
        ("ports", lambda m: ray(m)["workerGroupSpecs"][0]["rayStartParams"].clear(), "at another port"),
        (
            "ports",
            lambda m: one(m, "ConfigMap")["data"].update(MLFLOW_TRACKING_URI="http://mlflow:5001"),
            "mlflow:5001",
        ),
        ("ways in", lambda m: m.remove(one(m, "NetworkPolicy", "mlflow")), "Deployment/mlflow is open to everybody"),
        ("ways in", lambda m: add_policy(m, [], ["dashboard"]), "to everybody"),
        ("ways in", lambda m: add_policy(m, [ANY_NAMESPACE], ["metrics"]), "opens RayCluster/maskocr head"),
        ("ways in", lambda m: add_policy(m, [MONITORING], ["dashboard"]), "['dashboard']"),
        ("ways in", lambda m: add_policy(m, [MONITORING], []), "every port"),
        ("ways in", lambda m: add_policy(m, [EVERYWHERE], ["metrics"]), "ipBlock"),
        ("ways in", lambda m: one(m, "Service")["spec"].update(type="NodePort"), "published"),
        (
            "selectors",
            lambda m: one(m, "Deployment")["spec"]["selector"]["matchLabels"].update(app="web"),
            "its own pods",
        ),
        ("selectors", lambda m: one(m, "Deployment")["spec"].update(replicas=1), "lets all 1"),
    ],
    "kind-pilot": [
        ("variables", lambda m: server(m)["env"].reverse(), "names $(POSTGRES_PASSWORD)"),
        ("quota", lambda m: claim(m)["resources"]["requests"].update(storage="20Gi"), "requests.storage"),
        ("ports", lambda m: one(m, "Service", "postgres")["spec"]["ports"][0].update(port=5433), "postgres:5432"),
        ("ways in", lambda m: m.remove(one(m, "NetworkPolicy", "postgres")), "StatefulSet/postgres is open"),
        (
            "selectors",
            lambda m: one(m, "StatefulSet")["spec"]["selector"]["matchLabels"].update(app="web"),
            "its own pods",
        ),
    ],
}


def redis_password(among: list[dict[str, Any]]) -> dict[str, Any]:
    return ray(among)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]


def claim(among: list[dict[str, Any]]) -> dict[str, Any]:
    (only,) = one(among, "StatefulSet")["spec"]["volumeClaimTemplates"]
    return only["spec"]


@needs_kubectl
@pytest.mark.parametrize(
    ("name", "check", "plant", "words"),
    [
        pytest.param(name, *mistake, id=f"{name}, {mistake[0]}: {mistake[2]}")
        for name, mistakes in MISTAKES.items()
        for mistake in mistakes
    ],
)
def test_a_planted_mistake_is_noticed(name, check, plant, words):
    changed = deepcopy(rendered(name))
    plant(changed)
    assert [sentence for sentence in CHECKS[check](changed) if words in sentence]


def test_every_check_has_a_mistake_that_it_notices():
    assert {check for mistakes in MISTAKES.values() for check, *_ in mistakes} == set(CHECKS)


def test_what_a_task_of_the_pipeline_reads_exists_with_its_key(overlay):
    kept = {
        (manifest["kind"], manifest["metadata"]["name"], key)
        for manifest in overlay + EXAMPLES
        for key in manifest.get("data") or manifest.get("stringData") or {}
    }
    read = read_by_tasks()
    assert ("Secret", "maskocr-s3", "AWS_SECRET_ACCESS_KEY") in read, "the pipelines' YAML moved or changed its form"
    assert not read - kept


def test_manifests_keep_the_schemas_of_kubernetes(overlay):
    """Kubernetes has no schema of a RayCluster, but what it wraps are pods."""
    for manifest in (*overlay, *validation.pods_of(overlay)):
        if manifest["kind"] not in validation.CUSTOM:
            validate(manifest)


@pytest.mark.parametrize("example", [pytest.param(example, id=manifests.named(example)) for example in EXAMPLES])
def test_an_example_keeps_the_schema_of_kubernetes(example):
    validate(example)


@needs_kubectl
def test_a_misspelt_field_would_be_noticed(production):
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(one(production, "Service") | {"spce": {}})


RAY_FIELDS = {
    "": {
        "rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs",
        "enableInTreeAutoscaling", "autoscalerOptions", "gcsFaultToleranceOptions",
    },
    "headGroupSpec": {"rayStartParams", "template"},
    "autoscalerOptions": {"version", "idleTimeoutSeconds", "resources", "env", "securityContext", "volumeMounts"},
    "gcsFaultToleranceOptions": {"redisAddress", "redisPassword"},
}  # fmt: skip


def test_a_ray_cluster_has_the_fields_that_kuberay_reads(overlay):
    cluster = one(overlay, "RayCluster")
    spec = cluster["spec"]
    assert cluster["apiVersion"] == "ray.io/v1"
    for part, fields in RAY_FIELDS.items():
        assert set(spec.get(part, {}) if part else spec) <= fields
    for group in spec["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings only"


# Not marked `infra`: nobody has to have the schemas, or the scanner below.
@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.skipif(not validation.CRDS.is_dir(), reason="KubeRay's schemas are not here; infra/policy.md gets them")
@pytest.mark.parametrize("name", (*OVERLAYS, "ray-job"))
def test_what_ray_runs_by_keeps_the_schema_of_kuberay(name):
    (made,) = (deepcopy(one) for one in scanned(name) if one["kind"] in manifests.RAY)
    schema = validation.kuberay(made["kind"])
    assert not [error.message for error in schema.iter_errors(made)]
    manifests.ray_cluster(made)["workerGroupSpecs"][0]["maxReplica"] = 1
    assert not schema.is_valid(made)


def test_ray_asks_for_a_token(overlay):
    assert one(overlay, "RayCluster")["spec"]["authOptions"] == {"mode": "token"}


def test_the_ray_version_is_the_locked_one(overlay):
    locked = re.search(r"^ray(?:\[[^]]*\])?==([\w.]+)", LOCK, re.MULTILINE)[1]
    assert one(overlay, "RayCluster")["spec"]["rayVersion"] == locked


def test_only_the_autoscaler_gets_a_token_of_the_kubernetes_api(overlay):
    holders = {
        name
        for pod in manifests.pods(overlay)
        for name, container in pod.containers()
        for mount in container["volumeMounts"]
        if mount["mountPath"].startswith("/var/run/secrets/kubernetes.io")
    }
    autoscaled = one(overlay, "RayCluster")["spec"].get("enableInTreeAutoscaling", False)
    assert holders == ({"RayCluster/maskocr head autoscaler"} if autoscaled else set())


@needs_kubectl
def test_gpu_workers_differ_from_the_others_only_in_what_gpus_need(production):
    plain, gpu = worker(production, 0), worker(production, 1)
    (container,) = gpu["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    assert {toleration["key"] for toleration in gpu.pop("tolerations")} == {"nvidia.com/gpu"}
    assert gpu.pop("nodeSelector") == {"nvidia.com/gpu.present": "true"}
    container["resources"] = plain["containers"][0]["resources"]
    assert gpu == plain


@pytest.mark.parametrize(
    "folder", [BASE, *(INFRA / "overlays" / name for name in OVERLAYS)], ids=lambda path: path.name
)
def test_a_kustomization_uses_every_file_beside_it(folder):
    (kustomization,) = documents(folder / "kustomization.yaml")
    used = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))}
    assert {name for name in used if name.endswith(".yaml")} == {
        path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"
    }


def test_everything_lies_in_one_namespace(overlay):
    assert {manifest["metadata"].get("namespace") for manifest in overlay if manifest["kind"] != "Namespace"} == {
        one(overlay, "Namespace")["metadata"]["name"]
    }


def test_no_secret_is_applied_from_the_repository(overlay):
    assert not manifests.of_kind(overlay, "Secret")
    kept = [value for example in EXAMPLES for value in example["stringData"].values()]
    assert kept and all(re.search(r"replace-me|https://\w+\.example\.org", value) for value in kept)


def test_the_driver_that_a_database_address_names_is_locked(overlay):
    texts = [value for example in EXAMPLES for value in example["stringData"].values()]
    for pod in manifests.pods(overlay):
        texts += [
            variable.get("value", "") for _, container in pod.containers() for variable in container.get("env", [])
        ]
    drivers = set(re.findall(r"postgresql(?:\+(\w+))?://", "\n".join(texts)))
    assert drivers == {"psycopg2"}, "SQLAlchemy takes psycopg 3 where no driver is named"
    assert re.search(r"^psycopg2(-binary)?==", LOCK, re.MULTILINE)


def mlflow_options(among: list[dict[str, Any]]) -> dict[str, str]:
    options = (option for option in server(among)["command"] if option.startswith("--"))
    return dict(option.removeprefix("--").split("=", 1) for option in options)


def test_mlflow_answers_to_the_name_that_the_settings_give_its_clients(overlay):
    hosts = mlflow_options(overlay)["allowed-hosts"].split(",")
    assert one(overlay, "ConfigMap")["data"]["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts
    assert "*" not in hosts


@needs_kubectl
def test_mlflow_asks_for_a_log_in_and_the_image_holds_what_that_takes(production):
    assert mlflow_options(production)["app-name"] == "basic-auth"
    settings = {variable["name"]: variable.get("value") for variable in server(production)["env"]}
    folder, _, name = settings["MLFLOW_AUTH_CONFIG_PATH"].rpartition("/")
    (mounted,) = (mount["name"] for mount in server(production)["volumeMounts"] if mount["mountPath"] == folder)
    (secret,) = (volume["secret"] for volume in mlflow(production)["volumes"] if volume["name"] == mounted)
    assert [item["path"] for item in secret["items"]] == [name]
    # mlflow.server.auth ends the server without these.
    assert {"MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"} <= set(settings)
    locked = dict(line.split("==") for line in (INFRA / "mlflow-auth.lock").read_text().splitlines() if "==" in line)
    assert set(locked) == {"Flask-WTF", "WTForms"}
    twice = [name for name in locked if re.search(rf"^{name}==", LOCK, re.MULTILINE | re.IGNORECASE)]
    assert not twice, "requirements.lock has it by now: drop it from mlflow-auth.lock"


SCANNED = {name: INFRA / "overlays" / name for name in OVERLAYS} | {"ray-job": INFRA / "ray-job.yaml"}
CHECKOV = shutil.which("checkov", path=f"{os.environ.get('PATH', '')}{os.pathsep}{ROOT / 'work/checkov/bin'}")


def scanned(name: str) -> list[dict[str, Any]]:
    return JOB if name == "ray-job" else rendered(name)


def failed_by_policy() -> dict[str, set[tuple[str, str]]]:
    """(check, resource) by what is scanned, as infra/policy.md lists what stays failed; `both` are the overlays."""
    rows = re.findall(r"^\| (CKV\w+) [^|]*\| ([\w-]+) \| ([^|]+) \|", (INFRA / "policy.md").read_text(), re.MULTILINE)
    listed: dict[str, set[tuple[str, str]]] = {name: set() for name in SCANNED}
    for check, where, resources in rows:
        for name in OVERLAYS if where == "both" else (where,):
            listed[name] |= {(check, resource.strip(" `")) for resource in resources.split(",")}
    return listed


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.skipif(not CHECKOV, reason="checkov is not installed; infra/policy.md says how to get it")
@pytest.mark.parametrize("name", SCANNED)
def test_the_scanner_finds_what_the_policy_lists_and_nothing_else(name, tmp_path):
    command = [sys.executable, manifests.__file__, str(SCANNED[name])]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "all.yaml").write_text(shown.stdout)
    scan = [CHECKOV, "--framework", "kubernetes", "--skip-download", "--compact", "-o", "json", "-f", "all.yaml"]
    found = json.loads(subprocess.run(scan, cwd=tmp_path, capture_output=True, text=True).stdout)
    failed = {
        (check["check_id"], check["resource"].replace(".maskocr.", "/", 1))
        for check in found["results"]["failed_checks"]
    }
    assert failed == failed_by_policy()[name]
    said = re.search(rf"^\| {name} \| (\d+) \| (\d+) \|", (INFRA / "policy.md").read_text(), re.MULTILINE)
    assert (found["summary"]["passed"], found["summary"]["failed"]) == tuple(map(int, said.groups()))


@needs_kubectl
def test_what_the_page_says_of_the_validator_is_current():
    assert validation.page() == validation.PAGE.read_text(), (
        "run `python tests/validation.py` and commit infra/policy.md"
    )


def test_the_readme_builds_the_image_of_this_version():
    tags = re.findall(r"maskocr-python:([\w.]+)", (INFRA / "README.md").read_text())
    assert tags and set(tags) == {VERSION}


def test_the_base_image_has_an_exact_tag():
    (before, *stages) = instructions()
    assert [
        line for line in before if re.fullmatch(r"ARG BASE=docker\.io/library/python:3\.11\.\d+-slim-bookworm", line)
    ]
    assert all(stage[0].split()[1] == "${BASE}" for stage in stages)


def test_the_image_installs_the_locks_and_nothing_beside_them():
    installs = [line for stage in instructions() for line in stage if "pip install" in line]
    assert len(installs) == 2
    assert installs[0].endswith("-r /src/requirements.lock -r /src/mlflow-auth.lock")
    assert "pip install --no-deps --no-build-isolation /src" in installs[1]


def test_the_last_stage_only_copies_and_ends_as_a_user_without_rights():
    last = instructions()[-1]
    assert not [line for line in last if re.search(r"\b(apt-get|apk|pip|gcc|make)\b", line)], (
        "compilers and installers stay in the first stage"
    )
    assert [line for line in last if line.startswith("COPY")] == ["COPY --from=build /opt/maskocr /opt/maskocr"]
    assert [line for line in last if line.startswith("USER")] == ["USER 1000:1000"]
    assert not [line for line in last[last.index("USER 1000:1000") :] if line.startswith(("RUN", "ADD", "COPY"))]


def test_what_the_image_copies_is_here_and_is_sent_to_the_builder():
    sent = {
        line.removeprefix("!")
        for line in (INFRA / "Containerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for stage in instructions()
        for line in stage
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == sent
    assert not {name for name in copied if not (ROOT / name).exists()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {*project["tool"]["setuptools"]["package-dir"].values(), "maskocr_core"}
    assert folders | {project["project"]["readme"], *project["project"]["license-files"]} <= copied
