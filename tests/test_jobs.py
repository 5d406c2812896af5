"""Stages as jobs of a Ray cluster elsewhere, at a real job server on loopback."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import nodes
import packed
import psutil
import pytest
import servers
from conftest import REPOSITORY

from maskocr_core import config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.services import jobs

INPUTS = ("lines", "selection", "codebook")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    lines = packed.pack(folder, {"unlabeled": packed.short_lines(16, seed=0)})
    packed.quantized(folder / "codebook", lines, config.load("smoke"))
    return folder


@pytest.fixture(scope="module")
def server():
    with nodes.one_node(jobs=servers.free_ports(1)) as address:
        yield address


def pretrain(root, out, *changes):
    inputs = {name: root / name for name in INPUTS}
    return stages.get("pretrain")(config.load("smoke", ["pretrain.workers=0", *changes]), **inputs, encoder_out=out)


@pytest.mark.cluster
def test_a_stage_runs_as_a_job_and_leaves_what_it_leaves_here(root, server, tmp_path, monkeypatch, capfd):
    pretrain(root, tmp_path / "here")
    monkeypatch.setenv("RAY_ADDRESS", server)
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "elsewhere"))
    figures = pretrain(root, tmp_path / "there", "pretrain.workers=1")
    said = capfd.readouterr().err
    assert "submitted as job maskocr-pretrain-" in said and "pretrain.steps 8" in said  # what the command printed there
    assert figures["steps"] == 8
    one, other = (Artifact(tmp_path / name).read_bytes("encoder.safetensors") for name in ("here", "there"))
    assert one == other


@pytest.mark.cluster
def test_fine_tuning_as_a_job_leaves_the_recognisers_that_it_leaves_here(root, server, tmp_path, monkeypatch):
    pretrain(root, tmp_path / "encoder")
    labelled = {"train": packed.short_lines(16, seed=1), "val": packed.short_lines(8, seed=2)}
    lines, selection = packed.pack(tmp_path, labelled)
    starts = 'sweep.starts=["scratch", "pretrained"]'
    settings = config.load("smoke", [starts, "sweep.jobs=0", "sweep.steps=4", "sweep.budgets=[16]"])
    given = {"lines": lines, "selection": selection, "encoder": tmp_path / "encoder"}
    stages.get("finetune")(settings, **given, recognizers_out=tmp_path / "here")
    monkeypatch.setenv("RAY_ADDRESS", server)
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "elsewhere"))
    stages.get("finetune")(settings, **given, recognizers_out=tmp_path / "there")
    here, there = (Artifact(tmp_path / name) for name in ("here", "there"))
    weights = here.names(suffix="all/recognizer.safetensors")
    assert len(weights) == 2 and weights == there.names(suffix="all/recognizer.safetensors")
    assert [here.read_bytes(name) for name in weights] == [there.read_bytes(name) for name in weights]


@pytest.mark.cluster
def test_a_mistake_that_a_job_finds_is_told_as_it_is_here_and_the_next_try_is_a_new_job(
    root, server, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", server)
    for attempt in (1, 2):
        said = rf"^pretrain.probe_labels=8 asks for labelled .* \(job maskocr-pretrain-\w+-{attempt} FAILED"
        with pytest.raises(ValueError, match=said):
            pretrain(root, tmp_path / "out", "pretrain.probe_labels=8")


def component(root, out, steps=100):
    """The task of a pipeline as a pod runs it: kfp's executor, which calls the component, which calls the stage."""

    def artifact(path, kind="Artifact"):
        return {"artifacts": [{"name": path.name, "type": {"schemaTitle": f"system.{kind}"}, "uri": str(path)}]}

    overrides = ["pretrain.workers=0", f"pretrain.steps={steps}", "pretrain.checkpoint_every=2"]
    given = {"recipe": "smoke", "overrides": overrides, "data_version": "", "start_uri": ""}
    asked = {
        "inputs": {"parameterValues": given, "artifacts": {name: artifact(root / name) for name in INPUTS}},
        "outputs": {
            "artifacts": {"encoder_out": artifact(out), "metrics": artifact(out.with_name("metrics"), "Metrics")},
            "outputFile": str(out.with_name("executor_output.json")),
        },
    }
    command = [sys.executable, "-m", "kfp.dsl.executor_main", "--function_to_execute", "pretrain"]
    command += ["--component_module_path", str(REPOSITORY / "components" / "pretrain.py")]
    return [*command, "--executor_input", json.dumps(asked)]


