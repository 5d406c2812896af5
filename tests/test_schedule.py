"""Recurring runs: what a file may say, what KFP is told, and what APScheduler does here."""

import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from kfp_server import Server

from maskocr_pipelines import here, recurring, schedules_file

NOW = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    from kfp import compiler, dsl

    @dsl.component(base_image="maskocr-python:test", install_kfp_package=False)
    def read(data_uri: str, steps: int, words: list):
        pass

    @dsl.pipeline(name="tiny")
    def tiny(data_uri: str, steps: int = 3, words: list = ["x"]):  # noqa: B006
        read(data_uri=data_uri, steps=steps, words=words)

    path = tmp_path_factory.mktemp("compiled") / "tiny.yaml"
    compiler.Compiler().compile(tiny, str(path))
    return path


@pytest.fixture
def write(tmp_path, compiled):
    """Writes a file of one schedule, `nightly`, changed by fields (None: without it), and perhaps of others."""

    def written(*others: dict, controller: str = "UTC", **fields: object):
        import yaml

        basis = {
            "name": "nightly",
            "cron": "30 2 * * *",
            "pipeline": "tiny.yaml",
            "parameters": {"data_uri": "s3://a/b"},
        }
        entries = [basis | fields, *(basis | other for other in others)]
        entries = [{key: value for key, value in entry.items() if value is not None} for entry in entries]
        (tmp_path / "tiny.yaml").write_bytes(compiled.read_bytes())
        path = tmp_path / "schedules.yaml"
        path.write_text(yaml.safe_dump({"controller_timezone": controller, "schedules": entries}))
        return path

    return written


@pytest.fixture
def server():
    with Server() as running:
        yield running


def apply(path, server, **options):
    said = []
    with recurring.opened(server.url) as endpoint:
        recurring.apply(schedules_file.read(path), endpoint, say=said.append, **options)
    return said


def changes(server):
    """What the server was asked but looks."""
    return [f"{method} {path}" for method, path, _ in server.requests if method != "GET"]


def cron_of(path):
    [plan] = schedules_file.read(path)
    return plan.times.six_fields()


def maskocr(*arguments, **environment):
    command = [sys.executable, "-m", "maskocr_core.cli", *arguments]
    variables = os.environ | {"COLUMNS": "200"} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


