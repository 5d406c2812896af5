"""What the manifests of infra/ have to agree on. A check yields a sentence for each mistake.

As a program it prints an overlay, or a file, with the pods of Ray written out, for a scanner that knows no RayCluster:
python tests/manifests.py infra/overlays/production
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
# Kubernetes puts it into every namespace.
ALWAYS_THERE = {("ConfigMap", "kube-root-ca.crt"): {"ca.crt"}}
# What a neighbour may read of a Ray node: figures. All other ports run code, or lead to what runs it.
METRICS = {"metrics", "as-metrics", "dash-metrics"}
RAY = {"RayCluster", "RayJob"}
UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def render(folder: Path) -> list[Manifest]:
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return [manifest for manifest in yaml.safe_load_all(built.stdout) if manifest]


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


@dataclass(frozen=True)
class Pod:
    """A pod that some manifest asks for. copies: how many at most."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]
    copies: int

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for container in [*self.spec["containers"], *self.spec.get("initContainers", [])]:
            yield f"{self.owner} {container['name']}", container

    def ports(self) -> dict[str, int]:
        return {
            port["name"]: port["containerPort"]
            for _, container in self.containers()
            for port in container.get("ports", [])
        }


def pods(manifests: list[Manifest]) -> Iterator[Pod]:
    for manifest in manifests:
        spec, owner = manifest.get("spec", {}), named(manifest)
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield _pod(owner, spec["template"], spec["replicas"])
        elif manifest["kind"] in RAY:
            cluster = ray_cluster(manifest)
            yield _pod(f"{owner} head", _with_autoscaler(cluster), 1)
            for group in cluster["workerGroupSpecs"]:
                yield _pod(f"{owner} {group['groupName']}", group["template"], group["maxReplicas"])
        elif "template" in spec or "jobTemplate" in spec or manifest["kind"] == "Pod":
            raise ValueError(f"{owner}: the checks do not know the pods of this kind")


def ray_cluster(manifest: Manifest) -> dict[str, Any]:
    """The cluster that a RayCluster is, or that a RayJob makes for itself."""
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def ray_clusters(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((named(one), ray_cluster(one)) for one in manifests if one["kind"] in RAY)


def _pod(owner: str, template: dict[str, Any], copies: int) -> Pod:
    return Pod(owner, template["metadata"]["labels"], template["spec"], copies)


def _with_autoscaler(cluster: dict[str, Any]) -> dict[str, Any]:
    """The head's template with the container that KubeRay puts beside Ray."""
    template = cluster["headGroupSpec"]["template"]
    if not cluster.get("enableInTreeAutoscaling"):
        return template
    ray, options = template["spec"]["containers"][0], cluster.get("autoscalerOptions", {})
    taken = ("resources", "securityContext", "volumeMounts", "env", "envFrom")
    beside = {"name": "autoscaler", "image": options.get("image", ray["image"]), "imagePullPolicy": "IfNotPresent"}
    beside |= {field: options[field] for field in taken if field in options}
    return template | {"spec": template["spec"] | {"containers": [*template["spec"]["containers"], beside]}}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if set(selector) - {"matchLabels"}:
        raise ValueError(f"the checks read matchLabels only, not {selector}")
    return selector.get("matchLabels", {}).items() <= labels.items()


def references(manifests: list[Manifest]) -> Iterator[tuple[str, str, str, str | None]]:
    """(reader, kind, name, key) of every secret, config map and claim that is read; key None is all of it."""
    kinds = {
        "secretKeyRef": "Secret",
        "configMapKeyRef": "ConfigMap",
        "secretRef": "Secret",
        "configMapRef": "ConfigMap",
    }
    for pod in pods(manifests):
        for reader, container in pod.containers():
            for variable in [*container.get("env", []), *container.get("envFrom", [])]:
                for field, source in variable.get("valueFrom", variable).items():
                    if field in kinds:
                        yield reader, kinds[field], source["name"], source.get("key")
        for volume in pod.spec.get("volumes", []):
            for source in [volume, *volume.get("projected", {}).get("sources", [])]:
                for field, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
                    if field in source:
                        name = source[field].get("secretName") or source[field]["name"]
                        for key in [item["key"] for item in source[field].get("items", [])] or [None]:
                            yield pod.owner, kind, name, key
            if "persistentVolumeClaim" in volume:
                yield pod.owner, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
    for owner, cluster in ray_clusters(manifests):
        for field in ("redisUsername", "redisPassword"):
            source = cluster.get("gcsFaultToleranceOptions", {}).get(field, {}).get("valueFrom")
            if source:
                yield owner, "Secret", source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]


