"""The deployment, checked without a cluster: schemas, references between files, and the rules that containers keep."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
BASE = INFRA / "base"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"maskocr-python:{VERSION}"


def documents(*paths: Path) -> list[dict[str, Any]]:
    return [document for path in paths for document in yaml.safe_load_all(path.read_text()) if document]


APPLIED = documents(*(path for path in sorted(BASE.glob("*.yaml")) if path.name != "kustomization.yaml"))
EXAMPLES = documents(INFRA / "secret.example.yaml")


def named(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in APPLIED if manifest["kind"] == kind]


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests ask for, Ray's included, by the name of who makes it."""
    for deployment in of_kind("Deployment"):
        yield named(deployment), deployment["spec"]["template"]
    for cluster in of_kind("RayCluster"):
        yield f"{named(cluster)} head", cluster["spec"]["headGroupSpec"]["template"]
        for group in cluster["spec"]["workerGroupSpecs"]:
            yield f"{named(cluster)} {group['groupName']}", group["template"]


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for owner, template in pod_templates():
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            yield f"{owner} {container['name']}", template["spec"], container


POD_TEMPLATES = [pytest.param(template, id=owner) for owner, template in pod_templates()]
CONTAINERS = [pytest.param(pod, container, id=name) for name, pod, container in containers()]


def references() -> Iterator[tuple[str, str, str | None]]:
    """(kind, name, key) of every secret and config map that a container or a task of the pipeline reads; key None is all of it."""
    for _, _, container in containers():
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if field in source:
                    yield kind, source[field]["name"], source[field]["key"]
        for source in container.get("envFrom", []):
            for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if field in source:
                    yield kind, source[field]["name"], None
    for path in sorted((ROOT / "pipelines").glob("*.yaml")):
        _, platforms = documents(path)
        for executor in platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            for secret in executor.get("secretAsEnv", []):
                yield from (("Secret", secret["secretName"], pair["secretKey"]) for pair in secret["keyToEnv"])
            for settings in executor.get("configMapAsEnv", []):
                yield from (
                    ("ConfigMap", settings["configMapName"], pair["configMapKey"]) for pair in settings["keyToEnv"]
                )