# What a file says


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"crn": "x"}, "schedule nightly, field crn: unknown, did you mean cron? It has name, cron,"),
        ({"cron": "30 2 * *"}, "schedule nightly, field cron: '30 2 * *' has 4 fields where a cron line has five"),
        ({"cron": "0 30 2 * * *"}, "has 6 fields where a cron line has five: leave out the seconds"),
        ({"cron": "30 25 * * *"}, "'25' is no hour: it takes *, numbers from 0 to 23"),
        ({"cron": "0 0 31 feb *"}, "never comes: no month of it has a day 31"),
        (
            {"timezone": "Europe/Berln"},
            "schedule nightly, field timezone: 'Europe/Berln' is no time zone: did you mean",
        ),
        ({"name": "Nightly run"}, "field name: 'Nightly run' does not fit"),
        ({"cron": None}, "field cron: missing: Minute, hour, day of month, month, day of week"),
        ({"enabled": "perhaps"}, "field enabled: 'perhaps' does not fit"),
        ({"pipeline": "none.yaml"}, "field pipeline: "),
        ({"parameters": {"data_url": "x"}}, "field parameters: "),
        ({"parameters": {"data_url": "x"}}, "did you mean data_uri?"),
        ({"parameters": {}}, "needs data_uri: add data_uri="),
        (
            {"parameters": {"data_uri": "a", "steps": "many"}},
            "steps=many is of the wrong type: steps is a whole number",
        ),
        ({"parameters": {"data_uri": "a", "steps": 2.5}}, "steps=2.5 is of the wrong type"),
        ({"parameters": {"data_uri": 3}}, "data_uri is a text and 3 is none in YAML: put it in quotes"),
        ({"timezone": "Europe/Berlin"}, "write `timezone: UTC` with the hour in UTC, or `daylight_saving: shift`"),
        ({"timezone": "Asia/Tokyo", "cron": "0 2 1 * *"}, "field cron: 0 2 1 * * in Asia/Tokyo cannot be said in UTC"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_and_nothing_is_sent(write, server, changed, sentence):
    path = write({"name": "sound"}, **changed)
    done = maskocr("schedule", "apply", "--file", str(path), "--endpoint", server.url)
    assert done.returncode == 2
    assert done.stderr.startswith(f"maskocr: {path}") and sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert server.requests == []


@pytest.mark.parametrize("content", ["", "a: [", "schedules: []", "schedules:\n  - word", "- 3", "schedules: {a: 1}"])
def test_a_file_that_holds_no_schedules_is_refused_with_its_name(tmp_path, content):
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(ValueError, match="file.yaml"):
        schedules_file.read(tmp_path / "file.yaml")


def test_a_name_given_twice_is_refused(write):
    with pytest.raises(ValueError, match="schedule nightly, field name: it is taken"):
        schedules_file.read(write({"cron": "0 5 * * *"}))


def test_the_example_in_infra_is_sound():
    from conftest import REPOSITORY

    [plan] = schedules_file.read(REPOSITORY / "infra" / "schedules.yaml")
    assert (plan.times.six_fields(), plan.pipeline_name) == ("0 30 2 * * 0", "retrain")


def test_daylight_saving_accepted_keeps_standard_time_and_warns(write):
    [plan] = schedules_file.read(write(timezone="Europe/Berlin", daylight_saving="shift"))
    assert plan.times.six_fields() == "0 30 1 * * *"
    assert "times are those of standard time (Europe/Berlin at UTC+1)" in plan.warning


def test_a_controller_in_the_zone_of_the_schedule_follows_daylight_saving_by_itself(write):
    assert cron_of(write(timezone="Europe/Berlin", controller="Europe/Berlin")) == "0 30 2 * * *"


def test_a_controller_with_daylight_saving_is_no_ground_for_times_in_utc(write):
    with pytest.raises(ValueError, match="America/New_York changes its clock"):
        schedules_file.read(write(controller="America/New_York"))


# What KFP is told


def test_apply_makes_what_the_file_says_paused_first_and_then_enabled(write, server):
    path = write(timezone="Asia/Kolkata", parameters={"data_uri": "s3://a/b", "steps": 5, "words": ["a"]})
    apply(path, server)
    [run] = server.recurring.values()
    assert run["trigger"] == {"cron_schedule": {"cron": "0 0 21 * * *"}}
    assert (run["max_concurrency"], run["no_catchup"], run["mode"]) == ("1", True, "ENABLE")
    assert run["runtime_config"]["parameters"] == {"data_uri": "s3://a/b", "steps": 5, "words": ["a"]}
    assert [made["display_name"] for made in server.pipelines.values()] == ["tiny"]
    [version] = server.versions.values()
    assert version["name"] == hashlib.sha256((path.parent / "tiny.yaml").read_bytes()).hexdigest()
    created = next(body for method, where, body in server.requests if (method, where) == ("POST", "/recurringruns"))
    assert created["mode"] == "DISABLE"
    assert changes(server)[-1] == f"POST /recurringruns/{run['recurring_run_id']}:enable"


def test_applied_twice_it_changes_nothing_and_says_so(write, server):
    path = write()
    apply(path, server)
    done = len(changes(server))
    assert apply(path, server) == ["nightly: unchanged (enabled, '0 30 2 * * *' in UTC)"]
    assert len(changes(server)) == done


def test_a_changed_schedule_is_replaced_and_two_never_run(write, server):
    apply(write(), server)
    [old] = server.recurring
    server.requests.clear()
    assert "replaced" in apply(write(cron="0 5 * * *"), server)[0]
    [new] = server.recurring
    assert server.recurring[new]["trigger"]["cron_schedule"]["cron"] == "0 0 5 * * *"
    assert changes(server) == [
        "POST /recurringruns",
        f"DELETE /recurringruns/{old}",
        f"POST /recurringruns/{new}:enable",
    ]


@pytest.mark.parametrize("broken", ["POST /pipelines$", "upload_version", "POST /recurringruns$", "DELETE", ":enable"])
def test_an_apply_that_broke_off_anywhere_is_mended_by_the_next(write, server, broken):
    if broken == "DELETE":
        apply(write(), server)
    path = write(cron="0 5 * * *")
    server.broken = broken
    with pytest.raises(RuntimeError, match="in trouble \\(503\\)"):
        apply(path, server)
    assert len(server.recurring) <= 2 and sum(run["mode"] == "ENABLE" for run in server.recurring.values()) <= 1
    server.broken = ""
    apply(path, server)
    assert [run["mode"] for run in server.recurring.values()] == ["ENABLE"]
    assert [run["trigger"]["cron_schedule"]["cron"] for run in server.recurring.values()] == ["0 0 5 * * *"]
    assert (len(server.pipelines), len(server.versions)) == (1, 1)


def test_another_image_makes_another_version_and_the_run_is_replaced(write, server):
    path = write()
    apply(path, server)
    pipeline = path.parent / "tiny.yaml"
    pipeline.write_text(pipeline.read_text().replace("maskocr-python:test", "maskocr-python:next"))
    said = apply(path, server)
    assert "uploaded as version" in said[0] and "replaced" in said[1]
    assert (len(server.pipelines), len(server.versions), len(server.recurring)) == (1, 2, 1)


def test_refresh_replaces_what_is_as_wanted(write, server):
    apply(write(), server)
    [old] = server.recurring
    assert "replaced" in apply(write(), server, refresh=True)[0]
    assert list(server.recurring) != [old] and len(server.recurring) == 1


def test_a_disabled_schedule_is_made_and_stays_paused(write, server):
    assert "created (paused" in apply(write(enabled=False), server)[-1]
    assert [run["mode"] for run in server.recurring.values()] == ["DISABLE"]


def test_a_schedule_that_was_paused_is_resumed_by_apply_and_paused_by_the_file(write, server):
    apply(write(), server)
    assert maskocr("schedule", "pause", "nightly", "--endpoint", server.url).returncode == 0
    assert [run["mode"] for run in server.recurring.values()] == ["DISABLE"]
    assert "resumed, it was paused" in apply(write(), server)[0]
    assert "nightly: paused (paused" in apply(write(enabled=False), server)[0]


def test_a_recurring_run_of_somebody_else_is_refused_before_anything_is_changed(write, server):
    apply(write(), server)
    [run] = server.recurring.values()
    run["description"] = "made by hand"
    server.requests.clear()
    with pytest.raises(ValueError, match="not made by `maskocr schedule`: give the schedule another name"):
        apply(write({"name": "other"}, cron="0 5 * * *"), server)
    assert changes(server) == []


def test_names_are_found_on_every_page_of_a_long_list(write, server):
    server.page_limit = 2
    others = [{"name": f"other-{number}"} for number in range(6)]
    path = write(*others)
    apply(path, server)
    assert all("unchanged" in line for line in apply(path, server))
    assert len(server.recurring) == 7


def test_delete_takes_one_by_name_and_a_wrong_name_hears_the_nearest(write, server):
    apply(write({"name": "weekly"}), server)
    done = maskocr("schedule", "delete", "nigthly", "--endpoint", server.url)
    assert (done.returncode, len(server.recurring)) == (2, 2)
    assert "has no schedule nigthly made by `maskocr schedule apply`: did you mean nightly?" in done.stderr
    assert maskocr("schedule", "delete", "nightly", "--endpoint", server.url).returncode == 0
    assert [run["display_name"] for run in server.recurring.values()] == ["weekly"]


def test_show_has_state_version_and_the_next_three_runs_in_both_zones(write, server):
    path = write({"name": "gone"}, timezone="Asia/Tokyo")
    apply(path, server)
    path = write(timezone="Asia/Tokyo")
    with recurring.opened(server.url) as endpoint:
        nightly, gone = recurring.show(schedules_file.read(path), endpoint, NOW)
    assert (nightly.state, nightly.version[12:]) == ("enabled", " of today's YAML")
    assert [f"{own:%d %H:%M %Z} {there:%d %H:%M %Z}" for own, there in nightly.next] == [
        "02 02:30 JST 01 17:30 UTC",
        "03 02:30 JST 02 17:30 UTC",
        "04 02:30 JST 03 17:30 UTC",
    ]
    assert (gone.name, gone.state) == ("gone", "enabled, not in the file")
    assert apply(path, server)[-1].startswith(
        "gone: on the endpoint and not in the file; `maskocr schedule delete gone`"
    )


def test_show_tells_what_apply_would_mend(write, server):
    def state():
        with recurring.opened(server.url) as endpoint:
            [row] = recurring.show(schedules_file.read(path), endpoint, NOW)
        return row.state, row.version

    path = write()
    assert state() == ("absent: apply", "")
    apply(path, server)
    assert state()[0] == "enabled"
    for changed in (
        {"cron": "0 5 * * *"},
        {"enabled": False},
        {"experiment": "other"},
        {"parameters": {"data_uri": "b"}},
    ):
        path = write(**changed)
        assert state()[0] == "enabled, not as in the file: apply"
    path = write()
    pipeline = path.parent / "tiny.yaml"
    pipeline.write_text(pipeline.read_text().replace("maskocr-python:test", "maskocr-python:next"))
    assert state()[1].endswith(" of another YAML: apply")
    server.versions.clear()
    assert state()[1] == "deleted: apply"
    [run] = server.recurring.values()
    server.recurring["twin"] = run | {"recurring_run_id": "twin"}
    assert state()[0] == "2 of it: apply"


def test_show_prints_a_table(write, server):
    path = write()
    apply(path, server)
    done = maskocr("schedule", "show", "--file", str(path), "--endpoint", server.url)
    assert done.returncode == 0, done.stderr
    assert "nightly" in done.stdout and "enabled" in done.stdout and done.stdout.count("02:30 UTC = ") == 3


@pytest.mark.parametrize("command", ["apply", "show", "pause", "delete"])
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"token": "right"}, r"refuses \(401\): give a token"),
        ({"page": "/"}, "does not answer as the KFP API does"),
        ({"page": "/apis/v2beta1/recurringruns"}, "does not answer as the KFP API does"),
        ({"prefix": "/pipeline/apis/v2beta1"}, "does not answer as the KFP API does"),
    ],
)
def test_an_endpoint_that_is_no_open_kfp_api_is_told_apart(write, command, setting, sentence):
    plans = schedules_file.read(write())
    act = {
        "apply": lambda endpoint: recurring.apply(plans, endpoint),
        "show": lambda endpoint: recurring.show(plans, endpoint, NOW),
        "pause": lambda endpoint: recurring.pause("nightly", endpoint),
        "delete": lambda endpoint: recurring.delete("nightly", endpoint),
    }[command]
    with Server(**setting) as server, pytest.raises(RuntimeError, match=sentence):
        with recurring.opened(server.url) as endpoint:
            act(endpoint)


