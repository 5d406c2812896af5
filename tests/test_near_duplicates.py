import io

import cv2
import numpy as np
import pytest
import rendered
from conftest import PACKS
from PIL import Image

from maskocr_core.data import images
from maskocr_core.data.qa import near_duplicates
from maskocr_core.data.qa.near_duplicates import MAX_DISTANCE, Fingerprints, fingerprint, pairs


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file).convert("L"))


CHANGES = {
    "compressed": jpeg,
    "brighter": lambda image: cv2.add(image, 25),
    "of less contrast": lambda image: (image * 0.6 + 60).astype(np.uint8),
    "at half the resolution": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "at twice the resolution": lambda image: cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
}


def prints(lines):
    return Fingerprints.of([fingerprint(line) for line in lines], [line.shape[1] / line.shape[0] for line in lines])


def found(some, others):
    return {(left, right) for left, right, _ in pairs(prints(some), prints(others))}


@pytest.fixture(scope="module")
def lines():
    return [rendered.line(rendered.words(seed), seed=seed) for seed in range(300)]


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_line_is_found_again(lines, change):
    changed = [CHANGES[change](line) for line in lines]
    assert found(lines, changed) == {(number, number) for number in range(len(lines))}


def test_different_lines_are_no_near_duplicates(lines):
    assert found(lines, lines) == {(number, number) for number in range(len(lines))}


def test_a_line_with_one_word_more_is_another_line():
    text = "Dominus rex et populus"
    assert not found([rendered.line(text)], [rendered.line(text + " novus")])


def test_stretched_lines_of_the_same_low_frequencies_are_told_apart_by_their_proportions(lines):
    wide = [cv2.resize(line, None, fx=1.5, fy=1) for line in lines[:20]]
    assert not found(lines[:20], wide)


def test_all_near_pairs_are_found_with_their_distance_as_one_by_one_comparison_finds_them():
    random = np.random.default_rng(0)
    some, others = random.integers(0, 2, (700, 256)), random.integers(0, 2, (300, 256))
    for place in range(0, 300, 3):
        others[place] = some[place * 2]
        others[place, random.choice(256, place // 8, replace=False)] ^= 1
    packed = [
        Fingerprints.of([np.packbits(row).tobytes() for row in rows], np.ones(len(rows))) for rows in (some, others)
    ]
    distance = (some[:, None] != others[None]).sum(axis=2)
    expected = {(a, b, distance[a, b]) for a, b in zip(*np.nonzero(distance <= MAX_DISTANCE))}
    assert set(pairs(*packed)) == expected and len(expected) > 50


def test_nothing_is_near_to_nothing(lines):
    assert not found([], lines[:3]) and not found(lines[:3], [])


@pytest.mark.realdata
@pytest.mark.parametrize("pack", ["fr_hand", "medieval_hand", "fraktur_print", "early_print_fr", "modern_hand_fr"])
def test_no_held_out_real_line_is_falsely_taken_for_another(pack):
    import pyarrow.parquet as pq

    sides = {}
    for split in ("train", "val", "test"):
        column = pq.read_table(PACKS / pack / f"{split}.parquet", columns=["image"])["image"]
        sides[split] = prints([images.decode(image.as_py()) for image in column])
    for one, other in (("test", "train"), ("val", "train"), ("test", "val")):
        assert not list(pairs(sides[one], sides[other]))


def test_an_empty_image_has_a_fingerprint_too():
    blank = np.full((48, 600), 230, np.uint8)
    assert len(near_duplicates.fingerprint(blank)) == 32