def dangling_references(manifests: list[Manifest], examples: list[Manifest]) -> Iterator[str]:
    kept = ALWAYS_THERE | {
        (manifest["kind"], manifest["metadata"]["name"]): set(manifest.get("data") or manifest.get("stringData") or ())
        for manifest in manifests + examples
        if manifest["kind"] in ("Secret", "ConfigMap")
    }
    kept |= {
        ("PersistentVolumeClaim", one["metadata"]["name"]): {"volume"}
        for one in of_kind(manifests, "PersistentVolumeClaim")
    }
    for reader, kind, name, key in references(manifests):
        keys = kept.get((kind, name), set())
        if not keys or (key is not None and key not in keys):
            yield f"{reader} reads {kind}/{name} {key or ''}, which nobody makes"


def unready_variables(manifests: list[Manifest]) -> Iterator[str]:
    """Kubernetes fills in $(NAME) only from variables that stand before it."""
    for pod in pods(manifests):
        for reader, container in pod.containers():
            known: set[str] = set()
            for variable in container.get("env", []):
                for name in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                    if name not in known:
                        yield f"{reader}: {variable['name']} names $({name}), which does not stand above it"
                known.add(variable["name"])


def wrong_images(manifests: list[Manifest], version: str) -> Iterator[str]:
    for pod in pods(manifests):
        for name, container in pod.containers():
            repository, _, tag = container["image"].rpartition(":")
            if repository == "maskocr-python" and tag != version:
                yield f"{name} runs {container['image']}, the package is {version}"
            elif repository != "maskocr-python" and not re.match(r"\d+\.\d+", tag):
                yield f"{name} runs {container['image']}, whose tag is no exact version"


def wrong_accounts(manifests: list[Manifest]) -> Iterator[str]:
    """A token of the Kubernetes API lies in no container that does not ask for it by a mount."""
    accounts = {account["metadata"]["name"]: account for account in of_kind(manifests, "ServiceAccount")}
    for name, account in accounts.items():
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount/{name} hands its token to every container"
    for pod in pods(manifests):
        if pod.spec.get("serviceAccountName") not in accounts:
            yield f"{pod.owner} runs as {pod.spec.get('serviceAccountName')}, an account that nobody makes"
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner} hands a token to every container"


def unrestricted(manifests: list[Manifest]) -> Iterator[str]:
    """What Kubernetes' Pod Security level `restricted` would refuse."""
    for pod in pods(manifests):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field):
                yield f"{pod.owner} sets {field}"
        for volume in pod.spec.get("volumes", []):
            if not set(volume) - {"name"} <= RESTRICTED_VOLUMES:
                yield f"{pod.owner} mounts {volume}"
        for name, container in pod.containers():
            merged = pod.spec.get("securityContext", {}) | container.get("securityContext", {})
            if merged.get("runAsNonRoot") is not True or merged.get("runAsUser") == 0:
                yield f"{name} may be root"
            if merged.get("allowPrivilegeEscalation") is not False or merged.get("privileged"):
                yield f"{name} may gain privileges"
            capabilities = merged.get("capabilities", {})
            if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
                yield f"{name} keeps capabilities"
            if merged.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
                yield f"{name} has no seccomp profile"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{name} takes a port of its node"


def unwritable(manifests: list[Manifest]) -> Iterator[str]:
    """More than `restricted` asks for: the file system is read-only, and /tmp is a folder of the pod's own."""
    for pod in pods(manifests):
        kinds = {volume["name"]: set(volume) - {"name"} for volume in pod.spec.get("volumes", [])}
        for name, container in pod.containers():
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{name} may write everywhere"
            mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            for path, volume in mounts.items():
                if volume not in kinds and not _claimed(manifests, pod, volume):
                    yield f"{name} mounts {volume} at {path}, which the pod does not have"
            if kinds.get(mounts.get("/tmp", ""), set()) != {"emptyDir"}:
                yield f"{name} cannot write to /tmp"
            if container["image"].startswith("maskocr-python:") and {
                "name": "HOME",
                "value": "/tmp",
            } not in container.get("env", []):
                yield f"{name} has no home that it may write to"