@pytest.mark.parametrize("page", ["pipelines", "experiments"])
def test_a_log_in_page_in_the_middle_of_an_apply_ends_it(write, page):
    with Server(page=f"/apis/v2beta1/{page}") as server, pytest.raises(RuntimeError, match="not answer as the KFP API"):
        apply(write(), server)


def test_a_valid_token_is_let_in(write):
    with Server(token="right") as server:
        done = maskocr("schedule", "apply", "--file", str(write()), "--endpoint", server.url, KFP_TOKEN="right")
        assert done.returncode == 0, done.stderr
        assert len(server.recurring) == 1


def test_an_endpoint_that_refuses_the_connection_is_one_sentence(write):
    done = maskocr("schedule", "show", "--file", str(write()), "--endpoint", "http://127.0.0.1:9")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
    assert "cannot be reached" in done.stderr and "port-forward" in done.stderr


@pytest.mark.parametrize("command", ["apply", "show", "pause", "delete"])
def test_the_help_of_every_command_has_an_example(command):
    assert f"Example: maskocr schedule {command} " in maskocr("schedule", command, "--help").stdout


def test_no_endpoint_is_refused_with_the_choices(write):
    done = maskocr("schedule", "apply", "--file", str(write()))
    assert (done.returncode, done.stdout) == (2, "")
    assert "give --endpoint URL or set KFP_ENDPOINT, or --local" in done.stderr