def instructions() -> list[list[str]]:
    """The instructions of the Containerfile, one list a stage; the first holds what stands before any FROM."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            stages.append([])
        stages[-1].append(line)
    return stages


@pytest.mark.parametrize(
    "manifest",
    [pytest.param(manifest, id=named(manifest)) for manifest in APPLIED + EXAMPLES if manifest["kind"] != "RayCluster"],
)
def test_a_manifest_keeps_the_schema_of_kubernetes(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_a_misspelt_field_would_be_noticed():
    (service,) = of_kind("Service")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service | {"spce": {}}, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("template", POD_TEMPLATES)
def test_a_pod_template_is_a_pod(template):
    """No schema of RayCluster is at hand, but what it wraps are pods."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one"} | template["metadata"],
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_ray_cluster_has_the_fields_that_kuberay_reads():
    (cluster,) = of_kind("RayCluster")
    spec = cluster["spec"]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert set(spec) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert set(spec["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings only"


def test_ray_asks_for_a_token():
    (cluster,) = of_kind("RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_the_ray_version_is_the_locked_one():
    (cluster,) = of_kind("RayCluster")
    locked = re.search(r"^ray(?:\[[^]]*\])?==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]
    assert cluster["spec"]["rayVersion"] == locked


def test_the_kustomization_lists_every_manifest():
    (kustomization,) = documents(BASE / "kustomization.yaml")
    assert sorted(kustomization["resources"]) == sorted(
        path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml"
    )


@pytest.mark.infra
@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_kustomization_renders_every_manifest_into_its_namespace():
    rendered = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True).stdout
    manifests = [document for document in yaml.safe_load_all(rendered) if document]
    assert sorted(map(named, manifests)) == sorted(map(named, APPLIED))
    assert {manifest["metadata"]["namespace"] for manifest in manifests if manifest["kind"] != "Namespace"} == {
        "maskocr"
    }


@pytest.mark.parametrize(("kind", "name", "key"), sorted(set(references()), key=str))
def test_what_a_container_or_task_reads_exists_with_its_key(kind, name, key):
    kept = {
        (manifest["kind"], manifest["metadata"]["name"]): manifest.get("data") or manifest.get("stringData") or {}
        for manifest in APPLIED + EXAMPLES
    }
    assert (kind, name) in kept
    assert kept[kind, name] if key is None else key in kept[kind, name]


def test_the_pipeline_is_among_the_readers():
    """The check above would be empty if the pipeline's YAML moved or changed its form."""
    assert {
        ("Secret", "maskocr-s3", "AWS_SECRET_ACCESS_KEY"),
        ("ConfigMap", "maskocr-settings", "MASKOCR_STORE"),
    } <= set(references())


def test_no_secret_is_applied_from_the_repository():
    assert not of_kind("Secret")
    kept = [value for example in EXAMPLES for value in example["stringData"].values()]
    assert kept and all("replace-me" in value for value in kept)


def test_the_driver_that_the_database_address_names_is_locked():
    (postgres,) = (example for example in EXAMPLES if example["metadata"]["name"] == "maskocr-postgres")
    driver = re.match(r"postgresql\+(\w+)://", postgres["stringData"]["MLFLOW_BACKEND_STORE_URI"])[1]
    assert re.search(rf"^{driver}(-binary)?==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_a_container_runs_the_image_of_this_version(pod, container):
    assert container["image"] == IMAGE


def test_the_readme_builds_the_image_of_this_version():
    tags = re.findall(r"maskocr-python:([\w.]+)", (INFRA / "README.md").read_text())
    assert tags and set(tags) == {VERSION}


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_a_container_is_no_root_and_gains_no_privilege(pod, container):
    merged = pod["securityContext"] | container["securityContext"]
    assert merged["runAsNonRoot"] is True and merged["runAsUser"] >= 1000
    assert merged["allowPrivilegeEscalation"] is False and not merged.get("privileged")
    assert merged["capabilities"] == {"drop": ["ALL"]}
    assert merged["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_a_container_with_a_read_only_file_system_can_write_to_tmp(pod, container):
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert "emptyDir" in next(volume for volume in pod["volumes"] if volume["name"] == mounts["/tmp"])
    assert {"name": "HOME", "value": "/tmp"} in container["env"]


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_a_container_says_what_memory_it_takes(pod, container):
    assert container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("template", POD_TEMPLATES)
def test_a_pod_uses_a_service_account_that_exists(template):
    assert template["spec"]["serviceAccountName"] in {
        account["metadata"]["name"] for account in of_kind("ServiceAccount")
    }


@pytest.mark.parametrize("template", POD_TEMPLATES)
def test_a_pod_is_closed_to_other_namespaces(template):
    (policy,) = of_kind("NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {}}]}], (
        "a peer without namespaceSelector is of this namespace"
    )


def test_a_service_leads_to_a_port_of_its_pods():
    for service in of_kind("Service"):
        selected = [
            template
            for _, template in pod_templates()
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]
        assert len(selected) == 1, f"{named(service)} selects {len(selected)} pods"
        ports = {
            port["name"]: port["containerPort"]
            for container in selected[0]["spec"]["containers"]
            for port in container["ports"]
        }
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_a_deployment_selects_its_own_pods():
    for deployment in of_kind("Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_mlflow_listens_where_the_settings_send_its_clients():
    (deployment,), (service,), (settings,) = of_kind("Deployment"), of_kind("Service"), of_kind("ConfigMap")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    host = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    options = dict(
        option.removeprefix("--").split("=", 1) for option in container["command"] if option.startswith("--")
    )
    assert settings["data"]["MLFLOW_TRACKING_URI"] == f"http://{host}"
    assert host in options["allowed-hosts"].split(",") and "*" not in options["allowed-hosts"].split(",")
    assert int(options["port"]) == container["ports"][0]["containerPort"]


def test_the_base_image_has_an_exact_tag():
    (before, *stages) = instructions()
    assert [
        line for line in before if re.fullmatch(r"ARG BASE=docker\.io/library/python:3\.11\.\d+-slim-bookworm", line)
    ]
    assert all(stage[0].split()[1] == "${BASE}" for stage in stages)


def test_the_image_installs_the_lock_and_nothing_beside_it():
    installs = [line for stage in instructions() for line in stage if "pip install" in line]
    assert len(installs) == 2
    assert "-r /src/requirements.lock" in installs[0]
    assert "pip install --no-deps /src" in installs[1]


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