def at_work(out):
    """The processes of the job that writes to `out`; the task's own has no such flag."""
    flag = f"--encoder-out {out}"
    return [each for each in psutil.process_iter(["cmdline"]) if flag in " ".join(each.info["cmdline"] or [])]


def await_checkpoint(tmp_path, command, patience=120):
    deadline = time.monotonic() + patience
    while not list(tmp_path.glob("stages/pretrain/*/scratch/checkpoints/*.safetensors")):
        assert command.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def await_words(words, said, command, patience=120):
    deadline = time.monotonic() + patience
    while words not in said.read_text():
        assert command.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)


@pytest.fixture
def started(server, tmp_path):
    """Starts commands that find the job server and write what they say to a file; those left at the end die."""
    running = []

    def start(command, said, **variables):
        environment = os.environ | {"RAY_ADDRESS": server} | variables
        with (tmp_path / said).open("w") as file:
            running.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        return running[-1]

    yield start
    for command in running:
        command.kill()
        command.wait()


def attempts_at(server, entrypoint):
    """How the jobs whose command has this in it are doing, in the order in which they were submitted."""
    from ray.job_submission import JobSubmissionClient

    jobs = [job for job in JobSubmissionClient(server).list_jobs() if str(entrypoint) in job.entrypoint]
    return [job.status for job in sorted(jobs, key=lambda job: job.start_time)]


@pytest.mark.cluster
def test_a_task_that_was_killed_and_starts_again_finds_its_job_and_follows_it(root, started, tmp_path):
    out = tmp_path / "out"
    first = started(component(root, out), "first", MASKOCR_RUN="mine")
    await_checkpoint(tmp_path, first)
    first.kill()
    first.wait()
    assert at_work(out)
    again = started(component(root, out), "again", MASKOCR_RUN="mine")
    assert again.wait(300) == 0, (tmp_path / "again").read_text()
    assert "is at this very work, following it" in (tmp_path / "again").read_text()
    assert Artifact(out).metrics["resumed_at"] == 0  # the job never stopped


@pytest.mark.cluster
def test_a_task_that_is_told_to_end_stops_its_job_and_the_next_attempt_goes_on_from_the_checkpoint(
    root, server, started, tmp_path
):
    out = tmp_path / "out"
    first = started(component(root, out), "first", MASKOCR_RUN="mine")
    await_checkpoint(tmp_path, first)
    job = at_work(out)
    assert job and attempts_at(server, out) == ["RUNNING"]
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143, (tmp_path / "first").read_text()
    assert "told to end (SIGTERM), job maskocr-pretrain-" in (tmp_path / "first").read_text()
    assert attempts_at(server, out) == ["STOPPED"]
    assert not any(process.is_running() for process in job) and not at_work(out)
    assert not (out / "manifest.json").exists()
    again = started(component(root, out), "again", MASKOCR_RUN="mine")
    assert again.wait(300) == 0, (tmp_path / "again").read_text()
    assert "submitted as job" in (tmp_path / "again").read_text()
    assert Artifact(out).metrics["resumed_at"] > 0
    assert attempts_at(server, out) == ["STOPPED", "SUCCEEDED"]


