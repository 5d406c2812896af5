import packed
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core import config
from maskocr_core.model.ctc import best_path
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import SPECIAL, Vocabulary

decoders = pytest.mark.parametrize("decoder", ["ctc", "autoregressive"])
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


def recognizer(characters="abc 123", decoder="ctc", direction="ltr"):
    torch.manual_seed(0)
    encoder = Encoder(32, 32, 2, 2, "convolutional", 0.0)
    return Recognizer(encoder, Vocabulary(characters), direction, decoder).eval()


def test_a_vocabulary_holds_each_character_once_in_order_and_the_special_class_first():
    vocabulary = Vocabulary.of(["über", "rüber", "e"])
    assert vocabulary.characters == "berü" and len(vocabulary) == 5
    assert vocabulary.encode("bü") == [1, 4] and SPECIAL not in vocabulary.encode("berü")


@given(texts, texts)
def test_a_union_keeps_the_classes_that_were_there(old, new):
    old, new = Vocabulary.of([old]), Vocabulary.of([new])
    union = old.union(new)
    assert union.characters.startswith(old.characters)
    assert set(union.characters) == set(old.characters) | set(new.characters)
    assert len(set(union.characters)) == len(union.characters)
    assert union.encode(old.characters) == old.encode(old.characters)


@given(texts)
def test_a_text_comes_back_from_its_classes(text):
    vocabulary = Vocabulary.of([text])
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.lists(st.integers(1, 9), max_size=12))
def test_a_text_comes_back_when_its_classes_are_repeated_and_parted_by_blanks(classes):
    assert best_path([label for each in classes for label in (each, each, SPECIAL)]) == classes


def test_the_best_path_merges_repeats_and_drops_blanks():
    assert best_path([0, 1, 1, 0, 3, 3, 0, 3, 2, 0, 0]) == [1, 3, 3, 2]
    assert best_path([3, 3, 3]) == [3]
    assert best_path([0, 0]) == [] == best_path([])


def test_a_character_that_is_not_in_the_vocabulary_is_left_out():
    assert Vocabulary("ab").encode("aXb☃a") == [1, 2, 1]


@torch.no_grad()
def test_widening_copies_the_rows_that_are_kept_and_counts_the_new_characters():
    old = recognizer("abc")
    wider, new = old.widened(Vocabulary("cbxyz"))
    assert new == 3 and wider.vocabulary.characters == "abcxyz"
    assert torch.equal(wider.head.weight[:4], old.head.weight) and torch.equal(wider.head.bias[:4], old.head.bias)
    assert wider.head.weight.shape[0] == 7 and wider.encoder is old.encoder


@torch.no_grad()
def test_widening_by_nothing_new_changes_no_logit():
    old = recognizer("abc")
    wider, new = old.widened(Vocabulary("ca"))
    steps = torch.rand(1, 8, 32)
    assert new == 0
    assert torch.equal(wider.head(steps), old.head(steps))


@decoders
def test_a_line_is_read_alike_alone_and_in_a_batch(tmp_path, decoder):
    settings = config.load("smoke")
    lines = packed.source(
        packed.pack(tmp_path, {"train": packed.short_lines(12, seed=0, length=(2, 20))}), "train", settings.data
    )
    model = recognizer(decoder=decoder)
    if decoder == "autoregressive":
        model.head.out.bias.data[
            SPECIAL
        ] = -100.0  # fresh from the generator it would end each text after two characters
    batch = lines.collate(range(len(lines)))
    together, confidences = model.read(batch.ink, batch.valid)
    assert len(set(together)) > 6
    for place, (text, confidence) in enumerate(zip(together, confidences)):
        alone = lines.collate([place])
        assert model.read(alone.ink, alone.valid) == ([text], [pytest.approx(confidence, abs=1e-5)])
        assert 0 < confidence <= 1


@torch.no_grad()
def test_padding_adds_no_text():
    model = recognizer()
    model.head.bias[SPECIAL] = -100.0  # every step that is read gives a character
    ink, valid = torch.zeros(1, 1, 32, 512), torch.zeros(1, 64, dtype=torch.bool)
    valid[0, 0] = True
    texts, _ = model.read(ink, valid)
    assert len(texts[0]) == 1


@decoders
@torch.no_grad()
def test_what_is_read_in_the_order_of_the_image_comes_out_as_logical_text(decoder):
    model, text = recognizer(" 12cאב", decoder, "rtl"), "אב 12"
    assert model.vocabulary.decode(model.targets([text])[0]) == "אב 21"
    model.head.read = lambda steps, valid: (model.targets([text]), [0.5])
    assert model.read(torch.rand(1, 1, 32, 64), torch.ones(1, 8, dtype=torch.bool)) == ([text], [0.5])
