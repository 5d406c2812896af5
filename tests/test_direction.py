"""Right-to-left lines: logical text everywhere, mirrored images and turned runs only where the recogniser looks.

Capitals stand for right-to-left letters in the tables below, as in the Unicode Bidirectional Algorithm's own examples.
"""

import base64
import importlib.util
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import packed
import pytest
import rendered
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, features
from typer.testing import CliRunner

from maskocr_core import artifacts, cli, config
from maskocr_core.artifacts import Artifact
from maskocr_core.data import images
from maskocr_core.judging.comparison import Readings
from maskocr_core.model.direction import logical_order, reading_order
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.reader import Reader
from maskocr_core.training import checkpoint, finetuning, pretraining, reading
from maskocr_core.training.finetuning import Run

HEBREW, ARABIC = "אבגדהוזחטיכלמנסעפצקרש", "ابتثجحخدذرزسشصضطظعغفق"
MIRROR = str.maketrans("()[]«»", ")(][»«")
FONT = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
# Raw ink: six rendered lines are learnt by heart sooner with it.
SETTINGS = config.load("smoke", ["data.direction=rtl", "data.ink=raw"])
LTR = config.load("smoke", ["data.ink=raw"])


def lettered(text, alphabet):
    return text.translate({ord("A") + place: letter for place, letter in enumerate(alphabet)})


# Logical order, and the characters as they stand on the page from left to right.
ANYWHERE = [
    ("AB, CD.", ".DC ,BA"),
    ("AB 12 CD", "DC 12 BA"),
    ("12 AB", "BA 12"),
    ("AB 1,234.50 CD", "DC 1,234.50 BA"),
    ("AB 12 34 CD", "DC 34 12 BA"),
    ("AB abc def CD", "DC abc def BA"),
    ("AB abc 12 CD", "DC abc 12 BA"),
    ("AB abc (12) CD", "DC abc (12) BA"),
    ("AB (CD) EF", "FE (DC) BA"),
    ("AB (12) CD", "DC (12) BA"),
    ("AB [abc] «CD»", "«DC» [abc] BA"),
    ("AB ٣٤ CD", "DC ٣٤ BA"),
]


@pytest.mark.parametrize("alphabet", [HEBREW, ARABIC], ids=["Hebrew", "Arabic"])
@pytest.mark.parametrize("logical, page", ANYWHERE)
def test_a_mirrored_line_is_read_from_the_right_of_the_page(logical, page, alphabet):
    logical, page = lettered(logical, alphabet), lettered(page, alphabet)
    assert reading_order(logical, "rtl") == page[::-1].translate(MIRROR)
    assert logical_order(page[::-1].translate(MIRROR), "rtl") == logical


@pytest.mark.parametrize(
    "logical, page, alphabet",
    [
        ("AB 10-12", "10-12 BA", HEBREW),
        ("AB 10-12", "12-10 BA", ARABIC),
        ("AB 50%", "50% BA", HEBREW),
        ("AB 50%", "%50 BA", ARABIC),
    ],
)
def test_signs_in_numbers_stand_as_each_script_sets_them(logical, page, alphabet):
    logical, page = lettered(logical, alphabet), lettered(page, alphabet)
    assert reading_order(logical, "rtl") == page[::-1]
    assert logical_order(page[::-1], "rtl") == logical


hebrew = st.text("אבגדהוזחטםשץ", min_size=1, max_size=5)
arabic = st.text("ابتثجحسش", min_size=1, max_size=5) | st.sampled_from(["مَدْرَسَة", "السّنة", "پنجاه"])
number = st.sampled_from(
    ["7", "12", "1,234", "3.14", "12/5/1948", "10-12", "12:30", "٣٤", "٣٤٫٥", "٤٠٪", "50%", "$5", "₪20", "+3"]
)
latin = st.sampled_from(["a", "abc", "de fg", "é", "x-ray", "A4", "Windows 10", "b (c) d", "C++", "AT&T"])
marks = st.sampled_from(["{}"] * 6 + ["{},", "{}.", "({})", "[{}]", "«{}»", '"{}"', "{}:", "{}?"])
right_to_left = st.builds(str.format, marks, hebrew | arabic)
left_to_right = st.builds(str.format, marks, number | latin)


@given(
    st.lists(right_to_left | st.builds("{} {}".format, left_to_right, right_to_left), min_size=1, max_size=6),
    left_to_right | st.just(""),
)
def test_numbers_and_latin_words_between_right_to_left_words_come_back_exactly(words, last):
    text = " ".join([*words, last]).strip()
    assert logical_order(reading_order(text, "rtl"), "rtl") == text


@given(st.lists(right_to_left | left_to_right, min_size=1, max_size=6))
def test_what_stands_side_by_side_left_to_right_comes_back_as_a_text_that_looks_the_same(words):
    on_the_line = reading_order(" ".join(words), "rtl")
    assert reading_order(logical_order(on_the_line, "rtl"), "rtl") == on_the_line