@pytest.mark.cluster
def test_who_follows_the_job_of_another_pipeline_gets_its_output_where_it_was_asked_for(root, started, tmp_path):
    owner = started(component(root, tmp_path / "out"), "owner", MASKOCR_RUN="mine")
    await_checkpoint(tmp_path, owner)
    other = started(component(root, tmp_path / "elsewhere"), "other", MASKOCR_RUN="another")
    await_words("following it", tmp_path / "other", other)
    assert owner.wait(300) == other.wait(300) == 0, (tmp_path / "other").read_text()
    assert "that job's output went elsewhere, another fetches it" in (tmp_path / "other").read_text()
    assert "nothing it reads has changed, reused" in (tmp_path / "other").read_text()
    assert Artifact(tmp_path / "out").version == Artifact(tmp_path / "elsewhere").version


@pytest.mark.cluster
def test_who_follows_the_job_of_another_pipeline_ends_without_it_and_its_owner_takes_it_along(
    root, server, started, tmp_path
):
    out = tmp_path / "out"
    owner = started(component(root, out, steps=2000), "owner", MASKOCR_RUN="mine")
    await_checkpoint(tmp_path, owner)
    other = started(component(root, out, steps=2000), "other", MASKOCR_RUN="another")
    await_words("following it", tmp_path / "other", other)
    other.send_signal(signal.SIGTERM)
    assert other.wait(60) == 143, (tmp_path / "other").read_text()
    assert "goes on, as it belongs to the pipeline run mine" in (tmp_path / "other").read_text()
    assert attempts_at(server, out) == ["RUNNING"] and owner.poll() is None
    owner.kill()
    owner.wait()
    retried = started(component(root, out, steps=2000), "retried", MASKOCR_RUN="mine")
    await_words("following it", tmp_path / "retried", retried)
    retried.send_signal(signal.SIGTERM)
    assert retried.wait(60) == 143, (tmp_path / "retried").read_text()
    assert attempts_at(server, out) == ["STOPPED"] and not at_work(out)