# What happens here


class Clock(datetime):
    """`datetime` whose `now` is where the test has moved it."""

    moment = NOW

    @classmethod
    def now(cls, tz=None):
        return cls.moment.astimezone(tz)


@pytest.fixture
def simulated(monkeypatch):
    """A way to run plans from ten minutes after NOW on, looking at the clock every `beat` minutes; what was said."""
    from apscheduler.executors import base as executor
    from apscheduler.executors.debug import DebugExecutor
    from apscheduler.schedulers import base

    class Simulated(base.BaseScheduler):
        def wakeup(self):
            self._process_jobs()

        def shutdown(self, wait=True):  # abstract in the library
            super().shutdown(wait)

    def travel(plans, root, start, hours, beat=10.0):
        def pass_time():
            Clock.moment += timedelta(minutes=beat)
            if Clock.moment > NOW + timedelta(hours=hours):
                raise KeyboardInterrupt

        monkeypatch.setattr(base, "datetime", Clock)
        monkeypatch.setattr(executor, "datetime", Clock)
        monkeypatch.setattr(Clock, "moment", NOW + timedelta(minutes=10))
        scheduler, said = Simulated(timezone=UTC, executors={"default": DebugExecutor()}), []
        here.run_here(plans, root, start, scheduler=scheduler, beat=pass_time, say=said.append)
        return said

    return travel


