"""Where fine-tuning starts: what a run takes from a trained encoder or recogniser, and how gently it treats it at first."""

import json
from itertools import islice
from pathlib import Path

import packed
import pytest
import torch
from conftest import run_stage
from typer.testing import CliRunner

from maskocr_core import artifacts, cli, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.data import admitted, batches
from maskocr_core.model.decoder import Decoder
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.reader import Reader
from maskocr_core.services import cluster
from maskocr_core.training import checkpoint, finetuning, sweep
from maskocr_core.training.finetuning import Run
from maskocr_core.training.kept_runs import KeptRun
from maskocr_core.training.log import TrainingLog

V1 = Path(__file__).parent / "formats/recognizer-1"
SPLITS = ("train", "val")


def settings(*overrides):
    return config.load("smoke", ["sweep.steps=24", "model.dropout=0.1", *overrides])


AUTOREGRESSIVE = "sweep.decoder=autoregressive"
GENTLE = ("sweep.layer_decay=0.5", "sweep.frozen=0.5")


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    lines = {
        "train": packed.short_lines(40, seed=1, length=(3, 9)),
        "val": packed.short_lines(8, seed=2),
    }
    return packed.pack(tmp_path_factory.mktemp("packs"), lines, shard_lines=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of an encoder: as if pre-trained."""
    folder, chosen = tmp_path_factory.mktemp("encoder"), settings()
    torch.manual_seed(5)
    fresh = checkpoint.new_encoder(chosen.model, chosen.data.height)
    checkpoint.save_encoder(fresh, chosen.model, chosen.data, folder)
    return artifacts.finish(folder, kind="encoder", config={}, metrics={}).folder


def run(**start):
    return Run("here", SPLITS, 0, 1e-3, 0, 24, **start)


def train(packs, folder, configuration, **start):
    result = finetuning.train(run(**start), configuration, *packs, folder)
    return result, checkpoint.load_recognizer(folder / "all")[0]


def encoder_of(folder):
    """The encoder's weights of a recogniser's folder, by name."""
    tensors = checkpoint.load_tensors(folder / "recognizer.safetensors")
    return {name.removeprefix("encoder."): tensors[name] for name in tensors if name.startswith("encoder.")}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_an_autoregressive_run_keeps_the_encoder_that_it_starts_from_while_that_is_frozen(packs, encoder, tmp_path):
    start = checkpoint.load_tensors(encoder / "encoder.safetensors")
    result, recognizer = train(packs, tmp_path, settings(AUTOREGRESSIVE, "sweep.frozen=1"), encoder=str(encoder))
    assert result["decoder"] == "autoregressive" == recognizer.decoder
    assert same(encoder_of(tmp_path / "all"), start)


def test_an_encoder_stays_as_it_was_in_its_frozen_share_of_the_steps_alone(packs, encoder, tmp_path, monkeypatch):
    start, seen = checkpoint.load_tensors(encoder / "encoder.safetensors"), {}

    def watch(curve, step):
        seen[step] = same({name: t.clone() for name, t in curve.recognizer.encoder.state_dict().items()}, start)
        return {}

    monkeypatch.setattr(finetuning.Curve, "validate", watch)
    monkeypatch.setattr(finetuning.Curve, "at_marks", lambda curve: {})
    finetuning.train(run(encoder=str(encoder)), settings("sweep.frozen=0.5"), *packs, tmp_path)
    assert seen == {6: True, 12: True, 18: False, 24: False}


def test_lower_layers_move_less_under_layer_decay(packs, encoder, tmp_path):
    start, moved = checkpoint.load_tensors(encoder / "encoder.safetensors"), {}
    for decay in (1.0, 0.1):
        train(packs, tmp_path / str(decay), settings(f"sweep.layer_decay={decay}"), encoder=str(encoder))
        now = encoder_of(tmp_path / str(decay) / "all")
        moved[decay] = {
            part: max((now[name] - start[name]).abs().max().item() for name in start if name.startswith(part))
            for part in ("stem.", "blocks.0.", "blocks.1.")
        }
    kept = {part: moved[0.1][part] / moved[1.0][part] for part in moved[1.0]}
    assert 0 < kept["stem."] < kept["blocks.0."] < kept["blocks.1."] < 0.5


def test_a_start_from_scratch_is_neither_frozen_nor_slowed_and_has_the_same_key(packs, tmp_path):
    plain, gentle = settings(), settings(*GENTLE)
    (result, _), (again, _) = (
        train(packs, tmp_path / name, each) for name, each in (("plain", plain), ("gentle", gentle))
    )
    assert same(encoder_of(tmp_path / "plain/all"), encoder_of(tmp_path / "gentle/all"))
    assert result["validation_cer"] == again["validation_cer"]
    assert run().key(plain, "lines", "selection", "code") == run().key(gentle, "lines", "selection", "code")


def test_decoder_and_gentleness_are_in_the_key_of_a_run_that_starts_from_trained_weights(packs, encoder):
    changes = [(), (AUTOREGRESSIVE,), *((each,) for each in GENTLE)]
    keys = {run(encoder=str(encoder)).key(settings(*each), "lines", "selection", "code") for each in changes}
    assert len(keys) == len(changes)


@pytest.fixture(scope="module")
def with_old(tmp_path_factory):
    """Lines of the target and of a transfer source, and a recogniser that reads the latter."""
    root = tmp_path_factory.mktemp("old")
    old = packed.short_lines(40, seed=9, alphabet="ABCDE")
    short = packed.short_lines
    packs = packed.pack(
        root, {"train": short(16, seed=1), "val": short(8, seed=2), "transfer-train": old, "transfer-val": old[:8]}
    )
    base = finetuning.Run("transfer base", ("transfer-train", "transfer-val"), 0, 1e-3, 0, 24)
    finetuning.train(base, settings(), *packs, root / "base")
    return packs, root / "base" / "all"


def test_old_lines_are_replayed_in_their_share(with_old, tmp_path, monkeypatch):
    packs, base = with_old
    drawn, texts = batches.training, []

    def watching(source, **others):
        for batch in drawn(source, **others):
            texts.extend(batch.texts)
            yield batch

    monkeypatch.setattr(batches, "training", watching)
    train(packs, tmp_path, settings("sweep.replay=0.4", "sweep.steps=24"), recognizer=str(base))
    share = sum(text.isalpha() for text in texts) / len(texts)
    assert share == pytest.approx(0.4, abs=0.1)
    texts.clear()
    train(packs, tmp_path / "scratch", settings("sweep.replay=0.4"))
    assert not any(text.isalpha() for text in texts)  # one that never knew them has nothing to forget


def test_a_share_of_the_old_weights_stays_in_what_is_kept(with_old, tmp_path):
    packs, base = with_old
    start = encoder_of(base)
    moved = {}
    for share in (0.0, 0.5, 0.9):
        train(packs, tmp_path / str(share), settings(f"sweep.average={share}"), recognizer=str(base))
        now = encoder_of(tmp_path / str(share) / "all")
        moved[share] = sum((now[name] - start[name]).abs().sum().item() for name in start)
    assert 0 < moved[0.9] < moved[0.5] < moved[0.0]


def test_of_a_head_that_is_new_no_old_weights_stay(with_old, tmp_path, monkeypatch):
    packs, base = with_old
    validated, read = [], finetuning.read

    def watching(recognizer, *rest):
        validated.append({name: weight.clone() for name, weight in recognizer.state_dict().items()})
        return read(recognizer, *rest)

    monkeypatch.setattr(finetuning, "read", watching)
    for share in (0.0, 0.5):
        train(packs, tmp_path / str(share), settings(AUTOREGRESSIVE, f"sweep.average={share}"), recognizer=str(base))
    plain, averaged = validated[: len(validated) // 2], validated[len(validated) // 2 :]
    moved = {
        name
        for one, other in zip(plain, averaged, strict=True)
        for name in one
        if not torch.equal(one[name], other[name])
    }
    assert moved and all(name.startswith("encoder.") for name in moved)


def test_remedies_are_in_the_key_of_a_run_that_can_forget_alone(with_old):
    packs, base = with_old
    changes = ((), ("sweep.replay=0.2",), ("sweep.average=0.2",))

    def keys(**start):
        return {run(**start).key(settings(*each), "lines", "selection", "code") for each in changes}

    assert len(keys(recognizer=str(base))) == 3 and len(keys()) == 1


class Stop(Exception):
    pass


def test_with_a_store_another_machine_goes_on_with_a_killed_run_and_a_third_takes_it_finished(
    packs, tmp_path, monkeypatch
):
    stream = batches.training

    def machine(name, *, steps):
        """The run on a machine of its own; how many steps it made there, and what came of it."""
        made = []

        def counted(source, *, first_step=0, **rest):
            for batch in islice(stream(source, first_step=first_step, **rest), steps):
                made.append(batch)
                yield batch
            raise Stop

        monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / name))
        monkeypatch.setattr(batches, "training", counted)
        try:
            result, _ = train(packs, tmp_path / name / "runs/key", settings())
        except Stop:
            result = None
        return len(made), result

    whole, _ = train(packs, tmp_path / "alone", settings())
    monkeypatch.setenv("MASKOCR_STORE", str(tmp_path / "store"))
    assert machine("first", steps=14) == (14, None)
    made, result = machine("second", steps=99)
    assert made == 24 - 12 and result["curve"] == whole["curve"] and result["resumed_at"] == 12
    # The first comes back, with a curve that is behind: what the second made of the run counts.
    for name in ("first", "third"):
        assert machine(name, steps=99) == (0, result)
        for mark in ("quarter", "half", "all"):
            files = [tmp_path / each / mark / "recognizer.safetensors" for each in (f"{name}/runs/key", "alone")]
            assert files[0].read_bytes() == files[1].read_bytes()
        rows = [TrainingLog(tmp_path / each / "log.jsonl").rows() for each in (f"{name}/runs/key", "alone")]
        assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


@pytest.mark.parametrize("kill", range(4))
def test_a_run_that_was_killed_while_it_was_brought_from_the_store_is_brought_whole_by_the_next(
    tmp_path, monkeypatch, kill
):
    monkeypatch.setenv("MASKOCR_STORE", str(tmp_path / "store"))
    files = [*(f"{mark}/recognizer.json" for mark in finetuning.MARKS), "curve.json"]
    mine, theirs = (KeptRun(tmp_path / machine / "runs/key") for machine in ("mine", "theirs"))
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "theirs"))
    for name in files:
        artifacts.write_json(theirs.folder / name, [[6, 0.5]])
        theirs.keep(name)
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "mine"))
    write, written = artifacts.write_bytes, iter(range(4))

    def deadly(path, content):
        if next(written) == kill:
            raise Stop
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(artifacts, "write_bytes", deadly)
        mine.bring()
    mine.bring()
    assert all((mine.folder / name).is_file() for name in files)


def test_a_run_that_was_killed_before_its_result_was_kept_is_kept_by_the_next_attempt(packs, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKOCR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "mine"))
    folder = tmp_path / "mine/runs/key"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        keep = KeptRun.keep

        def deadly(self, *names):
            if finetuning.RESULT in names:
                raise Stop
            keep(self, *names)

        patch.setattr(KeptRun, "keep", deadly)
        finetuning.train(run(), settings(), *packs, folder)
    made = finetuning.train(run(), settings(), *packs, folder)
    monkeypatch.setenv("MASKOCR_WORK", str(tmp_path / "theirs"))
    theirs = KeptRun(tmp_path / "theirs/runs/key")
    theirs.bring()
    assert json.loads((theirs.folder / finetuning.RESULT).read_text()) == made


def test_what_a_run_could_not_start_from_is_refused_before_the_first_run(packs, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "carry_out", None)
    high = settings("data.height=40")
    with pytest.raises(ValueError, match="the encoder has another shape"):
        sweep.demand_starts(["scratch", "pretrained"], settings("model.width=48"), encoder, None)
    checkpoint.save_recognizer(
        Recognizer(checkpoint.new_encoder(high.model, 40), Vocabulary("ab")), high.model, high.data, tmp_path
    )
    with pytest.raises(ValueError, match="reads lines 40 px high, these are 32 px: set data.height=40"):
        sweep.demand_starts(["scratch", "transfer"], settings(), encoder, tmp_path)
    with pytest.raises(ValueError, match="reads lines 40 px high, these are 32 px: set data.height=40"):
        stages.get("finetune")(
            settings('sweep.starts=["transfer"]'),
            lines=packs[0],
            selection=packs[1],
            encoder=encoder,
            transfer_uri=str(tmp_path),
            recognizers_out=tmp_path / "out",
        )
    sweep.demand_starts(["scratch"], settings("model.width=48"), encoder, None)


@pytest.mark.cluster
def test_a_run_on_ray_whose_process_is_killed_in_mid_step_goes_on_from_its_checkpoint(packs, tmp_path):
    def killed_once(*call):
        import os
        import signal

        from maskocr_core.data import batches
        from maskocr_core.training import finetuning

        stream, mark = batches.training, call[-1].with_suffix(".killed")

        def deadly(*arguments, **rest):
            for step, batch in enumerate(stream(*arguments, **rest)):
                if step == 14 and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        batches.training = deadly
        return finetuning.train(*call)

    (resumed,) = cluster.each(killed_once, [(run(), settings(), *packs, tmp_path / "run")], jobs=1)
    assert (tmp_path / "run.killed").exists() and resumed["resumed_at"] == 12
    whole, _ = train(packs, tmp_path / "whole", settings())
    assert resumed["curve"] == whole["curve"] and resumed["loss"] == whole["loss"]
    for mark in ("quarter", "half", "all"):
        files = [tmp_path / each / mark / "recognizer.safetensors" for each in ("run", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("stop", [7, 13, 21])
@pytest.mark.parametrize("decoder", ["ctc", "autoregressive"])
def test_a_gentle_run_that_was_killed_equals_an_uninterrupted_one_to_the_bit(
    packs, encoder, tmp_path, monkeypatch, decoder, stop
):
    """In its frozen half, where it thaws, and after."""
    stream, gentle = batches.training, settings(f"sweep.decoder={decoder}", *GENTLE)

    def stopping(source, *, first_step=0, **rest):
        yield from islice(stream(source, first_step=first_step, **rest), stop - first_step)
        raise Stop

    monkeypatch.setattr(batches, "training", stopping)
    with pytest.raises(Stop):
        train(packs, tmp_path / "killed", gentle, encoder=str(encoder))
    monkeypatch.setattr(batches, "training", stream)
    resumed, _ = train(packs, tmp_path / "killed", gentle, encoder=str(encoder))
    whole, _ = train(packs, tmp_path / "whole", gentle, encoder=str(encoder))
    assert resumed["resumed_at"] == stop // 6 * 6 > 0 == whole["resumed_at"]
    assert resumed["curve"] == whole["curve"] and resumed["loss"] == whole["loss"]
    for name in ("quarter", "half", "all"):
        files = [tmp_path / each / name / "recognizer.safetensors" for each in ("killed", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    rows = [TrainingLog(tmp_path / each / "log.jsonl").rows() for each in ("killed", "whole")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert rows[1][-1]["validation_cer"] == whole["curve"][-1][1] and whole["curve"][-1][0] == 24


@pytest.mark.parametrize("decoder, other", [("ctc", "autoregressive"), ("autoregressive", "ctc")])
def test_a_recognizer_with_the_same_decoder_goes_on_with_its_head_and_another_gives_its_encoder(
    packs, tmp_path, capsys, decoder, other
):
    model = settings().model
    torch.manual_seed(3)
    known = Vocabulary("0123456789xyz")
    given = Recognizer(checkpoint.new_encoder(model, settings().data.height), known, decoder=decoder)
    checkpoint.save_recognizer(given, model, settings().data, tmp_path / "given")
    start = {"recognizer": str(tmp_path / "given")}
    result, further = train(packs, tmp_path / decoder, settings("sweep.frozen=1", f"sweep.decoder={decoder}"), **start)
    assert result["new_characters"] == 0 and further.vocabulary == known and further.decoder == decoder
    capsys.readouterr()
    result, changed = train(packs, tmp_path / other, settings("sweep.frozen=1", f"sweep.decoder={other}"), **start)
    assert f"has the decoder {decoder!r}: its encoder is taken, the head is new" in capsys.readouterr().out
    assert result["new_characters"] == 10 and changed.vocabulary == Vocabulary("0123456789")
    for name in (decoder, other):
        assert same(encoder_of(tmp_path / name / "all"), given.encoder.state_dict())


def test_a_recognizer_says_which_decoder_it_has(packs, tmp_path):
    _, recognizer = train(packs, tmp_path, settings(AUTOREGRESSIVE))
    facts = json.loads((tmp_path / "all/recognizer.json").read_text())
    assert (facts["format_version"], facts["decoder"]) == (2, "autoregressive")
    assert isinstance(recognizer.head, Decoder)


def test_a_recognizer_of_format_1_is_read_as_one_of_ctc():
    """The sample was written by the code of that format, and reads the line beside it."""
    assert json.loads((V1 / "recognizer.json").read_text()).keys().isdisjoint({"decoder"})
    recognizer, facts = checkpoint.load_recognizer(V1)
    assert recognizer.decoder == facts["decoder"] == "ctc"
    (text, confidence), *_ = Reader(V1).read([(V1 / "line.png").read_bytes()])
    assert text == "allée 12" and confidence == pytest.approx(0.9746, abs=1e-3)


def test_an_autoregressive_recognizer_goes_through_the_stages_and_reads_files(road, raw, tmp_path):
    configuration = config.load("smoke", [AUTOREGRESSIVE, *GENTLE, 'sweep.starts=["pretrained"]'])
    root = tmp_path / "road"
    for name in ("lines", "validation", "selection", "encoder"):
        artifacts.publish(road[name], root / name)
    for name in ("finetune", "evaluate", "register"):
        run_stage(name, configuration, raw, root)
    runs = Artifact(root / "recognizers").read_json("runs.json")
    assert [row["decoder"] for row in runs["runs"]] == ["autoregressive"]
    assert json.loads((root / "registration/registration.json").read_text())["version"]
    image = next(iter(batches.lines.images_of(Artifact(root / "lines"), "test", [first_test_line(root)])))
    (tmp_path / "line.png").write_bytes(image)
    model = root / "recognizers/pretrained-0/all"
    shown = CliRunner().invoke(cli.app, ["read", str(tmp_path / "line.png"), "--model", str(model)])
    assert shown.exit_code == 0 and len(shown.stdout.splitlines()) == 1


def first_test_line(root):
    table = admitted.selected(Artifact(root / "lines"), Artifact(root / "selection"), "test")
    return table["line_id"][0].as_py()
