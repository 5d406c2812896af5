import builtins
import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp_server import Server

from maskocr_pipelines import client, local

KFP = Path(sys.executable).with_name("kfp")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A compiled pipeline of two tasks: `make` writes `name` n times, `check` refuses an n above the limit."""
    from kfp import compiler, dsl, kubernetes

    @dsl.component(base_image="maskocr-python:test", install_kfp_package=False)
    def make(n: int, name: str, text_out: dsl.Output[dsl.Dataset]) -> int:
        from pathlib import Path

        Path(text_out.path).write_text(name * n)
        return n

    @dsl.component(base_image="maskocr-python:test", install_kfp_package=False)
    def check(n: int, limit: float, words: list, options: dict, strict: bool):
        if strict and n > limit:
            raise ValueError(f"{n} is above {limit}: lower n")

    @dsl.pipeline(name="tiny")
    def tiny(
        n: int,
        name: str = "a",
        limit: float = 3.0,
        words: list = ["x"],  # noqa: B006
        options: dict = {"k": 1},  # noqa: B006
        strict: bool = True,
    ):
        """Two tasks.

        Args:
            n: how often the name is written.
        """
        made = make(n=n, name=name).set_memory_limit("1G")
        kubernetes.use_secret_as_env(made, "store", {"key": "KEY"})
        check(n=made.outputs["Output"], limit=limit, words=words, options=options, strict=strict)

    path = tmp_path_factory.mktemp("compiled") / "tiny.yaml"
    compiler.Compiler().compile(tiny, str(path))
    return path


def submit(pipeline, server, **options):
    return client.submit(pipeline, {"n": 2}, endpoint=server.url, poll_seconds=0.01, **options)


def test_importing_the_client_does_not_import_kfp():
    code = "import sys; from maskocr_pipelines import client; print('kfp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_parameters_are_those_of_the_compiled_pipeline(tiny):
    known = client.parameters(tiny)
    assert known["n"] == client.Parameter("n", "NUMBER_INTEGER", None, True, "how often the name is written.")
    assert known["limit"] == client.Parameter("limit", "NUMBER_DOUBLE", 3.0, False, "")
    assert set(known) == {"n", "name", "limit", "words", "options", "strict"}


def test_assignments_become_values_of_the_declared_types(tiny):
    assignments = ["n=2", "name=3", "limit=4", 'words=["a=b"]', 'options={"k": [1]}', "strict=False"]
    arguments = client.parse(tiny, assignments)
    assert arguments == {"n": 2, "name": "3", "limit": 4.0, "words": ["a=b"], "options": {"k": [1]}, "strict": False}
    assert {name: type(value) for name, value in arguments.items()} == {
        "n": int,
        "name": str,
        "limit": float,
        "words": list,
        "options": dict,
        "strict": bool,
    }


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["n=2", "limits=3"], "no parameter limits: did you mean limit? It has limit, n, name, options, strict, words"),
        (["name=b"], "needs n: add n="),
        (["n"], "'n' assigns nothing: write it as name=value"),
        (["n=1", "n=2"], "n is given twice"),
        (["n=1.5"], "n=1.5 is of the wrong type: n is a whole number"),
        (["n=1", "limit=nan"], "limit is a finite number"),
        (["n=1", "strict=yes"], "strict is true or false"),
        (["n=1", "words=a"], "words is a JSON list"),
        (["n=1", "words={}"], "words is a JSON list"),
        (["n=1", "options=[]"], "options is a JSON object"),
    ],
)
def test_a_wrong_assignment_is_refused_with_the_mend(tiny, assignments, sentence):
    with pytest.raises(ValueError) as refusal:
        client.parse(tiny, assignments)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("content", [None, "", "a: b: c", "just text", "a: 1"])
def test_a_file_that_is_no_compiled_pipeline_is_refused(tmp_path, content):
    path = tmp_path / "other.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="cannot be read as a compiled pipeline"):
        client.parameters(path)


def test_a_local_run_writes_its_outputs_below_the_root_and_warns_of_nothing(tiny, tmp_path, capfd, recwarn):
    print_before, environment_before = builtins.print, dict(os.environ)
    local.run(tiny, client.parse(tiny, ["n=3", "name=ab"]), tmp_path / "runs")
    assert [path.read_text() for path in tmp_path.glob("runs/tiny-*/make/text_out")] == ["ababab"]
    assert "check: SUCCESS after" in capfd.readouterr().out
    assert not recwarn.list
    assert (builtins.print, dict(os.environ)) == (print_before, environment_before)


def test_a_second_local_run_runs_every_task_again(tiny, tmp_path):
    for _ in range(2):
        local.run(tiny, {"n": 1}, tmp_path)
    assert len(list(tmp_path.glob("tiny-*/make/text_out"))) == 2


def test_a_line_of_a_local_task_is_seen_while_the_task_runs(tmp_path, monkeypatch):
    from kfp import compiler, dsl

    @dsl.component(base_image="maskocr-python:test", install_kfp_package=False)
    def ask(answer: str):
        import time
        from pathlib import Path

        print("are you there?")
        for _ in range(200):
            if Path(answer).exists():
                return
            time.sleep(0.02)
        raise ValueError("nobody saw the question")

    class Reader(io.StringIO):
        def write(self, text):
            if "are you there?" in text and "print(" not in text:
                (tmp_path / "answer").touch()
            return super().write(text)

    @dsl.pipeline(name="asking")
    def asking(answer: str):
        ask(answer=answer)

    compiler.Compiler().compile(asking, str(tmp_path / "asking.yaml"))
    monkeypatch.setattr(sys, "stdout", Reader())
    local.run(tmp_path / "asking.yaml", {"answer": str(tmp_path / "answer")}, tmp_path)


def test_a_failing_local_task_is_named_with_the_reason_it_gave(tiny, tmp_path):
    with pytest.raises(RuntimeError) as failure:
        local.run(tiny, {"n": 5}, tmp_path)
    assert str(failure.value) == "task check of pipeline tiny failed: ValueError: 5 is above 3.0: lower n"


def test_a_local_task_that_dies_without_a_word_is_named(tmp_path):
    from kfp import compiler, dsl

    @dsl.component(base_image="maskocr-python:test", install_kfp_package=False)
    def die():
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    @dsl.pipeline(name="deadly")
    def deadly():
        die()

    compiler.Compiler().compile(deadly, str(tmp_path / "deadly.yaml"))
    with pytest.raises(RuntimeError) as failure:
        local.run(tmp_path / "deadly.yaml", {}, tmp_path)
    assert str(failure.value) == "task die of pipeline deadly failed: its log is above"


def test_a_run_that_succeeds_gives_its_id_and_tells_each_change_once(tiny, capsys):
    said = []
    with Server(states=("PENDING", "RUNNING", "RUNNING", "SUCCEEDED")) as server:
        assert client.submit(tiny, {"n": 2}, endpoint=server.url + "/", poll_seconds=0.01, say=said.append) == "r1"
        assert server.runs["r1"]["runtime_config"]["parameters"] == {"n": 2}
        assert list(server.experiments) == ["maskocr"]
    assert said == [
        f"run r1: {server.url}/#/runs/details/r1",
        "task make: PENDING",
        "task make: RUNNING",
        "run: RUNNING",
        "task make: SUCCEEDED",
        "run: SUCCEEDED",
    ]
    assert capsys.readouterr().out == ""


def test_a_run_is_not_looked_at_where_nobody_waits(tiny):
    with Server(states=("FAILED",)) as server:
        assert submit(tiny, server, wait=False, run_name="mine", experiment="other") == "r1"
        assert server.looks == 0
        assert (server.runs["r1"]["display_name"], list(server.experiments)) == ("mine", ["other"])


def test_a_failed_run_raises_with_the_message_of_its_task(tiny):
    with (
        Server(states=("RUNNING", "FAILED"), message="no lines: run ingest") as server,
        pytest.raises(client.RunFailed) as failure,
    ):
        submit(tiny, server)
    assert (failure.value.run_id, failure.value.state) == ("r1", "FAILED")
    assert "run r1 FAILED at task make: no lines: run ingest (logs: http" in str(failure.value)


def test_a_failed_run_without_a_message_still_names_its_task(tiny):
    with Server(states=("FAILED",)) as server, pytest.raises(client.RunFailed, match="task make: no message came"):
        submit(tiny, server)


def test_a_canceled_run_raises(tiny):
    with Server(states=("RUNNING", "CANCELED")) as server, pytest.raises(client.RunFailed, match="ended as CANCELED"):
        submit(tiny, server)


def test_a_run_that_outlives_the_timeout_raises_and_goes_on(tiny):
    with Server(states=("RUNNING", "PAUSED")) as server, pytest.raises(client.RunFailed) as failure:
        submit(tiny, server, timeout_seconds=0.1)
    assert failure.value.state == "PAUSED"
    assert "run r1 is still PAUSED after 0.1 s and goes on" in str(failure.value)


def test_an_endpoint_that_restarts_does_not_end_the_wait(tiny):
    with Server(outage=3) as server:
        assert submit(tiny, server) == "r1"
        assert server.outage == 0


def test_a_wait_whose_endpoint_stays_away_ends_and_says_that_the_run_goes_on(tiny, monkeypatch):
    monkeypatch.setattr(client, "OUTAGE_SECONDS", 0.05)
    with Server(outage=1000) as server, pytest.raises(RuntimeError, match=r"in trouble \(503\).*run r1 goes on"):
        submit(tiny, server)


def test_wrong_names_are_refused_before_anything_is_sent(tiny):
    with Server() as server:
        with pytest.raises(ValueError, match="did you mean name"):
            client.submit(tiny, {"n": 1, "nam": "b"}, endpoint=server.url)
        assert server.requests == []


def test_what_the_server_refuses_is_passed_on(tiny):
    with Server() as server, pytest.raises(RuntimeError) as refusal:
        client.submit(tiny, {"n": "two"}, endpoint=server.url)
    assert str(refusal.value).endswith("refuses the request (400): parameter n must be a NUMBER_INTEGER, not 'two'")


def test_an_endpoint_that_refuses_the_connection_fails_within_seconds(tiny):
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port, and it refuses
        taken.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=r"cannot be reached \(.*refused\).*port-forward"):
            client.submit(tiny, {"n": 1}, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        (Server(token="right"), r"refuses \(401\): give a token"),
        (Server(page="/"), "does not answer as the KFP API does"),
        (Server(page="/apis/v2beta1/runs"), "does not answer as the KFP API does"),
        (Server(prefix="/pipeline/apis/v2beta1"), "does not answer as the KFP API does"),
    ],
)
def test_an_endpoint_that_is_no_open_kfp_api_is_told_apart(tiny, server, sentence):
    started = time.monotonic()
    with server, pytest.raises(RuntimeError, match=sentence):
        submit(tiny, server)
    assert time.monotonic() - started < 5


def test_a_log_in_page_in_the_middle_of_a_wait_ends_it(tiny):
    with Server() as server, pytest.raises(RuntimeError, match="not answer as the KFP API.*run r1 goes on unwatched"):
        submit(tiny, server, say=lambda _: setattr(server, "page", "/"))


def test_a_valid_token_is_let_in(tiny):
    with Server(token="right") as server:
        assert submit(tiny, server, token="right") == "r1"


def test_an_endpoint_without_its_scheme_is_refused(tiny):
    with pytest.raises(ValueError, match="write http://localhost:8888"):
        client.submit(tiny, {"n": 1}, endpoint="localhost:8888")


def kfp(tmp_path, *words, **variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KFP_", "KF_"))}
    environment = clean | {"HOME": str(tmp_path)} | variables  # kfp keeps a namespace in the home folder
    return subprocess.run([KFP, *words], env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_line_of_kfp_fails_where_the_server_refuses_the_run(tiny, tmp_path):
    with Server() as server:
        done = kfp(tmp_path, "--endpoint", server.url, "run", "create", "-e", "maskocr", "-f", tiny, "n=two")
        assert (done.returncode, server.runs) == (1, {})
        assert "n must be a NUMBER_INTEGER" in done.stderr
