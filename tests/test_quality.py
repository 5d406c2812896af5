import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskocr_core.data import quality

PACKS = Path(__file__).parents[2] / "shared" / "data"


def line(text="die Kunst der Lettern", width=600, height=48, paper=230, ink=40):
    image = np.full((height, width), paper, np.uint8)
    return cv2.putText(image, text, (10, height - 14), cv2.FONT_HERSHEY_COMPLEX, 1.0, ink, 2, cv2.LINE_AA)


def reasons(image, text=None):
    height, width = image.shape
    return quality.reasons({**quality.measure(image), "height": height, "width": width, "text": text})


def the_reason(image, text=None):
    (reason,) = reasons(image, text)
    return reason


@pytest.mark.parametrize("text", [None, float("nan"), "die Kunst der Lettern", "דּי קונסט"])
def test_a_good_line_has_no_reason_to_be_refused(text):
    assert reasons(line(), text) == []


def test_a_faint_line_is_still_a_line():
    assert reasons(line(paper=200, ink=170)) == []


def test_a_short_word_on_a_long_line_is_still_a_line():
    assert reasons(line("ja.", width=1500)) == []


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


@pytest.mark.parametrize("shape", [(600, 48), (8, 2000), (4, 600)])
def test_no_line_has_such_a_shape(shape):
    image = np.full(shape, 230, np.uint8)
    image[::2, ::3] = 20
    assert f"{shape[1]} × {shape[0]} px" in the_reason(image)


def test_a_text_that_cannot_stand_on_its_line_is_refused():
    assert "too narrow for the 400 characters" in the_reason(line(), "a" * 400)


def test_marks_take_no_width():
    assert reasons(line(width=100), "e" + "\N{COMBINING LATIN SMALL LETTER E}" * 60) == []


def test_a_text_of_spaces_is_empty():
    assert "empty" in the_reason(line(), " \u00a0 ")


def test_control_characters_are_named():
    assert "U+0007, U+0009" in the_reason(line(), "a\tb\x07c")


def test_a_blurred_line_is_less_sharp_and_noise_sharper_than_a_line():
    blurred = cv2.GaussianBlur(line(), (0, 0), 3)
    noise = np.random.default_rng(0).integers(0, 256, (48, 600)).astype(np.uint8)
    sharpness = [quality.measure(image)["sharpness"] for image in (blurred, line(), noise)]
    assert sharpness == sorted(sharpness) and sharpness[0] < sharpness[1] / 4 < sharpness[2]


@pytest.mark.parametrize("image", [np.zeros((48, 600, 3), np.uint8), np.zeros((48, 600)), np.zeros((0, 5), np.uint8)])
def test_what_is_no_grayscale_image_is_told_so(image):
    with pytest.raises(ValueError, match="uint8"):
        quality.measure(image)


def test_a_line_is_measured_in_a_fraction_of_a_millisecond():
    image = line(width=1000)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        quality.measure(image)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5e-3


@pytest.mark.realdata
@pytest.mark.parametrize("pack", ["fraktur_print", "fr_hand", "medieval_hand", "early_print_fr"])
def test_more_than_99_in_100_real_lines_pass(pack):
    pd = pytest.importorskip("pandas")
    if not (PACKS / pack).is_dir():
        pytest.skip(f"no line pack in {PACKS / pack}")
    lines = pd.read_parquet(PACKS / pack / "train.parquet").sample(1000, random_state=0)
    refused = [found for image, text in zip(lines["image"], lines["text"], strict=True)
               if (found := reasons(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE), text))]
    assert len(refused) < 0.01 * len(lines), refused