@pytest.mark.cluster
def test_a_job_that_dies_without_a_word_is_not_given_the_reason_of_the_one_before(server, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", server)
    with pytest.raises(RuntimeError, match=r"^the first reason \(job maskocr-fit-silent-1 FAILED"):
        jobs.run("fit", "silent", "sleep 1; echo maskocr: the first reason; exit 1")
    with pytest.raises(RuntimeError, match="failed with exit code 1") as failure:
        jobs.run("fit", "silent", "sleep 1; exit 1")
    assert not str(failure.value).startswith("the first reason")


@pytest.mark.cluster
def test_the_next_attempt_may_begin_the_moment_that_one_was_stopped(server, monkeypatch):
    from ray.job_submission import JobSubmissionClient

    monkeypatch.setenv("RAY_ADDRESS", server)
    client = JobSubmissionClient(server)
    first = client.submit_job(entrypoint="sleep 601", submission_id="maskocr-fit-swift-1")
    while (status := client.get_job_status(first)) != "RUNNING":
        assert not status.is_terminal()
        time.sleep(0.1)
    assert jobs._stopped(client, first) == "is STOPPED"
    jobs.run("fit", "swift", "sleep 3; : 601")  # Ray looks after its jobs once a second
    assert attempts_at(server, "601") == ["STOPPED", "SUCCEEDED"]


@pytest.mark.cluster
def test_of_two_who_ask_for_the_same_work_at_once_one_submits_it_and_the_other_follows(server, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", server)
    look, both, followed = jobs._attempt, threading.Barrier(2, timeout=60), []

    def together(client, work):
        seen = look(client, work)
        if seen[1] is None:
            both.wait()  # neither submits before the other has looked
        return seen

    monkeypatch.setattr(jobs, "_attempt", together)
    askers = [
        threading.Thread(target=lambda: followed.append(jobs.run("fit", "shared", "sleep 3; : 602"))) for _ in range(2)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(followed) == [False, True] and attempts_at(server, "602") == ["SUCCEEDED"]


@contextmanager
def breakable(server):
    """(an address by which a server is reached, what breaks every connection to it off, what leaves them in silence)"""
    host, port = server.removeprefix("http://").split(":")
    ends, silent = [], set()

    def pump(source, sink):
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if source not in silent:
                    sink.sendall(content)
        if source not in silent:
            for end in (source, sink):
                shut(end)

    def shut(end):
        """What closes a connection while another thread waits for something of it; `close` alone would not."""
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def serve():
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def break_off():
        while ends:
            shut(ends.pop())

    def fall_silent():
        silent.update(ends)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", break_off, fall_silent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()
            break_off()


@pytest.mark.cluster
@pytest.mark.parametrize("end", [0, 1], ids=["breaks off", "falls silent"])
def test_a_connection_that_ends_is_taken_up_again_and_every_line_said_once(server, tmp_path, monkeypatch, end):
    go_on, said = tmp_path / "go-on", io.StringIO()
    monkeypatch.setattr(jobs, "SILENCE", 4)
    monkeypatch.setattr(sys, "stderr", said)

    def breaking():
        for _ in range(600):
            if "a2" in said.getvalue():
                break
            time.sleep(0.1)
        ways[end]()
        time.sleep(1)
        go_on.touch()

    with breakable(server) as (address, *ways):
        monkeypatch.setenv("RAY_ADDRESS", address)
        threading.Thread(target=breaking, daemon=True).start()
        # Sums, because the log begins with the command.
        once = f"echo a$((1+1)); until [ -e {go_on} ]; do sleep 0.1; done; echo b$((2+1))"
        jobs.run("fit", f"broken-{end}", once)
    words = said.getvalue().split()
    assert words.count("a2") == words.count("b3") == 1 and words.index("a2") < words.index("b3")


@pytest.mark.cluster
def test_a_cluster_whose_agent_has_lost_its_port_to_another_is_said_with_the_mend(monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE", 4)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with nodes.one_node(jobs=servers.free_ports(1), agent=taken.getsockname()[1]) as address:
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(RuntimeError, match=f"{address} has no agent .*: .* agent's port of its own"):
                jobs.run("fit", "unheard", "true")


@pytest.mark.cluster
def test_a_job_whose_server_is_gone_is_named_with_what_would_stop_it(monkeypatch):
    from ray.job_submission import JobSubmissionClient

    with nodes.one_node(jobs=servers.free_ports(1)) as address:
        client = JobSubmissionClient(address)
        assert "could not be stopped" in jobs._stopped(client, "none")
    assert "if it runs, `ray job stop none`" in jobs._stopped(client, "none")


def test_the_command_of_a_job_gives_the_same_configuration_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["pretrain.steps=9", 'data.columns={"page_id": "the page"}', "sweep.learning_rates=[0.001, 0.002]"]
    settings = config.load("smoke", changes)
    words = shlex.split(
        jobs.command("ingest", settings, {"data_uri": "raw", "transfer_uri": "", "lines_out": tmp_path / "x"})
    )
    assert words[:4] == ["maskocr", "ingest", "--recipe", "smoke"]
    given = dict(zip(words[4::2], words[5::2]))
    assert given["--data-uri"] == str(tmp_path / "raw") and given["--lines-out"] == str(tmp_path / "x")
    assert "--transfer-uri" not in given
    overrides = [value for name, value in zip(words[4::2], words[5::2]) if name == "--set"]
    assert config.load("smoke", overrides) == settings


@pytest.mark.parametrize(
    "address, stage, job",
    [("http://head:8265", "pretrain", True), ("http://head:8265", "register", False), ("head:6379", "pretrain", False)],
)
def test_the_address_of_a_job_server_makes_jobs_of_the_stages_that_use_a_cluster(monkeypatch, address, stage, job):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert jobs.wanted(stage) == job


def test_a_job_server_that_does_not_answer_is_said_with_the_mend(root, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(
        ValueError, match="RAY_ADDRESS=http://127.0.0.1:1 does not answer .*: start the cluster, or unset"
    ):
        pretrain(root, tmp_path / "out")