anything = st.text(st.characters(codec="utf-8"), max_size=20)


@given(anything)
def test_no_character_is_lost_in_either_direction(text):
    def characters(text):
        return sorted(text.translate(str.maketrans(")]}>»›≥⟩", "([{<«‹≤⟨")))

    assert characters(reading_order(text, "rtl")) == characters(text) == characters(logical_order(text, "rtl"))


@given(anything)
def test_a_left_to_right_text_is_left_alone(text):
    assert reading_order(text, "ltr") == text == logical_order(text, "ltr")


def test_marks_stay_behind_their_letter_and_presentation_forms_are_kept():
    assert reading_order("אב c\u0327\u0301a", "rtl") == "אב ac\u0327\u0301"
    assert reading_order("שָׁלוֹם مُحَمَّد", "rtl") == "שָׁלוֹם مُحَمَّد"
    forms = "ﷲ ﻻ ﻡ"
    assert reading_order(forms, "rtl") == forms == unicodedata.normalize("NFC", forms)


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow without libraqm gives no second opinion on the layout")
def test_a_line_is_laid_out_as_libraqm_lays_it_out():
    # Arabic letters that join to nothing that follows: their shape does not depend on the order they are drawn in.
    words = ["שלום", "עד", "دار", "وزر", "12", "1,234", "3.14", "10-12", "50%", "$5", "٣٤", "٣٤٫٥", "abc", "(abc)", "de (f) g",
             "x-ray", "(12)", "[ab]", ",", ".", "(שם)", "C++", "«ab»", "«עד»"]  # fmt: skip
    random = np.random.default_rng(0)
    for _ in range(200):
        text = " ".join(random.choice(words, random.integers(1, 7)))
        page = "".join(reversed(reading_order(text, "rtl"))).translate(MIRROR)
        forced = f"\N{LEFT-TO-RIGHT OVERRIDE}{page}\N{POP DIRECTIONAL FORMATTING}"
        assert np.array_equal(laid_out(text, "rtl"), laid_out(forced, "ltr")), text


def laid_out(text, direction):
    font = ImageFont.truetype(str(FONT), 24, layout_engine=ImageFont.Layout.RAQM)
    canvas = Image.new("L", (900, 40), 255)
    ImageDraw.Draw(canvas).text((10, 30), text, 0, font, "ls", direction=direction, features=["-kern", "-liga"])
    return np.asarray(canvas)


def written(text):
    """A right-to-left line as uint8 (H, W): Arabic letters joined where Pillow can, and apart where it cannot."""
    shaped = features.check("raqm")
    font = ImageFont.truetype(str(FONT), 26, layout_engine=ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC)
    shown = text if shaped else reading_order(text, "rtl")[::-1].translate(MIRROR)
    canvas = Image.new("L", (round(font.getlength(shown)) + 24, 40), 235)
    ImageDraw.Draw(canvas).text((12, 28), shown, 30, font, "ls", **({"direction": "rtl"} if shaped else {}))
    return np.asarray(canvas)


def test_a_mirrored_line_is_the_line_from_right_to_left_cut_at_its_end():
    line = written("שלום עולם 12")
    plain = images.prepare(rendered.png(line), line.shape[0], 8192)
    mirrored = images.prepare(rendered.png(line), line.shape[0], 8192, mirrored=True)
    assert np.array_equal(mirrored, line[:, ::-1]) and np.array_equal(plain, line)
    assert np.array_equal(images.prepare(rendered.png(line), line.shape[0], 64, mirrored=True), line[:, ::-1][:, :64])


def test_a_direction_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"data\.direction: Input should be 'ltr' or 'rtl' \(given: 'up'\)"):
        config.load("smoke", ["data.direction=up"])


TEXTS = ["שנת 1948 עד", "דף 27 (abc)", "מחיר 3.40", "سنة 1948 دار", "صفحة ٢٧ باب", "ثمن 340 (abc)"]
KNOWN = [(text, written(text)) for text in TEXTS]
PACKS = {split: KNOWN for split in ("train", "val", "unlabeled")}


def run(steps, **start):
    return Run("here", ("train", "val"), 0, 3e-3, 0, steps, **start)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """(lines, selection) of Hebrew and Arabic lines, and the folder of a recogniser that knows them by heart."""
    folder = tmp_path_factory.mktemp("learnt")
    settings = config.load(
        "smoke", ["data.ink=raw", "data.direction=rtl", "model.width=64", "sweep.batch=6", "sweep.validations=4"]
    )
    packs = packed.pack(folder, PACKS)
    finetuning.train(run(400), settings, *packs, folder / "run")
    return packs, folder / "run/all"


def test_lines_learnt_by_heart_are_read_in_logical_order_from_files(learnt, tmp_path):
    for number, (_, image) in enumerate(KNOWN):
        (tmp_path / f"{number}.png").write_bytes(rendered.png(image))
    shown = CliRunner().invoke(cli.app, ["read", *map(str, sorted(tmp_path.glob("*.png"))), "--model", str(learnt[1])])
    assert shown.exit_code == 0
    assert [line.split("\t")[1] for line in shown.stdout.splitlines()] == TEXTS


