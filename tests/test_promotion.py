"""Promotions on a real MLflow: a person decides, the ledger remembers, and what went past it is noticed."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
from browsing import mlflow_ui

from maskocr_core import auditing, promotion
from maskocr_core.config import Registry
from maskocr_core.services import ledger, registered, storage, tracking
from maskocr_core.services.ledger import Entry

DIGEST = "5" * 64
REGISTRY = Registry()


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """MLflow's database with a registered model and nothing else, made once: making one takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        tracking.connection().create_registered_model(REGISTRY.model)
    return path


@pytest.fixture
def client(database, tmp_path, monkeypatch):
    """MLflow's own client, which moves aliases as the UI does, on a database of this test."""
    shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MASKOCR_WHO", "archivist")
    return tracking.connection()


@pytest.fixture
def candidate(client, tmp_path):
    """Registers a version as the stage does, but for the training, judged against the champion of now; returns its number."""

    def register(verdict="promote"):
        against = champion()
        version = str(client.create_model_version(REGISTRY.model, f"file://{tmp_path}/no-weights").version)
        alias = None if verdict == "hold" else "challenger"
        tags = {"verdict": verdict, "verdict_digest": DIGEST, "judged_against": against or ""}
        registered.describe_version(REGISTRY, version, tags, "", alias)
        promotion.record_verdict(REGISTRY, version, verdict, DIGEST, f"The gate says {verdict}.", alias, against)
        return version

    return register


def champion() -> str | None:
    return registered.version_of(REGISTRY, "champion")


def entries() -> tuple[Entry, ...]:
    return ledger.read(ledger.place()).demand_whole().entries


def flags() -> dict[int, tuple[str, ...]]:
    return {row.entry.number: row.flags for row in auditing.audit(REGISTRY).rows if row.flags}


