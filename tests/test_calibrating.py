"""The calibration beside a recogniser, and what a reader makes of it."""

import json

import numpy as np
import packed
import pytest
import rendered
import torch

from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.judging import weights
from maskocr_core.judging.comparison import Readings
from maskocr_core.judging.confidence import calibration
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.reader import Reader, read_images
from maskocr_core.training import calibrating, checkpoint, finetuning, judged

SETTINGS = config.load("smoke")
LINES = 80
USABLE = calibration.Calibration((0.0, 1.0), (0.2, 0.8), 1234, 9, {0.01: 0.75}, True, "")
UNUSABLE = calibration.Calibration((), (), 30, 2, {0.01: None}, False, "only 2 documents: label more")


@pytest.fixture
def folder(tmp_path):
    """A recogniser that was never trained."""
    torch.manual_seed(0)
    encoder = checkpoint.new_encoder(SETTINGS.model, SETTINGS.data.height)
    recognizer = Recognizer(encoder, Vocabulary("0123456789"))
    checkpoint.save_recognizer(recognizer, SETTINGS.model, SETTINGS.data, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    content = {"val": packed.short_lines(LINES, seed=0)}
    return packed.source(packed.pack(tmp_path_factory.mktemp("packs"), content), "val", SETTINGS.data)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "line.png"
    path.write_bytes(rendered.png(rendered.line("12345")))
    return path


def keep(found, folder):
    weights = json.loads((folder / "recognizer.json").read_text())["sha256"]
    artifacts.write_json(folder / "calibration.json", calibration.to_json(found) | {"recognizer": weights})


def reads_half(recognizer, source, say):
    """Every second line of a document exactly, and surer of those."""
    exact = np.arange(len(source)) % 2 == 0
    texts = [text if right else text + "?" for text, right in zip(source.texts, exact)]
    return texts, np.where(exact, 0.9, 0.6) + np.arange(len(source)) / 1000


def test_a_calibration_is_written_beside_the_recognizer_and_comes_back(folder, validation, monkeypatch):
    monkeypatch.setattr(finetuning, "read", reads_half)
    fitted = calibrating.calibrate(folder, validation)
    assert fitted.usable and (fitted.lines, fitted.documents) == (LINES, LINES // 8)
    assert Reader(folder).calibration == fitted and Reader(folder).calibrated
    low, high = calibration.apply(fitted, [0.6, 0.95])
    assert low < 0.1 and high > 0.9
    assert {path.name for path in folder.iterdir()} == {"recognizer.json", "recognizer.safetensors", "calibration.json"}


def test_usable_confidence_is_judged_on_test_lines_with_what_reviews_come_to(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "read", reads_half)
    splits = {"train": 8, "val": LINES, "test": LINES}
    packs = packed.pack(
        tmp_path, {split: packed.short_lines(count, seed=seed) for seed, (split, count) in enumerate(splits.items())}
    )
    (tmp_path / "trained").mkdir()
    folder.rename(tmp_path / "trained/all")
    calibrating.calibrate(tmp_path / "trained/all", packed.source(packs, "val", SETTINGS.data))
    source = packed.source(packs, "test", SETTINGS.data)
    texts, confidences = reads_half(None, source, None)
    candidate = Readings("scratch", {"all": [texts]}, 0, (list(confidences),))
    inputs = judged.Inputs(Artifact(packs[0]), Artifact(packs[0]), Artifact(packs[1]), tmp_path, None)
    cheap = weights.load().model_copy(update={"review_cost": 0.01})
    trust = judged.confidence(inputs, source, candidate, tmp_path / "trained", SETTINGS, cheap)
    assert trust.said["usable"] and trust.said["exact"]["value"] == 0.5 and trust.plot.startswith(b"\x89PNG")
    assert trust.check.verdict == "holds" and trust.check.bound <= trust.check.value == trust.said["ece"]["value"]
    # Half of the lines are wrong and known to be: a person reads these, and nothing is left to cost.
    reviews = [(row["factor"], row["share"], row["cost"]["value"]) for row in trust.said["review"]]
    assert reviews == [(factor, 0.5, pytest.approx(0.005 * factor)) for factor in (1.0, 0.5, 2.0)]
    dear = judged.confidence(
        inputs, source, candidate, tmp_path / "trained", SETTINGS, cheap.model_copy(update={"review_cost": 100.0})
    )
    assert [(row["threshold"], row["share"]) for row in dear.said["review"]] == [(0.0, 0.0)] * 3


def test_a_recognizer_that_reads_nothing_is_calibrated_as_unusable_and_read_from_as_before(folder, validation, image):
    before = Reader(folder)
    raw = before.read([image.read_bytes()])
    assert not before.calibrated and before.calibration is None
    fitted = calibrating.calibrate(folder, validation)
    assert not fitted.usable and fitted.reason.startswith(f"only 0 of {LINES} lines read exactly")
    after = Reader(folder)
    assert not after.calibrated and after.calibration == fitted and after.read([image.read_bytes()]) == raw


def test_lines_of_another_height_are_prepared_as_the_recognizer_has_them(folder, validation):
    higher = validation.with_geometry(SETTINGS.data.model_copy(update={"height": SETTINGS.data.height + 8}))
    loaded = checkpoint.load_recognizer(folder)
    texts, confidences = calibrating.readings(*loaded, higher, "here")
    expected = calibrating.readings(*loaded, validation, "there")
    assert texts == expected[0] and confidences == pytest.approx(expected[1])


def test_a_folder_without_a_recognizer_is_not_calibrated(tmp_path, validation):
    with pytest.raises(ValueError, match="give the folder of a trained recognizer"):
        calibrating.calibrate(tmp_path, validation)
    assert not (tmp_path / "calibration.json").exists()


def test_a_reader_gives_the_calibrated_probability(folder, image):
    encoded = [image.read_bytes()]
    [(text, raw)] = Reader(folder).read(encoded)
    keep(USABLE, folder)
    assert Reader(folder).read(encoded) == [(text, pytest.approx(0.2 + 0.6 * raw))]
    assert Reader(folder).read([]) == []


def test_a_calibration_of_other_weights_is_refused(folder):
    keep(USABLE, folder)
    recognizer, _ = checkpoint.load_recognizer(folder)
    with torch.no_grad():
        recognizer.head.bias += 1
    checkpoint.save_recognizer(recognizer, SETTINGS.model, SETTINGS.data, folder)
    with pytest.raises(
        ValueError, match=r"calibration\.json was made of other weights .*: calibrate the recognizer again"
    ):
        Reader(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1}'])
def test_a_damaged_calibration_is_refused_by_its_name(folder, content):
    (folder / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match=r"model/calibration\.json.*calibrate the recognizer again"):
        Reader(folder)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (USABLE, "confidences are calibrated: the probability that a line is exact, by 1,234 lines of 9 documents\n"),
        (UNUSABLE, "confidences are not calibrated, and no probabilities: only 2 documents: label more\n"),
        (None, "confidences are not calibrated, and no probabilities: the model has no calibration.json\n"),
    ],
)
def test_reading_images_prints_the_confidence_if_asked_and_says_whether_it_is_calibrated(
    folder, image, capsys, found, said
):
    if found:
        keep(found, folder)
    [(text, confidence)] = Reader(folder).read([image.read_bytes()])
    assert read_images([image], folder, SETTINGS.registry, confidence=True)
    shown = capsys.readouterr()
    assert shown.out == f"{image}\t{text}\t{confidence:.4f}\n" and shown.err.endswith(said)
    assert read_images([image], folder, SETTINGS.registry)
    shown = capsys.readouterr()
    assert shown.out == f"{image}\t{text}\n" and "confidences" not in shown.err