def _claimed(manifests: list[Manifest], pod: Pod, volume: str) -> bool:
    claims = (
        claim for one in manifests if named(one) == pod.owner for claim in one["spec"].get("volumeClaimTemplates", [])
    )
    return volume in {claim["metadata"]["name"] for claim in claims}


def quantity(text: str | float) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) * UNITS[unit]


def beyond_quota(manifests: list[Manifest], task: dict[str, str]) -> Iterator[str]:
    """task: what the largest task of a pipeline takes, which runs beside all of this."""
    (quota,) = of_kind(manifests, "ResourceQuota")
    hard = {name: quantity(value) for name, value in quota["spec"]["hard"].items()}
    taken = {name: quantity(value) for name, value in task.items()}
    for pod in pods(manifests):
        for name, container in pod.containers():
            said = {
                f"{word}.{resource}": quantity(value)
                for word in ("requests", "limits")
                for resource, value in container.get("resources", {}).get(word, {}).items()
            }
            for needed in ("requests.cpu", "requests.memory", "limits.memory"):
                if needed not in said:
                    yield f"{name} says nothing of {needed}"
            for resource in {field.partition(".")[2] for field in said}:
                if said.get(f"requests.{resource}", 0) > said.get(f"limits.{resource}", float("inf")):
                    yield f"{name} requests more {resource} than it may take"
            for field, value in said.items():
                taken[field] = taken.get(field, 0) + pod.copies * value
    for owner in of_kind(manifests, "StatefulSet"):
        for claim in owner["spec"].get("volumeClaimTemplates", []):
            copies = owner["spec"]["replicas"]
            taken["persistentvolumeclaims"] = taken.get("persistentvolumeclaims", 0) + copies
            size = copies * quantity(claim["spec"]["resources"]["requests"]["storage"])
            taken["requests.storage"] = taken.get("requests.storage", 0) + size
    # The quota holds no limits of cores, which tasks do not have, and none of GPUs, which equal the requests.
    for field in sorted(set(taken) - {"limits.cpu", "limits.nvidia.com/gpu"}):
        if taken[field] > hard.get(field, 0):
            yield f"{field}: {taken[field]:g} wanted, the quota grants {hard.get(field, 0):g}"


def disagreeing_ports(manifests: list[Manifest]) -> Iterator[str]:
    everyone = list(pods(manifests))
    for service in of_kind(manifests, "Service"):
        behind = [pod for pod in everyone if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        if len(behind) != 1:
            yield f"{named(service)} leads to {len(behind)} kinds of pods"
        for port in service["spec"]["ports"]:
            for pod in behind:
                if pod.ports().get(port["targetPort"]) != port["port"]:
                    yield f"{named(service)} leads to {port['targetPort']} of {pod.owner}, which is not {port['port']}"
    for policy in of_kind(manifests, "NetworkPolicy"):
        known = {name for pod in everyone if selects(policy["spec"]["podSelector"], pod.labels) for name in pod.ports()}
        for rule in policy["spec"]["ingress"]:
            for port in rule.get("ports", []):
                if port["port"] not in known:
                    yield f"{named(policy)} opens {port['port']}, which no pod behind it has by that name"
    for monitor in of_kind(manifests, "PodMonitor"):
        scraped = [pod for pod in everyone if selects(monitor["spec"]["selector"], pod.labels)]
        wanted = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        if not scraped or wanted - {name for pod in scraped for name in pod.ports()}:
            yield f"{named(monitor)} scrapes {sorted(wanted)}, which its pods do not all have"
        for pod in scraped:
            if not wanted & set(pod.ports()):
                yield f"{named(monitor)} scrapes nothing of {pod.owner}"
            for port in wanted & set(pod.ports()) - _admitted(manifests, pod):
                yield f"{named(monitor)} is kept from {port} of {pod.owner}: no policy admits another namespace"
    for pod in everyone:
        for name, container in pod.containers():
            yield from _own_ports(name, container)
    yield from _ray_ports(manifests)
    yield from _addresses(manifests)


def _own_ports(name: str, container: dict[str, Any]) -> Iterator[str]:
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(probe, {}).get("httpGet", {}).get("port")
        if asked is not None and asked not in ports:
            yield f"{name}: the {probe} asks port {asked}"
    for option in container.get("command", []):
        if option.startswith("--port=") and int(option.removeprefix("--port=")) not in ports.values():
            yield f"{name} listens by {option}, which is none of its ports"


def _ray_ports(manifests: list[Manifest]) -> Iterator[str]:
    for owner, cluster in ray_clusters(manifests):
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            ports = {
                port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]
            }
            if group["rayStartParams"].get("metrics-export-port") != str(ports.get("metrics")):
                yield f"{owner} {group.get('groupName', 'head')} shows metrics at another port than its pod"