def refused(call, *arguments, **options) -> str:
    """The sentence with which something is refused that changes neither champion nor ledger."""
    before = champion(), entries()
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    assert (champion(), entries()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


# A person decides


def test_the_first_promotion_makes_a_champion_and_says_who_when_and_why(candidate):
    version = candidate("first")
    entry = promotion.promote(REGISTRY, version, "reads well enough")
    assert champion() == version
    assert (entry.kind, entry.version, entry.replaces, entry.who) == ("promotion", version, None, "archivist")
    assert (entry.reason, entry.verdict, entry.verdict_digest, entry.override) == (
        "reads well enough",
        "first",
        DIGEST,
        False,
    )
    assert time.strptime(entry.when, "%Y-%m-%dT%H:%M:%SZ")
    assert entries()[-1] == entry and [e.kind for e in entries()] == ["verdict", "promotion"]


@pytest.mark.parametrize("verdict", ["promote", "undecided"])
def test_what_the_gate_does_not_hold_replaces_the_champion(candidate, verdict):
    promotion.promote(REGISTRY, candidate("first"), "the first one")
    entry = promotion.promote(REGISTRY, candidate(verdict), "better on long lines")
    assert champion() == "2" and entry.replaces == "1" and not entry.override


def test_a_verdict_against_an_earlier_champion_is_refused_whatever_the_tags_say(client, candidate):
    first, second, third = (candidate() for _ in range(3))
    promotion.promote(REGISTRY, first, "the first one")
    why = "version 2 was judged when there was no champion, and the champion is version 1 now: evaluate it again"
    assert why in refused(promotion.promote, REGISTRY, second, "better")
    assert promotion.promote(REGISTRY, second, "seen on 40 pages", override=True).override
    late = candidate()
    promotion.roll_back(REGISTRY, "worse")
    assert "version 4 was judged against version 2, and the champion is version 1 now" in refused(
        promotion.promote, REGISTRY, late, "better"
    )
    client.set_model_version_tag(REGISTRY.model, third, "judged_against", first)
    assert "the tag judged_against is '1', entry 3 says ''" in refused(promotion.promote, REGISTRY, third, "better")
    assert ["judged_against" in row.flags[0] for row in auditing.audit(REGISTRY).rows if row.flags] == [True]


def test_what_the_gate_holds_is_refused_with_its_reason(candidate):
    assert "the gate holds version 1: The gate says hold; --override" in refused(
        promotion.promote, REGISTRY, candidate("hold"), "why not"
    )


def test_a_person_may_override_the_gate_with_a_reason(candidate):
    version = candidate("hold")
    assert "say why" in refused(promotion.promote, REGISTRY, version, "  ", override=True)
    entry = promotion.promote(REGISTRY, version, "the old model loses its licence", override=True)
    assert champion() == version and entry.override and entry.verdict == "hold"
    assert auditing.audit(REGISTRY).clean, "overridden with a reason, by somebody, is nothing to be found out"


def test_an_override_that_overrides_nothing_is_not_called_one(candidate):
    assert not promotion.promote(REGISTRY, candidate("first"), "good", override=True).override


@pytest.mark.parametrize("version", ["2", "0", "x"])
def test_a_version_that_is_not_there_is_refused(candidate, version):
    candidate()
    assert f"has no version {version}" in refused(promotion.promote, REGISTRY, version, "why not", override=True)


def test_a_deleted_version_is_refused(client, candidate):
    client.delete_model_version(REGISTRY.model, candidate())
    assert "version 1, or it was deleted" in refused(promotion.promote, REGISTRY, "1", "why not")


def test_the_champion_is_not_promoted_again(candidate):
    promotion.promote(REGISTRY, candidate(), "good")
    assert "is champion already" in refused(promotion.promote, REGISTRY, "1", "very good")


@pytest.mark.parametrize(
    "tag, value, sentence",
    [
        ("verdict", "promote", "the tag verdict is 'promote', entry 1 says 'hold'"),
        ("verdict", None, "the tag verdict is missing"),
        ("verdict_digest", "0" * 64, f"the tag verdict_digest is '{'0' * 64}', entry 1 says '{DIGEST}'"),
        ("verdict_digest", None, "the tag verdict_digest is missing"),
    ],
)
def test_a_verdict_tag_that_was_changed_is_refused_and_flagged(client, candidate, tag, value, sentence):
    version = candidate("hold")
    client.delete_model_version_tag(REGISTRY.model, version, tag)
    if value:
        client.set_model_version_tag(REGISTRY.model, version, tag, value)
    assert sentence in refused(promotion.promote, REGISTRY, version, "the page says so")
    assert sentence in flags()[1][0]
    assert promotion.promote(REGISTRY, version, "evaluated by hand", override=True).override


def test_a_version_without_a_verdict_in_the_ledger_is_refused(client, tmp_path):
    client.create_model_version(REGISTRY.model, f"file://{tmp_path}/no-weights")
    client.set_model_version_tag(REGISTRY.model, "1", "verdict", "promote")
    assert "the ledger holds no verdict on version 1" in refused(promotion.promote, REGISTRY, "1", "looks good")
    assert promotion.promote(REGISTRY, "1", "registered before there was a ledger", override=True).verdict is None


# A roll-back


def test_a_roll_back_brings_the_champion_before_and_twice_the_one_before_that(candidate):
    for _ in range(3):
        promotion.promote(REGISTRY, candidate(), "better")
    entry = promotion.roll_back(REGISTRY, "drops the last character")
    assert champion() == "2" and (entry.kind, entry.version, entry.replaces) == ("rollback", "2", "3")
    promotion.roll_back(REGISTRY, "this one too")
    assert champion() == "1"
    assert "no earlier champion to roll back to" in refused(promotion.roll_back, REGISTRY, "and this one")


def test_what_was_promoted_again_after_a_roll_back_rolls_back_to_the_same(candidate):
    for version in (candidate() for _ in range(2)):
        promotion.promote(REGISTRY, version, "better")
    promotion.roll_back(REGISTRY, "worse")
    promotion.promote(REGISTRY, "2", "it was the camera")
    assert promotion.roll_back(REGISTRY, "it was not").version == "1"


def test_a_roll_back_wants_a_champion_before_and_a_reason(candidate):
    assert "no earlier champion" in refused(promotion.roll_back, REGISTRY, "why")
    promotion.promote(REGISTRY, candidate(), "good")
    assert "no earlier champion" in refused(promotion.roll_back, REGISTRY, "why")
    assert "say why" in refused(promotion.roll_back, REGISTRY, "")


def test_a_roll_back_to_a_deleted_version_is_refused(client, candidate):
    for version in (candidate() for _ in range(2)):
        promotion.promote(REGISTRY, version, "better")
    client.delete_model_version(REGISTRY.model, "1")
    assert "version 1 was champion before, and was deleted" in refused(promotion.roll_back, REGISTRY, "worse")


def test_a_roll_back_brings_back_an_alias_that_was_taken_away(client, candidate):
    promotion.promote(REGISTRY, candidate(), "good")
    client.delete_registered_model_alias(REGISTRY.model, "champion")
    promotion.roll_back(REGISTRY, "taken away by mistake")
    assert champion() == "1"
    assert [e.kind for e in entries()][-2:] == ["seen", "rollback"]


# Moves in the MLflow UI


def test_a_move_in_the_ui_is_written_down_by_the_next_audit_and_flagged(client, candidate):
    promotion.promote(REGISTRY, candidate(), "good")
    client.set_registered_model_alias(REGISTRY.model, "champion", candidate())
    audit = auditing.audit(REGISTRY)
    seen = audit.rows[-1].entry
    assert (seen.kind, seen.version, seen.replaces, seen.who, seen.reason) == ("seen", "2", "1", "unknown", "")
    assert audit.rows[-1].flags == ("no reason",) and not audit.clean
    assert auditing.audit(REGISTRY).rows == audit.rows, "it is written down once"


def test_a_move_in_the_ui_against_the_gate_or_without_its_verdict_is_flagged_as_such(client, candidate, tmp_path):
    client.set_registered_model_alias(REGISTRY.model, "champion", candidate("hold"))
    auditing.audit(REGISTRY)
    unknown = client.create_model_version(REGISTRY.model, f"file://{tmp_path}/no-weights").version
    client.set_registered_model_alias(REGISTRY.model, "champion", unknown)
    assert list(flags().values()) == [("no reason", "against hold"), ("no reason", "no verdict")]


@pytest.mark.parametrize(
    "command",
    [
        lambda version: promotion.promote(REGISTRY, version, "better"),
        lambda version: promotion.roll_back(REGISTRY, "worse"),
        lambda version: promotion.confirm(REGISTRY, "it was me"),
        lambda version: promotion.notice(REGISTRY),
    ],
    ids=["promote", "roll_back", "confirm", "notice"],
)
def test_every_command_notices_a_move_in_the_ui(client, candidate, command, capsys):
    promotion.promote(REGISTRY, candidate(), "good")
    moved = candidate()
    client.set_registered_model_alias(REGISTRY.model, "champion", moved)
    command(candidate())
    assert [e.version for e in entries() if e.kind == "seen"] == [moved]
    assert f"noticed: version {moved} was made champion without maskocr" in capsys.readouterr().err


def test_a_champion_from_before_the_ledger_is_written_down_as_seen(client, candidate):
    client.set_registered_model_alias(REGISTRY.model, "champion", candidate())
    promotion.notice(REGISTRY)
    assert entries()[-1].kind == "seen" and entries()[-1].replaces is None


def test_an_alias_that_is_taken_away_or_whose_version_is_deleted_is_a_move_to_none(client, candidate):
    promotion.promote(REGISTRY, candidate(), "good")
    client.delete_model_version(REGISTRY.model, "1")
    assert flags() == {3: ("no reason",)}
    assert entries()[-1].version is None and entries()[-1].replaces == "1"


def test_a_registered_model_that_is_deleted_whole_and_begun_anew_has_verdicts_of_its_own(client, candidate):
    promotion.promote(REGISTRY, candidate("first"), "good")
    client.delete_registered_model(REGISTRY.model)
    assert promotion.notice(REGISTRY).version is None
    client.create_registered_model(REGISTRY.model)
    version = candidate("hold")
    assert version == "1" and "the gate holds version 1" in refused(
        promotion.promote, REGISTRY, "1", "it was good before"
    )


def test_a_confirmation_gives_the_reason_and_ends_the_flag(client, candidate):
    client.set_registered_model_alias(REGISTRY.model, "champion", candidate("hold"))
    promotion.notice(REGISTRY)
    entry = promotion.confirm(REGISTRY, "the judge asked for it")
    assert (entry.kind, entry.confirms, entry.who, entry.reason) == (
        "confirmation",
        2,
        "archivist",
        "the judge asked for it",
    )
    assert champion() == "1" and auditing.audit(REGISTRY).clean


def test_each_move_wants_its_own_confirmation_the_latest_first(client, candidate):
    for version in (candidate() for _ in range(2)):
        client.set_registered_model_alias(REGISTRY.model, "champion", version)
        promotion.notice(REGISTRY)
    moves = [e.number for e in entries() if e.kind == "seen"]
    assert [promotion.confirm(REGISTRY, "me").confirms for _ in moves] == moves[::-1]
    assert "nothing to confirm" in refused(promotion.confirm, REGISTRY, "me")


def test_a_confirmation_wants_a_reason(client, candidate):
    client.set_registered_model_alias(REGISTRY.model, "champion", candidate())
    promotion.notice(REGISTRY)
    assert "say why" in refused(promotion.confirm, REGISTRY, "")


def test_a_champion_moved_back_in_the_ui_counts_as_rolled_back(client, candidate):
    for version in (candidate() for _ in range(2)):
        promotion.promote(REGISTRY, version, "better")
    client.set_registered_model_alias(REGISTRY.model, "champion", "1")
    assert "no earlier champion" in str(pytest.raises(ValueError, promotion.roll_back, REGISTRY, "worse").value)
    assert champion() == "1"


# Commands that are cut off, and two at once


class Killed(BaseException):
    """The process ends here."""


def killed(*arguments):
    raise Killed


@pytest.mark.parametrize("at", ["move_alias", "tag_model"])
def test_a_promotion_cut_off_after_its_entry_is_finished_by_the_next_command(candidate, monkeypatch, at, capsys):
    promotion.promote(REGISTRY, candidate(), "good")
    version = candidate()
    with monkeypatch.context() as patch:
        patch.setattr(registered, at, killed)
        with pytest.raises(Killed):
            promotion.promote(REGISTRY, version, "better")
    assert champion() == ("1" if at == "move_alias" else "2")
    assert auditing.audit(REGISTRY).clean and champion() == version
    assert [e.kind for e in entries()] == ["verdict", "promotion", "verdict", "promotion"]
    assert ("was cut off" in capsys.readouterr().err) == (at == "move_alias")


def test_a_promotion_cut_off_before_its_entry_never_was(candidate, monkeypatch):
    version = candidate()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", killed)
        with pytest.raises(Killed):
            promotion.promote(REGISTRY, version, "good")
    assert auditing.audit(REGISTRY).clean and champion() is None and len(entries()) == 1


def test_a_promotion_that_was_finished_and_moved_back_in_the_ui_is_no_cut_off_one(client, candidate):
    for version in (candidate() for _ in range(2)):
        promotion.promote(REGISTRY, version, "better")
    client.set_registered_model_alias(REGISTRY.model, "champion", "1")
    assert promotion.notice(REGISTRY).version == "1" and champion() == "1"


def test_a_cut_off_promotion_of_a_version_deleted_since_does_not_block_the_next_command(client, candidate, monkeypatch):
    promotion.promote(REGISTRY, candidate(), "good")
    version = candidate()
    with monkeypatch.context() as patch:
        patch.setattr(registered, "move_alias", killed)
        with pytest.raises(Killed):
            promotion.promote(REGISTRY, version, "better")
    client.delete_model_version(REGISTRY.model, version)
    assert promotion.notice(REGISTRY).version == "1" and champion() == "1"


def test_a_slow_command_does_not_move_the_alias_back_over_a_later_one(candidate, monkeypatch):
    """Of two commands that both have their entry, the slower one moves the alias last."""
    first, second = candidate(), candidate()
    move = registered.move_alias

    def overtaken(registry, alias, version):
        monkeypatch.setattr(registered, "move_alias", move)
        promotion.promote(REGISTRY, second, "better still", override=True)
        move(registry, alias, version)

    monkeypatch.setattr(registered, "move_alias", overtaken)
    promotion.promote(REGISTRY, first, "good")
    assert champion() == second and auditing.audit(REGISTRY).clean


def test_a_move_in_the_ui_while_a_promotion_is_decided_is_told_to_the_promoter(client, candidate, monkeypatch):
    versions = candidate(), candidate()
    append, calls = ledger.append, []

    def late(place, write):
        calls.append(place)
        if len(calls) == 2:  # after what `notice` does
            client.set_registered_model_alias(REGISTRY.model, "champion", versions[1])
        return append(place, write)

    monkeypatch.setattr(ledger, "append", late)
    with pytest.raises(
        ValueError, match="version 1 was not made champion: version 2 was in the meantime .in MLflow itself"
    ):
        promotion.promote(REGISTRY, versions[0], "good")
    assert champion() == "2"


PROMOTER = """
import sys, time
from pathlib import Path
from maskocr_core import cli
from maskocr_core.services import ledger

append = ledger.append

def together(place, write):
    # The second call is the promotion's own: everything was read and weighed, nothing is written yet.
    together.calls += 1
    if together.calls == 2:
        Path(f"ready-{sys.argv[3]}").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    return append(place, write)

together.calls, ledger.append = 0, together
cli.main()
"""


def promoted_at_once(versions, folder, **environment):
    """Two processes that promote one version each, neither of which writes before both have decided."""
    processes = {
        version: subprocess.Popen(
            [sys.executable, "-c", PROMOTER, "promote", "--version", version, "--reason", f"version {version} is best"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"MASKOCR_WHO": f"promoter of {version}"} | environment,
            cwd=folder,
        )
        for version in versions
    }
    end = time.monotonic() + 120
    while not all((folder / f"ready-{version}").exists() for version in versions):
        assert time.monotonic() < end and all(process.poll() is None for process in processes.values())
        time.sleep(0.05)
    (folder / "go").touch()
    return {version: (*process.communicate(timeout=120), process.returncode) for version, process in processes.items()}


def one_won_and_the_other_was_told(versions, outcomes):
    winner, loser = sorted(versions, key=lambda version: outcomes[version][2])
    assert outcomes[winner][2] == 0 and f"version {winner} is champion" in outcomes[winner][0], outcomes
    assert outcomes[loser][2] == 2, outcomes
    assert f"version {loser} was not made champion: version {winner} was in the meantime" in outcomes[loser][1]
    assert f"by promoter of {winner}" in outcomes[loser][1] and f'"version {winner} is best"' in outcomes[loser][1]
    assert champion() == winner
    assert [e.version for e in entries() if e.kind == "promotion"][-1] == winner
    assert auditing.audit(REGISTRY).clean


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(candidate, tmp_path):
    promotion.promote(REGISTRY, candidate(), "good")
    versions = candidate(), candidate()
    one_won_and_the_other_was_told(versions, promoted_at_once(versions, tmp_path))


@pytest.mark.services
def test_of_two_promotions_at_once_with_the_ledger_in_s3_one_wins_and_the_other_is_told(
    at_s3, candidate, tmp_path, monkeypatch
):
    monkeypatch.setenv("MASKOCR_LEDGER", "s3://lines-bucket/decisions")
    versions = candidate(), candidate()
    one_won_and_the_other_was_told(versions, promoted_at_once(versions, tmp_path))
    assert not Path("ledger").exists()


# An audit


def test_an_entry_that_was_changed_is_named_by_an_audit_and_stops_every_command(candidate):
    promotion.promote(REGISTRY, candidate("hold"), "I know better", override=True)
    path = Path(ledger.place()) / "00000002.json"
    path.write_text(path.read_text().replace('"override": true', '"override": false'))
    audit = auditing.audit(REGISTRY)
    assert "00000002.json was changed after it was written" in audit.fault and not audit.clean
    assert [row.entry.number for row in audit.rows] == [1]
    for command in (promotion.roll_back, promotion.confirm):
        with pytest.raises(ValueError, match="00000002.json was changed"):
            command(REGISTRY, "why")
    with pytest.raises(ValueError, match="00000002.json was changed"):
        promotion.notice(REGISTRY)


def test_a_ledger_whose_end_was_cut_off_is_noticed(candidate):
    promotion.promote(REGISTRY, candidate(), "good")
    (Path(ledger.place()) / "00000002.json").unlink()
    assert "MLflow knows entry 2 of the ledger, and the one at" in auditing.audit(REGISTRY).fault
    with pytest.raises(ValueError, match="ends with entry 1: bring back what was there"):
        promotion.promote(REGISTRY, candidate(), "good")


def test_a_last_entry_written_anew_is_noticed(candidate):
    entry = promotion.promote(REGISTRY, candidate("hold"), "I know better", override=True)
    path = Path(ledger.place()) / "00000002.json"
    path.unlink()
    assert storage.create(str(path), ledger._encoded(dataclasses.asdict(dataclasses.replace(entry, override=False))))
    assert ledger.read(ledger.place()).fault is None, "the chain alone cannot know"
    assert "holds another one" in auditing.audit(REGISTRY).fault


def test_another_ledger_is_not_begun_by_mistake(candidate, monkeypatch, tmp_path):
    version = candidate()
    monkeypatch.setenv("MASKOCR_LEDGER", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="set MASKOCR_LEDGER to where it is, or delete the tag maskocr.ledger"):
        promotion.promote(REGISTRY, version, "good")
    assert not (tmp_path / "elsewhere").exists()


def test_two_models_share_a_ledger_and_know_nothing_of_each_other(client, candidate):
    promotion.promote(REGISTRY, candidate(), "good")
    other = Registry(model="other")
    client.create_registered_model("other")
    registered.describe_version(
        other,
        str(client.create_model_version("other", "file:///no-weights").version),
        {"verdict": "first", "verdict_digest": DIGEST, "judged_against": ""},
        "",
        None,
    )
    promotion.record_verdict(other, "1", "first", DIGEST, "The gate says first.", None, None)
    assert promotion.promote(other, "1", "good too").replaces is None
    assert [row.entry.number for row in auditing.audit(other).rows] == [3, 4]
    assert [row.entry.number for row in auditing.audit(REGISTRY).rows] == [1, 2]


# The command line


def maskocr(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "maskocr_core.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"} | environment
    )


