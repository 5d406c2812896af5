"""The example of a job of Ray: its manifest beside an overlay, and its command line at a real job server."""

import re
import shlex
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import manifests
import nodes
import pytest
import servers
import typer.main
import validation
from test_infra import needs_kubectl
from validation import CHECKS, JOB, rendered

from maskocr_core import cli
from maskocr_core.artifacts import Artifact

PATIENCE = 600  # seconds


def job() -> dict[str, Any]:
    (only,) = manifests.of_kind(JOB, "RayJob")
    return only


def commands() -> list[list[str]]:
    return [shlex.split(command) for command in job()["spec"]["entrypoint"].split("&&")]


@needs_kubectl
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_job_agrees_with_the_overlay_that_it_lies_beside_but_for_the_way_in_of_the_operator(check):
    said = list(check(rendered("production") + deepcopy(JOB)))
    assert not [sentence for sentence in said if not sentence.startswith("NetworkPolicy/ray-job-operator opens")]
    if check is CHECKS["ways in"]:
        (sentence,) = said
        assert "RayJob/pretraining head" in sentence and "at ['dashboard']" in sentence


@needs_kubectl
def test_a_job_without_its_volume_or_with_another_image_would_be_noticed():
    changed = rendered("production") + [one for one in deepcopy(JOB) if one["kind"] != "PersistentVolumeClaim"]
    assert list(CHECKS["references"](changed)) == [
        "RayJob/pretraining head reads PersistentVolumeClaim/maskocr-pretraining , which nobody makes"
    ]
    (made,) = manifests.of_kind(changed, "RayJob")
    manifests.ray_cluster(made)["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = "maskocr-python:0.0.9"
    assert list(CHECKS["images"](changed))


def test_the_job_keeps_the_schemas_of_kubernetes():
    for manifest in (*JOB, *validation.pods_of(JOB)):
        if manifest["kind"] not in validation.CUSTOM:
            validation.validate(manifest)


FIELDS = {
    "submissionMode": str, "entrypoint": str, "backoffLimit": int, "preRunningDeadlineSeconds": int,
    "activeDeadlineSeconds": int, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int,
    "rayClusterSpec": dict,
}  # fmt: skip


def test_the_job_has_fields_that_kuberay_reads_and_ends_by_itself():
    spec = job()["spec"]
    assert job()["apiVersion"] == "ray.io/v1"
    assert {name: type(value) for name, value in spec.items()} == FIELDS
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0 and spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
    assert spec["submissionMode"] == "HTTPMode", "in other modes KubeRay adds a container that is not restricted"


@needs_kubectl
def test_the_cluster_of_the_job_is_that_of_the_overlay_in_version_and_token():
    (cluster,) = manifests.of_kind(rendered("production"), "RayCluster")
    mine = manifests.ray_cluster(job())
    for field in ("rayVersion", "authOptions"):
        assert mine[field] == cluster["spec"][field]


def test_the_commands_of_the_job_parse_and_each_reads_what_one_before_it_wrote():
    known, written = typer.main.get_command(cli.app).commands, set()
    for program, stage, *words in commands():
        assert program == "maskocr"
        options = {option for parameter in known[stage].params for option in parameter.opts}
        given = dict(zip(words[::2], words[1::2]))
        assert set(given) <= options
        for option, value in given.items():
            if option.endswith("-out"):
                written.add(value)
            elif value.startswith("/"):
                assert value in written, f"{stage} reads {value}, which nothing before it writes"
    assert Path("/work/encoder").as_posix() in written


@pytest.mark.cluster
@pytest.mark.services
def test_the_command_line_of_the_job_pre_trains_an_encoder_where_it_is_handed_in_over_http(
    raw, at_s3, tmp_path, monkeypatch
):
    from ray.job_submission import JobStatus, JobSubmissionClient

    data = at_s3.put_folder(raw / "target", "s3://lines-bucket/raw/target")
    entrypoint = job()["spec"]["entrypoint"].replace("s3://maskocr/raw/target", data)
    entrypoint = re.sub(r"(?<= )/work/", f"{tmp_path}/work/", entrypoint.replace("--recipe small", "--recipe smoke"))
    monkeypatch.setenv("MASKOCR_STORE", "s3://other-bucket/job")
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "work" / "stages"))
    monkeypatch.delenv("MASKOCR_MAP")
    with nodes.one_node(jobs=servers.free_ports(1)) as address:
        client = JobSubmissionClient(address)
        name, deadline = nodes.submitted(client, entrypoint), time.monotonic() + PATIENCE
        while not (status := client.get_job_status(name)).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        said = client.get_job_logs(name)
    assert status == JobStatus.SUCCEEDED, said
    made = Artifact(tmp_path / "work" / "encoder")
    assert made.read_bytes("encoder.safetensors") and made.metrics["steps"] == 8
    assert not list(made.folder.glob("*.safetensors")), "the weights are in the store"
    assert not at_s3.keys("other-bucket", "job/unfinished"), "checkpoints go when it is finished"
