import json
import os
import pickle

import pytest
import torch

from maskocr_core import artifacts
from maskocr_core.config import Data, Model
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.step_features import Pixels
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.training import checkpoint, codebooks

MODEL, HEIGHT = Model(width=32, depth=2, heads=2), 32
DATA = Data(height=HEIGHT, max_width=512)


class Trap:
    """Unpickling this leaves a file behind."""

    def __init__(self, sign):
        self.sign = str(sign)

    def __reduce__(self):
        return os.mkdir, (self.sign,)


def finished(folder, kind):
    return artifacts.finish(folder, kind=kind, config={}, metrics={})


@pytest.fixture
def encoder_artifact(tmp_path):
    torch.manual_seed(0)
    checkpoint.save_encoder(checkpoint.new_encoder(MODEL, HEIGHT), MODEL, DATA, tmp_path / "encoder")
    return finished(tmp_path / "encoder", "encoder")


@pytest.fixture
def recognizer_folder(tmp_path):
    torch.manual_seed(0)
    recognizer = Recognizer(checkpoint.new_encoder(MODEL, HEIGHT), Vocabulary("zaß☃"))
    checkpoint.save_recognizer(recognizer, MODEL, DATA, tmp_path / "recognizer")
    return tmp_path / "recognizer"


def of_version(path, version):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))


def test_an_encoder_comes_back_as_it_was(encoder_artifact):
    torch.manual_seed(0)
    expected = checkpoint.new_encoder(MODEL, HEIGHT).state_dict()
    found = checkpoint.load_encoder(encoder_artifact, MODEL, DATA).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "model, height, named",
    [
        (MODEL.model_copy(update={"width": 64}), HEIGHT, "width 32 here, 64 asked"),
        (MODEL.model_copy(update={"depth": 3}), HEIGHT, "depth 2 here, 3 asked"),
        (MODEL.model_copy(update={"heads": 4}), HEIGHT, "heads 2 here, 4 asked"),
        (MODEL.model_copy(update={"stem": "linear"}), HEIGHT, "stem convolutional here, linear asked"),
        (MODEL, 40, "height 32 here, 40 asked"),
    ],
)
def test_an_encoder_of_another_size_is_refused_with_what_differs(encoder_artifact, model, height, named):
    with pytest.raises(
        ValueError, match=rf"another shape \({named}\): run pretrain again, or set model\.\* and data\.height"
    ):
        checkpoint.load_encoder(encoder_artifact, model, DATA.model_copy(update={"height": height}))


def test_dropout_is_no_part_of_an_encoders_shape(encoder_artifact):
    assert (
        checkpoint.load_encoder(encoder_artifact, MODEL.model_copy(update={"dropout": 0.1}), DATA).blocks[0].dropout
        == 0.1
    )


def test_a_transplant_says_what_it_loaded_and_fails_on_a_missing_weight(capsys):
    tensors = checkpoint.new_encoder(MODEL, HEIGHT).state_dict()
    count = len(tensors)
    checkpoint.transplant(checkpoint.new_encoder(MODEL, HEIGHT), tensors | {"head.weight": torch.zeros(2)}, "elsewhere")
    assert capsys.readouterr().out == f"encoder from elsewhere: {count} tensors loaded, 0 missing, 1 unexpected\n"
    del tensors["blocks.1.up.weight"]
    with pytest.raises(
        ValueError, match=r"elsewhere lacks encoder weights blocks\.1\.up\.weight: it is not an encoder of this size"
    ):
        checkpoint.transplant(checkpoint.new_encoder(MODEL, HEIGHT), tensors, "elsewhere")


def test_a_recognizer_comes_back_with_its_vocabulary_and_geometry(recognizer_folder):
    recognizer, facts = checkpoint.load_recognizer(recognizer_folder)
    assert recognizer.vocabulary == Vocabulary("zaß☃") and not recognizer.training
    assert (facts["height"], facts["max_width"], facts["model"]) == (HEIGHT, 512, MODEL.model_dump(mode="json"))


def test_a_changed_recognizer_file_is_refused(recognizer_folder):
    path = recognizer_folder / "recognizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="recognizer.safetensors does not have the digest that was written beside it"):
        checkpoint.load_recognizer(recognizer_folder)


def test_a_changed_encoder_file_is_refused(encoder_artifact):
    path = encoder_artifact.folder / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + b"12345678")
    with pytest.raises(ValueError, match="was changed after it was written; restore it or run its stage again"):
        checkpoint.load_encoder(encoder_artifact, MODEL, DATA)


def test_a_folder_without_a_recognizer_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(
        ValueError, match="holds no recognizer.json and recognizer.safetensors: give the folder of a trained recognizer"
    ):
        checkpoint.load_recognizer(tmp_path)


def test_a_pickle_planted_beside_the_weights_is_not_loaded(recognizer_folder, tmp_path):
    before = checkpoint.load_recognizer(recognizer_folder)[0].state_dict()
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for name in ("recognizer.pt", "recognizer.pkl", "pytorch_model.bin", "recognizer.bin", "step-99999999.pt"):
        (recognizer_folder / name).write_bytes(trap)
    after = checkpoint.load_recognizer(recognizer_folder)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # it would have been seen


def test_a_pickle_under_the_name_of_the_weights_is_refused_and_not_run(tmp_path):
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "recognizer.safetensors")
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        checkpoint.load_tensors(tmp_path / "recognizer.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_a_recognizer_of_an_unknown_format_is_refused(recognizer_folder):
    of_version(recognizer_folder / "recognizer.json", 99)
    with pytest.raises(ValueError, match="format_version 99 is not 2; install the maskocr that wrote it"):
        checkpoint.load_recognizer(recognizer_folder)


def test_an_encoder_of_an_unknown_format_is_refused(encoder_artifact):
    of_version(encoder_artifact.folder / "encoder.json", 99)
    with pytest.raises(ValueError, match="format_version 99 is not 1; install the maskocr that wrote it"):
        checkpoint.load_encoder(finished(encoder_artifact.folder, "encoder"), MODEL, DATA)


def test_a_codebook_of_an_unknown_format_is_refused(tmp_path):
    book = Codebook(HEIGHT, Pixels(16), torch.zeros(512), torch.zeros(4, 512), torch.zeros(3, 4))
    codebooks.save(book, DATA, tmp_path / "codebook")
    found = codebooks.load(finished(tmp_path / "codebook", "codebook"), DATA)
    assert found.height == HEIGHT and torch.equal(found.centroids, book.centroids)
    of_version(tmp_path / "codebook/codebook.json", 99)
    with pytest.raises(ValueError, match="format_version 99 is not 2; install the maskocr that wrote it"):
        codebooks.load(finished(tmp_path / "codebook", "codebook"), DATA)