def test_the_commands_promote_confirm_roll_back_and_audit(client, candidate):
    candidate("first"), candidate("hold")
    done = maskocr("promote", "--version", "1", "--reason", "reads [bold]well[/]")
    assert (done.returncode, done.stdout) == (0, "entry 3: maskocr version 1 is champion (verdict first)\n")
    done = maskocr("promote", "--version", "2", "--reason", "newer")
    assert done.returncode == 2 and "the gate holds version 2" in done.stderr and done.stderr.count("\n") == 1
    done = maskocr("promote", "--version", "2", "--reason", "newer", "--override")
    assert "version 2 is champion in the place of version 1 (verdict hold, overridden)" in done.stdout
    done = maskocr("rollback", "--reason", "worse")
    assert "version 1 is champion in the place of version 2" in done.stdout
    assert maskocr("audit").returncode == 0
    client.set_registered_model_alias(REGISTRY.model, "champion", "2")
    done = maskocr("audit")
    assert done.returncode == 1 and "unknown" in done.stdout and "no reason; against hold" in done.stdout
    assert "[bold]well[/]" in done.stdout, "what people write is shown as it is"
    done = maskocr("promote", "--confirm", "--reason", "it was me")
    assert done.stdout == "entry 7: the move of entry 6 has its reason now\n"
    done = maskocr("audit", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["clean"] and told["champion"] == "2" and told["fault"] is None
    assert [row["entry"]["kind"] for row in told["rows"]] == [
        "verdict", "verdict", "promotion", "promotion", "rollback", "seen", "confirmation",
    ]  # fmt: skip


def test_an_audit_of_a_broken_ledger_shows_what_is_whole_and_ends_with_code_1(candidate):
    candidate("first"), candidate("hold")
    (Path(ledger.place()) / "00000002.json").write_text("{")
    done = maskocr("audit")
    assert done.returncode == 1 and "NOT WHOLE: " in done.stdout and "00000002.json is damaged" in done.stdout
    assert "The gate says first." in done.stdout


@pytest.mark.parametrize("arguments", [(), ("--version", "1", "--confirm"), ("--confirm", "--override")])
def test_promote_wants_either_a_version_or_a_confirmation(arguments):
    done = maskocr("promote", "--reason", "why", *arguments)
    assert done.returncode == 2 and "give either --version N" in done.stderr


@pytest.mark.parametrize("command", ["promote", "rollback", "audit"])
def test_the_help_says_what_happens_what_is_refused_and_an_example(command):
    shown = maskocr(command, "--help").stdout
    assert "Example: maskocr " + command in shown
    assert ("Refused:" in shown) == (command != "audit") and ("Exit code 1:" in shown) == (command == "audit")


def test_an_audit_without_mlflow_says_the_mend():
    done = maskocr(
        "audit",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MASKOCR_LEDGER="decisions",
    )
    assert done.returncode == 2 and "start it, or set MLFLOW_TRACKING_URI" in done.stderr


# As the MLflow UI shows it


def test_the_page_of_the_model_follows_the_ledger_and_keeps_what_people_wrote(client, candidate):
    client.update_registered_model(REGISTRY.model, "Reads parish registers.")
    promotion.promote(REGISTRY, candidate("first"), "the first one")
    page = client.get_registered_model(REGISTRY.model).description
    assert page.startswith("Reads parish registers.") and "**Version 1**" in page and "the first one" in page
    client.update_registered_model(REGISTRY.model, "Reads parish registers.")  # as a command that died leaves it
    auditing.audit(REGISTRY)
    assert client.get_registered_model(REGISTRY.model).description == page


def test_a_page_that_cannot_be_written_costs_no_decision_and_is_said(client, candidate, monkeypatch, capsys):
    def away(*arguments):
        raise ValueError("MLflow does not answer")

    version = candidate("first")
    with monkeypatch.context() as patch:
        patch.setattr(registered, "describe_model", away)
        promotion.promote(REGISTRY, version, "the first one")
    assert champion() == version and "could not be brought up to date" in capsys.readouterr().err
    assert "the first one" not in client.get_registered_model(REGISTRY.model).description
    assert auditing.audit(REGISTRY).clean
    assert "the first one" in client.get_registered_model(REGISTRY.model).description


def test_a_description_that_mlflow_has_no_room_for_is_cut_off_at_the_end_of_a_line(client, candidate):
    version = candidate("first")
    registered.describe_version(REGISTRY, version, {}, "- a line of the gate\n" * 400, None)
    said = client.get_model_version(REGISTRY.model, version).description
    assert len(said) <= registered.DESCRIPTION and said.endswith("a line of the gate\n\n… the rest is in the report.")
    assert len(registered.fitting("x" * 9000)) == registered.DESCRIPTION


@pytest.mark.services
@pytest.mark.browser
def test_the_ui_shows_a_promotion_a_refusal_an_override_a_move_made_in_it_and_a_roll_back(candidate, tmp_path):
    from playwright.sync_api import expect

    backend = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with (
        servers.mlflow(tmp_path / "server", backend, str(tmp_path / "artifacts"), {}) as address,
        mlflow_ui(address) as tab,
    ):

        def shown(champion: str, *rows: str) -> None:
            """That the pages of the model and of its versions say who is champion, and the former these rows, the last first."""
            tab.goto("#/models")  # so that the page is read anew
            expect(tab.get_by_role("link", name=REGISTRY.model, exact=True)).to_be_visible()
            tab.goto(f"#/models/{REGISTRY.model}")
            expect(tab.get_by_text(f"Version {champion} since ")).to_be_visible()
            told = tab.get_by_role("listitem").filter(has_text=re.compile(r"^\d{4}-\d\d-\d\dT"))
            for place, row in enumerate(rows):
                expect(told.nth(place)).to_contain_text(row)
            of_champion = tab.get_by_role("row").filter(has=tab.get_by_text("@ champion"))
            expect(of_champion).to_have_count(1)
            expect(of_champion.get_by_role("link", name=f"Version {champion}", exact=True)).to_be_visible()

        promotion.promote(REGISTRY, candidate("first"), "the first one")
        shown("1", "promotion 1 (first), archivist: the first one", "verdict 1 (first)")

        held = candidate("hold")
        refused(promotion.promote, REGISTRY, held, "it is newer")
        shown("1", "verdict 2 against 1 (hold), archivist: The gate says hold.", "promotion 1")

        promotion.promote(REGISTRY, held, "reads the new hand", override=True)
        shown("2", "promotion, override 1 → 2 (hold), archivist: reads the new hand", "verdict 2")

        tab.goto(f"#/models/{REGISTRY.model}/versions/1")
        tab.get_by_title("Edit aliases").click()
        dialog = tab.get_by_role("dialog")
        dialog.get_by_role("combobox").fill("champion")
        dialog.get_by_role("combobox").press("Enter")
        dialog.get_by_role("button", name="Save aliases").click()
        expect(dialog).to_be_hidden()
        expect(tab.get_by_text("@ champion")).to_be_visible()
        assert flags() == {5: ("no reason",)}
        shown("1", "seen 2 → 1 (first), unknown: no reason yet", "promotion, override 1 → 2")

        promotion.confirm(REGISTRY, "the board wants the old one")
        shown("1", "confirmation of 5 1, archivist: the board wants the old one", "seen 2 → 1 (first), unknown")

        promotion.promote(REGISTRY, candidate("promote"), "reads long lines")
        promotion.roll_back(REGISTRY, "drops the last letter")
        shown("1", "rollback 3 → 1 (first), archivist: drops the last letter", "promotion 1 → 3 (promote)")