@pytest.mark.parametrize("settings", [SETTINGS, LTR], ids=["rtl", "ltr"])
def test_the_recognizers_own_direction_decides_how_its_lines_are_prepared(learnt, settings):
    packs, folder = learnt
    lines = packed.source(packs, "val", settings.data)
    assert reading.read_with(folder, lines, "all")[0] == lines.texts


def test_a_person_sees_an_example_as_it_stands_on_the_page(learnt):
    lines = packed.source(learnt[0], "val", SETTINGS.data)
    read = Readings("here", {"all": [lines.texts]})
    shown = reading.examples(lines, [read], read)[0]
    line = next(image for text, image in KNOWN if text == shown["reference"])
    expected = images.prepare(rendered.png(line), SETTINGS.data.height, SETTINGS.data.max_width)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["image_png"])))), expected)


def test_the_examples_are_a_typical_a_hard_and_the_two_worst_lines_of_the_candidate(learnt):
    lines = packed.source(learnt[0], "val", SETTINGS.data)
    wrong = [text + number * "?" for number, text in enumerate(lines.texts)]
    candidate, other = Readings("here", {"all": [wrong]}), Readings("there", {"all": [lines.texts]})
    shown = reading.examples(lines, [Readings("here", {"all": [lines.texts]}), other], candidate)
    rates = sorted(number / len(text) for number, text in enumerate(lines.texts))
    found = [(len(row["read"]) - len(row["reference"])) / len(row["reference"]) for row in shown[::2]]
    last = len(rates) - 1
    wanted = [round(0.5 * last), round(0.9 * last), last - 1, last]
    assert found == [rates[place] for place in dict.fromkeys(wanted)]
    assert [row["start_name"] for row in shown] == ["here", "there"] * len(found)
    assert all(row["read"] == row["reference"] for row in shown[1::2])


def test_training_goes_on_from_a_recognizer_of_the_same_direction_and_refuses_another(learnt, tmp_path):
    packs, folder = learnt
    again = finetuning.train(run(4, recognizer=str(folder)), SETTINGS, *packs, tmp_path / "again")
    assert again["new_characters"] == 0
    assert json.loads((tmp_path / "again/all/recognizer.json").read_text())["direction"] == "rtl"
    with pytest.raises(
        ValueError,
        match="run/all reads right-to-left lines, these are left-to-right: set data.direction=rtl if they are not, or give another recognizer",
    ):
        finetuning.train(run(4, recognizer=str(folder)), LTR, *packs, tmp_path / "refused")


def test_a_recognizer_from_before_directions_reads_left_to_right(learnt, tmp_path):
    recognizer = Recognizer(checkpoint.new_encoder(LTR.model, 32), Vocabulary("ab"))
    checkpoint.save_recognizer(recognizer, LTR.model, LTR.data, tmp_path)
    path = tmp_path / "recognizer.json"
    path.write_text(
        json.dumps({name: fact for name, fact in json.loads(path.read_text()).items() if name != "direction"})
    )
    assert Reader(tmp_path).facts["direction"] == "ltr" == checkpoint.load_recognizer(tmp_path)[0].direction


def test_codebook_and_encoder_of_right_to_left_lines_are_refused_for_others(learnt, tmp_path):
    packs = learnt[0]
    codebook = packed.quantized(tmp_path / "codebook", packs, SETTINGS)
    pretraining.train(0, 1, SETTINGS, *packs, codebook, tmp_path / "pretraining")
    encoder = artifacts.finish(tmp_path / "pretraining/encoder", kind="encoder", config={}, metrics={}).folder
    finetuning.train(run(4, encoder=str(encoder)), SETTINGS, *packs, tmp_path / "finetuned")
    with pytest.raises(
        ValueError,
        match="the codebook was made of right-to-left lines, these are left-to-right: set data.direction=rtl if they are not, or run quantize again",
    ):
        pretraining.train(0, 1, LTR, *packs, codebook, tmp_path / "refused")
    with pytest.raises(
        ValueError,
        match="the encoder was pre-trained on right-to-left lines, these are left-to-right: set data.direction=rtl if they are not, or run pretrain again",
    ):
        checkpoint.load_encoder(Artifact(encoder), LTR.model, LTR.data)


def test_characters_are_learnt_as_they_stand_in_the_mirrored_image():
    texts = ["אב a(b c", "אב 12"]
    vocabulary = Vocabulary.of(texts, "rtl")
    assert ")" in vocabulary.characters and "(" not in vocabulary.characters
    recognizer = Recognizer(checkpoint.new_encoder(LTR.model, 32), vocabulary, "rtl")
    assert [vocabulary.decode(classes) for classes in recognizer.targets(texts)] == ["אב c b)a", "אב 21"]
