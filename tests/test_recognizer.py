import packed
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core import config
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import BLANK, Vocabulary

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


def recognizer(characters="abc 123", seed=0):
    torch.manual_seed(seed)
    return Recognizer(Encoder(32, 32, 2, 2, "convolutional", 0.0), Vocabulary(characters)).eval()


def test_a_vocabulary_holds_each_character_once_in_order_and_the_blank_first():
    vocabulary = Vocabulary.of(["über", "rüber", "e"])
    assert vocabulary.characters == "berü" and len(vocabulary) == 5
    assert vocabulary.encode("bü") == [1, 4] and BLANK not in vocabulary.encode("berü")


@given(texts, texts)
def test_a_union_keeps_the_classes_that_were_there(old, new):
    old, new = Vocabulary.of([old]), Vocabulary.of([new])
    union = old.union(new)
    assert union.characters.startswith(old.characters)
    assert set(union.characters) == set(old.characters) | set(new.characters)
    assert len(set(union.characters)) == len(union.characters)
    assert union.encode(old.characters) == old.encode(old.characters)


@given(texts)
def test_a_text_comes_back_when_its_classes_are_repeated_and_parted_by_blanks(text):
    vocabulary = Vocabulary.of([text])
    path = [label for encoded in vocabulary.encode(text) for label in (encoded, encoded, BLANK)]
    assert vocabulary.decode(path) == text


def test_decoding_merges_repeats_and_drops_blanks():
    vocabulary = Vocabulary("abl")
    assert vocabulary.decode([0, 1, 1, 0, 3, 3, 0, 3, 2, 0, 0]) == "allb"
    assert vocabulary.decode([3, 3, 3]) == "l"
    assert vocabulary.decode([0, 0]) == "" == vocabulary.decode([])


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
    ink, valid = torch.rand(1, 1, 32, 64), torch.ones(1, 8, dtype=torch.bool)
    assert new == 0
    assert torch.equal(wider(ink, valid), old(ink, valid))


def test_a_line_is_read_alike_alone_and_in_a_batch(tmp_path):
    settings = config.load("smoke")
    lines = packed.source(
        packed.pack(tmp_path, {"train": packed.short_lines(12, seed=0, length=(2, 20))}), "train", settings.data
    )
    model = recognizer()
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
    model.head.bias[BLANK] = -100.0  # every step that is read gives a character
    ink, valid = torch.zeros(1, 1, 32, 512), torch.zeros(1, 64, dtype=torch.bool)
    valid[0, 0] = True
    texts, _ = model.read(ink, valid)
    assert len(texts[0]) == 1
