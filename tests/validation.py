"""What the validator, and our own checks, say of each overlay and of the example of a job.

As a program it writes that into infra/policy.md: python tests/validation.py
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import manifests
import yaml

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
PAGE = INFRA / "policy.md"
OVERLAYS = ("kind-pilot", "production")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CUSTOM = {*manifests.RAY, "PodMonitor"}
# KubeRay's own schemas are not kept here: infra/policy.md says how to get them.
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT / "work/kuberay/helm-chart/kuberay-operator/crds"))
_BLOCK = re.compile(r"(?<=<!-- validator -->\n```\n).*?(?=```\n<!-- end -->)", re.DOTALL)


def documents(*paths: Path) -> list[dict[str, Any]]:
    return [document for path in paths for document in yaml.safe_load_all(path.read_text()) if document]


EXAMPLES = documents(INFRA / "secret.example.yaml")
JOB = documents(INFRA / "ray-job.yaml")


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    return manifests.render(INFRA / "overlays" / overlay)


def tasks() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(container, what is of Kubernetes) of every task of the pipelines."""
    found = []
    for path in sorted((ROOT / "pipelines").glob("*.yaml")):
        pipeline, platforms = documents(path)
        on_kubernetes = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for name, executor in pipeline["deploymentSpec"]["executors"].items():
            found.append((executor.get("container", {}), on_kubernetes.get(name, {})))
    return found


def largest_task() -> dict[str, str]:
    asked = [container["resources"] for container, _ in tasks() if "resources" in container]
    largest = max(asked, key=lambda resources: manifests.quantity(resources["resourceMemoryLimit"]))
    return {
        "requests.cpu": largest["resourceCpuRequest"],
        "requests.memory": largest["resourceMemoryRequest"],
        "limits.memory": largest["resourceMemoryLimit"],
    }


CHECKS = {
    "references": lambda among: manifests.dangling_references(among, EXAMPLES),
    "variables": manifests.unready_variables,
    "images": lambda among: manifests.wrong_images(among, VERSION),
    "accounts": manifests.wrong_accounts,
    "restricted": manifests.unrestricted,
    "file systems": manifests.unwritable,
    "quota": lambda among: manifests.beyond_quota(among, largest_task()),
    "ports": manifests.disagreeing_ports,
    "ways in": manifests.open_ways,
    "selectors": manifests.wrong_selectors,
}


def validate(manifest: dict[str, Any]) -> None:
    """Against the schema of Kubernetes, which knows pods, but not what KubeRay wraps them in."""
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def pods_of(among: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pod in manifests.pods(among):
        metadata = {"name": "one", "labels": pod.labels}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every unlisted field refused, as `kubectl apply` does by default."""
    for part in list(schema.values()):
        for inner in part if isinstance(part, list) else [part]:
            if isinstance(inner, dict):
                closed(inner)
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@cache
def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    """KubeRay's own schema of a kind."""
    (crd,) = documents(CRDS / f"ray.io_{kind.lower()}s.yaml")
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def told(name: str, among: list[dict[str, Any]]) -> str:
    """What the validator and each check say. Raises ValidationError, with the field, where a schema is not kept."""
    own = [manifest for manifest in among if manifest["kind"] not in CUSTOM]
    pods = list(pods_of(among))
    for manifest in (*own, *pods):
        validate(manifest)
    wrapped = ", ".join(manifests.named(manifest) for manifest in among if manifest["kind"] in CUSTOM)
    lines = [
        f"{name}",
        f"  kubernetes-validate, strict, Kubernetes {kubernetes_validate.latest_version()}: {len(own)} manifests and "
        f"{len(pods)} pods are valid; not known to it: {wrapped}",
    ]
    for check, run in CHECKS.items():
        lines += [f"  {check}: {sentence}" for sentence in list(run(among)) or ["no complaint"]]
    return "\n".join(lines) + "\n"


def page() -> str:
    """infra/policy.md with what is said now."""
    shown = [told(f"infra/overlays/{name}", rendered(name)) for name in OVERLAYS]
    shown.append(told("infra/ray-job.yaml beside infra/overlays/production", rendered("production") + JOB))
    text, blocks = _BLOCK.subn(lambda _: "\n".join(shown), PAGE.read_text())
    assert blocks == 1, "the page has lost its mark"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
