from pathlib import Path

import cv2
import numpy as np
import pytest
import rendered
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core.data.qa import quality

PACKS = Path(__file__).parents[2] / "shared" / "data"
REAL = ("fraktur_print", "fr_hand", "medieval_hand", "early_print_fr", "modern_hand_fr")


def line(text="die Kunst der Lettern", width=600, height=48, paper=230, ink=40):
    image = np.full((height, width), paper, np.uint8)
    return cv2.putText(image, text, (10, height - 14), cv2.FONT_HERSHEY_COMPLEX, 1.0, ink, 2, cv2.LINE_AA)


def reasons(image, text=None):
    height, width = image.shape
    return quality.reasons({**quality.measure(image), "height": height, "width": width, "text": text})


def noise(height=48, width=600):
    return np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)


def the_reason(image, text=None):
    (reason,) = reasons(image, text).values()
    return reason


@pytest.mark.parametrize("text", [None, "die Kunst der Lettern", "דּי קונסט"])
def test_a_good_line_has_no_reason_to_be_refused(text):
    assert reasons(line(), text) == {}


def test_a_faint_line_is_still_a_line():
    assert reasons(line(paper=200, ink=170)) == {}


def test_a_short_word_on_a_long_line_is_still_a_line():
    assert reasons(line("ja.", width=1500)) == {}


def test_a_blank_image_is_blank():
    assert "blank" in the_reason(np.full((48, 600), 230, np.uint8))


def test_paper_without_strokes_has_no_contrast():
    grain = np.random.default_rng(0).normal(200, 3, (48, 600)).astype(np.uint8)
    assert "no contrast" in the_reason(grain)


def test_a_speck_on_paper_is_nearly_blank():
    image = np.full((48, 600), 230, np.uint8)
    image[20:24, 300:304] = 20
    assert "nearly blank" in the_reason(image)


def test_light_on_dark_is_inverted():
    assert "inverted" in the_reason(255 - line())


def test_dark_strokes_on_paper_of_two_tones_are_not_inverted():
    image = line(paper=150)
    image[:14] = 250  # a page edge above the line
    assert quality.measure(image)["ink"] > quality.MAX_DARK and reasons(image) == {}
    assert "inverted" in the_reason(255 - line(paper=250, text="the"))


@pytest.mark.parametrize("shape", [(600, 48), (8, 2000), (4, 600)])
def test_no_line_has_such_a_shape(shape):
    image = np.full(shape, 230, np.uint8)
    image[::2, ::3] = 20
    assert f"{shape[1]} × {shape[0]} px" in the_reason(image)


def test_a_text_that_cannot_stand_on_its_line_is_refused():
    assert "too narrow for the 400 characters" in the_reason(line(), "a" * 400)


def test_marks_take_no_width():
    assert reasons(line(width=100), "e" + "\N{COMBINING LATIN SMALL LETTER E}" * 60) == {}


def test_a_text_of_spaces_is_empty():
    assert "empty" in the_reason(line(), " \u00a0 ")


def test_control_characters_are_named():
    assert "U+0007, U+0009" in the_reason(line(), "a\tb\x07c")


def test_a_blurred_line_is_less_sharp_and_noise_sharper_than_a_line():
    blurred = cv2.GaussianBlur(line(), (0, 0), 3)
    sharpness = [quality.measure(image)["sharpness"] for image in (blurred, line(), noise())]
    assert sharpness == sorted(sharpness) and sharpness[0] < sharpness[1] / 4 < sharpness[2]


@given(st.integers(1, 80), st.integers(1, 200), st.integers(0, 3), st.integers(0, 2**32))
def test_whatever_the_pixels_are_the_measurements_are_finite_and_the_shares_are_shares(height, width, bits, seed):
    levels = np.random.default_rng(seed).integers(0, 2**bits, (height, width)) * 30
    found = quality.measure(levels.astype(np.uint8))
    assert np.isfinite(list(found.values())).all() and all(type(value) in (float, bool) for value in found.values())
    assert all(0 <= found[name] <= 1 for name in ("ink", "contrast", "background"))


@pytest.mark.parametrize("image", [np.zeros((48, 600, 3), np.uint8), np.zeros((48, 600)), np.zeros((0, 5), np.uint8)])
def test_what_is_no_grayscale_image_is_told_so(image):
    with pytest.raises(ValueError, match="uint8"):
        quality.measure(image)


def test_strokes_smeared_beyond_reading_are_blurred_and_slightly_soft_ones_are_not():
    assert "blurred" in the_reason(cv2.GaussianBlur(line(), (0, 0), 4))
    assert reasons(cv2.GaussianBlur(line(), (0, 0), 1)) == {}


@pytest.mark.parametrize("scale", [0.5, 2, 4])
def test_another_resolution_changes_no_verdict(scale):
    scaled = cv2.resize(
        line(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    assert reasons(scaled) == {}
    if scale > 1:  # fewer pixels than a line commonly has cannot tell blurred from small
        assert "blurred" in the_reason(cv2.GaussianBlur(scaled, (0, 0), 5 * scale))


@pytest.mark.parametrize("text", ["Die Kunst der Lettern", "Minimum", "nunc"])
@pytest.mark.parametrize("turns", [1, 3])
def test_a_line_turned_by_90_degrees_is_told_to_be_turned_back(text, turns):
    turned = np.ascontiguousarray(np.rot90(rendered.line(text), turns))
    assert "turn it by 90°" in the_reason(turned)


def test_the_measure_of_direction_changes_its_sign_with_a_quarter_turn():
    upright = quality.measure(line())["along_width"]
    turned = quality.measure(np.ascontiguousarray(np.rot90(line())))["along_width"]
    assert upright > 0 and turned == pytest.approx(-upright, abs=0.05)


@pytest.mark.parametrize("letter", ["1", "I", "f", "8"])
def test_a_single_letter_higher_than_wide_is_still_a_line(letter):
    assert reasons(line(letter, width=31)) == {}


def real_lines(pack, count):
    import pandas as pd

    if not (PACKS / pack).is_dir():
        pytest.skip(f"no line pack in {PACKS / pack}")
    rows = pd.read_parquet(PACKS / pack / "train.parquet").sample(count, random_state=0)
    return [
        (cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE), text)
        for image, text in zip(rows["image"], rows["text"])
    ]


@pytest.mark.realdata
@pytest.mark.parametrize("pack", REAL)
def test_real_lines_pass_and_spoilt_they_do_not(pack):
    lines = real_lines(pack, 500)
    assert sum(bool(reasons(image, text)) for image, text in lines) <= 1
    spoilt = {
        "inverted": [255 - image for image, _ in lines],
        "turned": [
            np.ascontiguousarray(np.rot90(image)) for image, _ in lines if image.shape[1] > 1.5 * image.shape[0]
        ],
    }
    caught = {kind: np.mean([bool(reasons(image)) for image in images]) for kind, images in spoilt.items()}
    assert caught["inverted"] > 0.98 and caught["turned"] > 0.95, caught