def test_here_every_time_of_a_schedule_starts_one_run_in_its_own_zone(write, simulated, tmp_path):
    plans = schedules_file.read(write({"name": "six", "cron": "0 */6 * * *"}, timezone="Europe/Berlin"), local=True)
    started = []
    simulated(plans, tmp_path, lambda plan: started.append((plan.name, Clock.moment)), hours=24)
    assert started == [
        ("nightly", NOW + timedelta(hours=1, minutes=30)),
        *(("six", NOW + timedelta(hours=hours)) for hours in (6, 12, 18, 24)),
    ]


def test_here_a_run_that_fails_is_told_and_the_next_time_comes(write, simulated, tmp_path):
    def fail(plan):
        raise RuntimeError("exit code 1")

    said = simulated(schedules_file.read(write(cron="0 * * * *"), local=True), tmp_path, fail, hours=3)
    assert said.count("nightly: run failed: exit code 1") == 3


def test_here_times_that_a_sleeping_machine_missed_become_one_run(write, simulated, tmp_path):
    started = []
    plans = schedules_file.read(write(cron="*/20 * * * *"), local=True)
    simulated(plans, tmp_path, lambda plan: started.append(Clock.moment), hours=11, beat=305)
    assert started == [NOW + timedelta(minutes=315), NOW + timedelta(minutes=620)]


def test_here_a_time_missed_by_more_than_an_hour_is_left_out_and_told(write, simulated, tmp_path):
    started = []
    said = simulated(schedules_file.read(write(), local=True), tmp_path, started.append, hours=11, beat=300)
    assert started == []
    assert "nightly: the run of 2027-01-01 02:30 UTC could not begin within 60 minutes and is left out" in said


def test_here_a_time_that_comes_during_a_run_is_left_out_and_told(write, tmp_path):
    import threading

    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    [plan] = schedules_file.read(write(cron="* * * * *"), local=True)
    scheduler = BackgroundScheduler(timezone=UTC, executors={"default": ThreadPoolExecutor(1)})
    begun, over, said, runs = threading.Event(), threading.Event(), [], []

    def start(plan):
        runs.append(plan.name)
        begun.set()
        over.wait(30)

    def beat():
        if len(said) > 1 or len(runs) > 1:
            over.set()
            raise KeyboardInterrupt
        scheduler.modify_job("nightly", next_run_time=datetime.now(UTC))
        begun.wait(30)
        over.wait(0.05)

    here.run_here([plan], tmp_path, start, scheduler=scheduler, beat=beat, say=said.append)
    assert runs == ["nightly"]
    assert "nightly: the run before is still at work, this one is left out" in said


def test_here_a_second_process_is_told_who_runs_the_schedules(write, tmp_path):
    plans = schedules_file.read(write(), local=True)

    def second():
        assert here.busy(tmp_path) == f"process {os.getpid()}"
        shown = maskocr("schedule", "show", "--local", "--file", str(write()), "--root", str(tmp_path))
        assert f"process {os.getpid()}" in shown.stdout
        done = maskocr("schedule", "apply", "--local", "--file", str(write()), "--root", str(tmp_path))
        assert done.returncode == 1
        assert f"process {os.getpid()} runs schedules in {tmp_path} already: stop it first" in done.stderr
        raise KeyboardInterrupt

    here.run_here(plans, tmp_path, lambda plan: None, beat=second, say=lambda line: None)
    assert here.busy(tmp_path) == ""


def test_here_a_run_is_what_maskocr_run_does(write, tmp_path):
    from maskocr_core.cli import operate

    [plan] = schedules_file.read(write(parameters={"data_uri": "a b", "steps": 2, "words": ["a=b"]}), local=True)
    operate._start(plan, tmp_path / "runs")
    assert [path.name[:5] for path in (tmp_path / "runs").glob("tiny-*")] == ["tiny-"]
    (tmp_path / "tiny.yaml").write_text("gone")
    with pytest.raises(RuntimeError, match="exit code 2"):
        operate._start(plan, tmp_path / "runs")


def test_here_nothing_enabled_is_refused(write, tmp_path):
    done = maskocr("schedule", "apply", "--local", "--file", str(write(enabled=False)), "--root", str(tmp_path))
    assert (done.returncode, "no schedule of the file is enabled" in done.stderr) == (2, True)
