"""The lines that the documentation tells people to type, typed as they stand, at a server that checks what it gets."""

import json
import re
import shlex
import subprocess
import sys
import threading
import time

import kfp_server_api
import pytest
import yaml
from conftest import REPOSITORY
from kfp_server import Refused, Server, check_arguments, conforming, pipeline, tasks_of

from docs import kfp_transcripts
from maskocr_pipelines import client

PIPELINES = {name: REPOSITORY / "pipelines" / f"{name}.yaml" for name in ("pretrain_finetune", "retrain")}
ARGUMENTS = {
    "pretrain_finetune": ["data_uri=s3://archive/lines"],
    "retrain": ["data_uri=s3://a/new", "claims_uri=s3://a/claims", "labelled_uri=s3://a/labelled"],
}
PAGES = ("README.md", "docs/operate.md", "docs/kfp.md")


def documented(page):
    """The lines for an endpoint in a page's `sh` blocks, in order; `--local` is about this machine, and never ends."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    wanted = r"(kfp |maskocr submit |maskocr schedule |export KFP_)(?!.*--local)"
    return [line for line in lines if re.match(wanted, line)]


def name_of(path):
    return next(yaml.safe_load_all((REPOSITORY / path).read_text()))["pipelineInfo"]["name"]


def given(line):
    """`name=value` words of a line, with the values that the program is to send."""
    words = (word.split("=", 1) for word in shlex.split(line, comments=True)[1:] if re.match(r"\w+=", word))
    return {name: json.loads(value) if value.startswith("[") else value for name, value in words}


@pytest.mark.parametrize("page", PAGES)
def test_the_lines_of_a_page_do_what_the_page_says(page):
    lines = documented(page)
    with Server(pace=100) as server:
        done = kfp_transcripts.shell(lines, server)
    assert [(line, code, output) for line, (output, code) in zip(lines, done, strict=True) if code] == []
    submitted = [line for line in lines if re.match(r"kfp run|maskocr submit", line)]
    recurring = [line for line in lines if line.startswith("kfp recurring-run create")]
    assert {"README.md": (3, 1), "docs/operate.md": (0, 0), "docs/kfp.md": (2, 0)}[page] == tuple(
        map(len, (submitted, recurring))
    )
    assert set(server.experiments) == {"maskocr"}
    for line, run in zip(submitted, server.runs.values(), strict=True):
        assert run["runtime_config"]["parameters"] == given(line)
        path = re.search(r"pipelines/\w+\.yaml", line)
        variable = re.search(r"KFP_RUN_CREATE_PACKAGE_FILE=(\S+)", "\n".join(lines))
        assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == name_of(
            path[0] if path else variable[1]
        )
    for line, made in zip(recurring, server.recurring.values()):
        assert (made["mode"], made["display_name"], made["no_catchup"]) == ("ENABLE", "monthly", True)
        assert made["trigger"] == {"cron_schedule": {"cron": "0 0 2 1 * *"}}
        assert made["runtime_config"]["parameters"] == given(line)


def test_the_transcripts_are_current():
    page = kfp_transcripts.PAGE.read_text()
    assert len(kfp_transcripts.TRANSCRIPT.findall(page)) == page.count("<!-- transcript") > 5
    assert kfp_transcripts.render(page) == page, "run `python docs/kfp_transcripts.py` and commit docs/kfp.md"


def test_the_python_lines_of_the_page_do_what_it_says():
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "kfp.md").read_text(), re.DOTALL)
    with Server(pace=100) as server:
        for block in blocks:
            code = block.replace(kfp_transcripts.DOCUMENTED, server.url)
            subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    sent = [run["runtime_config"]["parameters"] for run in server.runs.values()]
    assert [parameters["data_uri"] for parameters in sent] == ["s3://archive/lines", "s3://scans/new"]
    assert sent[0]["overrides"] == ["pretrain.steps=20000"]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_compiled_pipeline_goes_through_all_its_states(name):
    said = []
    with Server() as server:
        arguments = client.parse(PIPELINES[name], ARGUMENTS[name])
        client.submit(PIPELINES[name], arguments, endpoint=server.url, poll_seconds=0.001, say=said.append)
        [run] = server.runs.values()
    names = list(tasks_of(pipeline(run["pipeline_spec"])))
    assert [step["state"] for step in run["state_history"]] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert {f"task {task}: {state}" for task in names for state in ("RUNNING", "SUCCEEDED")} <= set(said)
    assert names.index("ingest") < names.index("fit") < names.index("register")
    assert run["runtime_config"]["parameters"] == dict(word.split("=") for word in ARGUMENTS[name])


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_that_fails_names_its_task_and_what_comes_after_it_never_starts(name):
    said = []
    with Server(fails="fit", message="no source was accepted") as server, pytest.raises(client.RunFailed) as failure:
        arguments = client.parse(PIPELINES[name], ARGUMENTS[name])
        client.submit(PIPELINES[name], arguments, endpoint=server.url, poll_seconds=0.001, say=said.append)
    assert "FAILED at task fit: no source was accepted (logs: http" in str(failure.value)
    assert "task fit: FAILED" in said and not any("register" in line for line in said)


def test_a_run_that_is_cancelled_while_somebody_waits_ends_the_wait():
    import kfp

    said, started, failure = [], threading.Event(), []

    def heard(line):
        said.append(line)
        started.set()

    def wait():
        arguments = client.parse(PIPELINES["retrain"], ARGUMENTS["retrain"])
        with pytest.raises(client.RunFailed) as caught:
            client.submit(PIPELINES["retrain"], arguments, endpoint=server.url, say=heard)
        failure.append(caught.value)

    with Server() as server:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert started.wait(30)
        kfp.Client(host=server.url).terminate_run("r1")
        waiting.join(30)
        assert failure[0].state == "CANCELED" and "run: CANCELED" in said
        assert [step["state"] for step in server.runs["r1"]["state_history"]][-2:] == ["CANCELING", "CANCELED"]
        with pytest.raises(kfp_server_api.ApiException, match="Failed to terminate a run r1"):
            kfp.Client(host=server.url).terminate_run("r1")


SUBMIT = f"maskocr submit pipelines/retrain.yaml {' '.join(ARGUMENTS['retrain'])}"
CREATE = f"kfp run create -e maskocr -f pipelines/retrain.yaml {' '.join(ARGUMENTS['retrain'])}"


@pytest.mark.parametrize(
    ("words", "ours", "theirs"),
    [
        (
            "overrides=3",
            "overrides=3 is of the wrong type: overrides is a JSON list",
            "overrides must be a LIST, not 3",
        ),
        ("recipee=small", "has no parameter recipee: did you mean recipe?", "recipee is not an input of the pipeline"),
    ],
)
def test_a_wrong_parameter_of_retrain_is_refused_and_nothing_is_begun(words, ours, theirs):
    with Server() as server:
        said, code = kfp_transcripts.shell([f"{SUBMIT} {words}"], server)[0]
        assert (code, ours in said, len(said.splitlines())) == (2, True, 1)
        assert server.requests == []
        said, code = kfp_transcripts.shell([f"{CREATE} {words}"], server)[0]
        assert (code, theirs in said, server.runs) == (1, True, {})


def test_a_recurring_run_of_kfp_sends_texts_which_the_server_refuses_for_a_list():
    line = "kfp recurring-run create --experiment-name maskocr --job-name nightly --interval-second 60 --enabled "
    line += f"--pipeline-package-path pipelines/retrain.yaml {' '.join(ARGUMENTS['retrain'])}"
    with Server() as server:
        [(said, code)] = kfp_transcripts.shell([f"""{line} 'overrides=["a.b=1"]'"""], server)
        assert (code, "overrides must be a LIST" in said, server.recurring) == (1, True, {})
        assert kfp_transcripts.shell([line], server)[0][1] == 0
        [made] = server.recurring.values()
        assert int(made["trigger"]["periodic_schedule"]["interval_second"]) == 60


def test_a_list_for_a_recurring_run_goes_through_python():
    import kfp

    with Server() as server:
        there = kfp.Client(host=server.url)
        there.create_recurring_run(
            there.create_experiment("maskocr").experiment_id,
            "nightly",
            cron_expression="0 0 2 * * *",
            params={"overrides": ["a.b=1"]} | given(f"submit {' '.join(ARGUMENTS['retrain'])}"),
            pipeline_package_path=str(PIPELINES["retrain"]),
        )
        [made] = server.recurring.values()
        assert made["runtime_config"]["parameters"]["overrides"] == ["a.b=1"]


@pytest.mark.parametrize(
    ("state", "flag", "code", "said"),
    [
        ("FAILED", "--watch", 0, "Run is finished with state FAILED."),
        ("FAILED", "--timeout 60", 0, "FAILED"),
        ("CANCELED", "--watch", 0, "Run is finished with state CANCELED."),
        ("CANCELED", "--timeout 1", 1, "Run timeout"),
        ("RUNNING", "--timeout 1", 1, "Run timeout"),
    ],
)
def test_what_kfp_itself_exits_with_is_what_the_page_says(state, flag, code, said):
    with Server(states=(state,)) as server:
        [(output, exit_code)] = kfp_transcripts.shell([f"{CREATE} {flag}"], server)
    assert (exit_code, said in output) == (code, True), output


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"token": "right"}, "refuses (401): give a token"),
        ({"page": "/", "page_status": 401}, "refuses (401): give a token"),
        ({"page": "/"}, "does not answer as the KFP API does"),
        ({"page": "/", "page_status": 404}, "does not answer as the KFP API does"),
        ({"page": "/apis/v2beta1/experiments"}, "does not answer as the KFP API does"),
        ({"page": "/apis/v2beta1/runs"}, "does not answer as the KFP API does"),
        ({"page": "/apis/v2beta1/runs", "page_status": 404}, "(404) does not answer as the KFP API does"),
        ({"page": "/apis/v2beta1/runs", "page_status": 502}, "is in trouble (502): try again"),
    ],
)
def test_an_endpoint_that_is_none_is_one_sentence_and_no_run(setting, sentence):
    started = time.monotonic()
    with Server(**setting) as server:
        [(said, code)] = kfp_transcripts.shell([SUBMIT], server)
    assert (code, len(said.splitlines()), said.startswith("maskocr: http")) == (1, 1, True), said
    assert sentence in said and server.runs == {}
    assert time.monotonic() - started < 30


def compiled():
    spec, platform = yaml.safe_load_all(PIPELINES["retrain"].read_text())
    return {"pipeline_spec": spec, "platform_spec": platform}


def change_executor(sent, **changes):
    next(iter(sent["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values())).update(changes)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda sent: sent["pipeline_spec"].update(rooot={}), 'no field named "rooot"'),
        (lambda sent: sent["pipeline_spec"]["root"]["dag"].update(task={}), 'no field named "task"'),
        (lambda sent: sent["pipeline_spec"].update(schemaVersion="2.0.0"), "only supports schema version 2.1.0"),
        (lambda sent: sent["pipeline_spec"]["components"].pop("comp-fit"), "component comp-fit of task fit is missing"),
        (lambda sent: sent["pipeline_spec"]["deploymentSpec"]["executors"].pop("exec-fit"), "exec-fit"),
        (
            lambda sent: sent["pipeline_spec"]["deploymentSpec"]["executors"]["exec-fit"]["container"].update(imag="x"),
            'no field named "imag"',
        ),
        (lambda sent: sent["platform_spec"]["platforms"].update(nomad={}), "platform nomad is unknown"),
        (lambda sent: change_executor(sent, nodeSelektor={}), 'no field named "nodeSelektor"'),
        (
            lambda sent: change_executor(sent, activeDeadlineSeconds="soon"),
            "Failed to parse activeDeadlineSeconds field",
        ),
        (lambda sent: sent.update(extra={}), "there is no extra"),
    ],
)
def test_the_server_reads_a_pipeline_strictly(spoil, reason):
    sent = compiled()
    pipeline(sent)
    spoil(sent)
    with pytest.raises(Refused, match=re.escape(reason)) as refusal:
        pipeline(sent)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"displayname": "a"}, "V2beta1Run has no field displayname"),
        ({"display_name": 3}, "V2beta1Run.display_name must be a str, not 3"),
        ({"runtime_config": {"parameter": {}}}, "V2beta1Run.runtime_config has no field parameter"),
        ({"runtime_config": {"parameters": []}}, "must be a dict(str, object)"),
        ({"state": "DONE"}, "V2beta1Run.state is none of"),
        ({"run_details": {"task_details": [{"state": "FAILED", "eror": {}}]}}, "task_details has no field eror"),
        ({"experiment_id": "e"}, "give either a pipeline_spec or a pipeline_version_reference"),
    ],
)
def test_the_server_takes_the_fields_and_types_of_the_api_and_no_others(body, reason):
    server = Server(experiments={"maskocr": {"experiment_id": "e"}})
    with pytest.raises(Refused, match=re.escape(reason)):
        server.create_run(body)


@pytest.mark.parametrize("value", ["true", 1, None, ["a"]])
def test_the_server_takes_no_other_type_for_a_text_but_a_text(value):
    spec = pipeline(compiled())
    arguments = {word.split("=")[0]: word.split("=")[1] for word in ARGUMENTS["retrain"]}
    check_arguments(spec, arguments)
    if isinstance(value, str):
        check_arguments(spec, arguments | {"recipe": value})
    else:
        with pytest.raises(Refused, match="recipe must be a STRING"):
            check_arguments(spec, arguments | {"recipe": value})


def test_a_whole_number_of_64_bits_may_be_a_text_or_a_number_and_nothing_else_may():
    for value in (1, "1"):
        conforming("V2beta1RecurringRun", {"max_concurrency": value})
    with pytest.raises(Refused):
        conforming("V2beta1RecurringRun", {"max_concurrency": [1]})