def _addresses(manifests: list[Manifest]) -> Iterator[str]:
    """Short host names in settings and variables are Services of this namespace."""
    served = {
        (one["metadata"]["name"], port["port"])
        for one in of_kind(manifests, "Service")
        for port in one["spec"]["ports"]
    }
    texts = [(named(one), text) for one in of_kind(manifests, "ConfigMap") for text in one["data"].values()]
    for pod in pods(manifests):
        for name, container in pod.containers():
            texts += [(name, variable.get("value", "")) for variable in container.get("env", [])]
    for where, text in texts:
        for host, port in re.findall(r"://(?:[^@/]*@)?([a-z0-9-]+):(\d+)", text):
            if (host, int(port)) not in served:
                yield f"{where} names {host}:{port}, which no Service offers"


def _admitted(manifests: list[Manifest], pod: Pod) -> set[str]:
    """The ports of a pod that some policy opens to another namespace."""
    return {
        port["port"]
        for policy in of_kind(manifests, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], pod.labels)
        for rule in policy["spec"]["ingress"]
        if any("namespaceSelector" in peer for peer in rule.get("from", []))
        for port in rule.get("ports", [])
    }


def open_ways(manifests: list[Manifest]) -> Iterator[str]:
    """Ways into a pod from outside the namespace, but for Ray's metrics to those who scrape them."""
    for pod in pods(manifests):
        policies = [
            one for one in of_kind(manifests, "NetworkPolicy") if selects(one["spec"]["podSelector"], pod.labels)
        ]
        if not any("Ingress" in policy["spec"]["policyTypes"] for policy in policies):
            yield f"{pod.owner} is open to everybody: no policy selects it"
        for policy in policies:
            for rule in policy["spec"].get("ingress", []):
                outside = [peer for peer in rule.get("from", []) if set(peer) != {"podSelector"}]
                ports = {port["port"] for port in rule.get("ports", [])}
                if not rule.get("from"):
                    yield f"{named(policy)} opens {pod.owner} to everybody"
                elif outside and not (
                    all(peer.get("namespaceSelector", {}).get("matchLabels") for peer in outside)
                    and ports
                    and ports <= METRICS
                ):
                    yield f"{named(policy)} opens {pod.owner} to {outside} at {sorted(ports) or 'every port'}"
    for service in of_kind(manifests, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP" or service["spec"].get("externalIPs"):
            yield f"{named(service)} is published outside the cluster"


def wrong_selectors(manifests: list[Manifest]) -> Iterator[str]:
    for owner in of_kind(manifests, "Deployment") + of_kind(manifests, "StatefulSet"):
        if not selects(owner["spec"]["selector"], owner["spec"]["template"]["metadata"]["labels"]):
            yield f"{named(owner)} does not select its own pods"
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        copies = sum(pod.copies for pod in pods(manifests) if selects(budget["spec"]["selector"], pod.labels))
        if copies <= budget["spec"]["maxUnavailable"]:
            yield f"{named(budget)} lets all {copies} of its pods go at once"


def main(place: str) -> None:
    path = Path(place)
    manifests = render(path) if path.is_dir() else [one for one in yaml.safe_load_all(path.read_text()) if one]
    written_out = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": re.sub(r"\W+", "-", pod.owner).lower(), "namespace": "maskocr", "labels": pod.labels},
            "spec": pod.spec,
        }
        for pod in pods([one for one in manifests if one["kind"] in RAY])
    ]
    print(yaml.safe_dump_all(manifests + written_out, sort_keys=False), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
