import dataclasses
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskocr_core.data import features, fit

PACKS = Path(__file__).parents[2] / "shared" / "data"
LETTERS = np.array(list("abcdefghiklmnoprstuvwz   "))
PRINT, SCRIPT = cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX


def draw(random, font, document):
    """One line in a font; paper, ink and size lie about those of its document."""
    of_document = np.random.default_rng(document)
    paper, ink = (random.normal(of_document.normal(mean, 3), 3) for mean in (225, 35))
    size = random.normal(of_document.normal(0.95, 0.01), 0.03)
    text = "".join(random.choice(LETTERS, 22))
    (width, _), _ = cv2.getTextSize(text, font, size, 2)
    image = np.full((48, width + 20), int(paper), np.uint8)
    cv2.putText(image, text, (10, 34 + int(random.integers(-1, 2))), font, size, int(ink), 2, cv2.LINE_AA)
    return np.clip(image + random.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def described(images, pages=None, documents=None):
    count = len(images)
    pages = [f"p{i // 10}" for i in range(count)] if pages is None else pages
    documents = pages if documents is None else documents
    return fit.Lines([f"l{i}" for i in range(count)], np.stack([features.describe(image) for image in images]), pages, documents)


def drawn(documents, each, font=PRINT, change=lambda image, random: image):
    random = np.random.default_rng((min(documents), each))
    names = [document for document in documents for _ in range(each)]
    images = [change(draw(random, font, document), random) for document in names]
    return described(images, [f"d{d}/p{i % each // 10}" for i, d in enumerate(names)], [f"d{d}" for d in names])


def joined(*parts):
    ids = [f"{number}/{line}" for number, part in enumerate(parts) for line in part.line_ids]
    return fit.Lines(ids, np.concatenate([part.features for part in parts]),
                     sum((list(part.pages) for part in parts), []), sum((list(part.documents) for part in parts), []))


def judge(target, source, **thresholds):
    return fit.judge(target, source, fit.Thresholds(**thresholds))


def noise(image, random):
    return random.integers(0, 256, image.shape).astype(np.uint8)


GARBAGE = {
    "noise": noise,
    "blank": lambda image, random: np.full_like(image, 230),
    "inverted": lambda image, random: 255 - image,
    "columns shuffled": lambda image, random: image[:, random.permutation(image.shape[1])],
}


@pytest.fixture(scope="module")
def target():
    return drawn(range(16), 25)


@pytest.fixture(scope="module")
def alike():
    return drawn(range(100, 112), 25)


def test_lines_like_the_labelled_ones_are_accepted_in_full(target, alike):
    verdict = judge(target, alike)
    assert (verdict.verdict, verdict.weight) == ("accept", 1.0), verdict.reasons
    assert verdict.kid["ratio"] < 3 and verdict.coverage["low"] > 0.8


def test_another_script_is_not_accepted(target):
    verdict = judge(target, drawn(range(200, 212), 25, SCRIPT))
    assert verdict.verdict == "reject", verdict.reasons
    assert not verdict.line_weights.any()


@pytest.mark.parametrize("kind", GARBAGE)
def test_pixel_garbage_is_rejected(target, kind):
    assert judge(target, drawn(range(100, 106), 25, change=GARBAGE[kind])).verdict == "reject"


def test_a_bad_box_does_not_condemn_a_source(target, alike):
    bad = drawn(range(300, 304), 25, change=noise)
    verdict = judge(target, joined(alike, bad))
    assert verdict.verdict == "accept", verdict.reasons
    assert not verdict.line_weights[-100:].any() and verdict.line_weights[:-100].mean() > 0.97
    assert verdict.refused == pytest.approx(0.25, abs=0.02) and verdict.coverage["all"] < verdict.coverage["value"]
    assert all(example.startswith("1/") for example in verdict.worst_example_ids)


def test_a_target_of_two_documents_is_undecided_and_says_how_many_more_to_label(alike):
    verdict = judge(drawn(range(2), 200), alike)
    assert verdict.verdict == "undecided" and "label 1 more document." in verdict.reasons[0]
    assert verdict.line_weights.min() > 0


def test_a_target_of_few_lines_is_undecided_and_says_how_many_more_to_label(alike):
    verdict = judge(drawn(range(5), 30), alike)
    assert verdict.verdict == "undecided" and "label 5 more documents." in verdict.reasons[0]


def test_labelled_documents_are_grouped_whole_into_even_groups_of_a_hundred_lines(target, alike):
    groups = judge(target, alike).target["groups"]
    assert [group["lines"] for group in groups] == [100] * 4
    assert sorted(name for group in groups for name in group["documents"]) == sorted(set(target.documents))


def test_statistics_that_disagree_leave_a_source_undecided(target, alike):
    verdict = judge(target, alike, accept_kid_ratio=1e-9, reject_kid_ratio=1e-8)
    assert verdict.verdict == "undecided" and "disagree" in verdict.reasons[-1]


def test_a_source_between_the_bounds_is_down_weighted(target, alike):
    verdict = judge(target, alike, accept_kid_ratio=1e-9)
    assert verdict.verdict == "down-weight" and 0.1 <= verdict.weight < 1
    assert set(verdict.line_weights.tolist()) <= {0.0, np.float32(verdict.weight).item()}


def test_too_few_lines_to_judge_are_undecided(target, alike):
    few = fit.Lines(alike.line_ids[:12], alike.features[:12], alike.pages[:12], alike.documents[:12])
    assert judge(target, few).verdict == "undecided"


def test_the_same_arguments_give_the_same_verdict(target, alike):
    first, second = (judge(target, alike) for _ in range(2))
    assert first.record() == second.record() and (first.line_weights == second.line_weights).all()


def test_another_seed_moves_the_interval_and_not_the_verdict(target, alike):
    verdicts = [fit.judge(target, alike, fit.Thresholds(), seed) for seed in range(5)]
    assert {verdict.verdict for verdict in verdicts} == {"accept"}
    assert len({verdict.kid["value"] for verdict in verdicts}) == 5


def test_the_interval_of_a_source_of_few_pages_is_wider(target, alike):
    def width(pages):
        coverage = judge(target, dataclasses.replace(alike, pages=pages), radius_quantile=0.6).coverage
        return coverage["high"] - coverage["low"]

    by_coverage = np.argsort(np.linalg.norm(alike.features - target.features.mean(0), axis=1)).argsort()
    assert width([str(rank // 100) for rank in by_coverage]) > 1.5 * width([str(rank) for rank in by_coverage])


def test_the_record_is_json_and_holds_the_numbers_of_the_decision(target, alike):
    verdict = judge(target, alike)
    record = json.loads(json.dumps(verdict.record(), allow_nan=False))
    assert record["verdict"] == "accept" and record["kid"]["ratio"] == verdict.kid["ratio"]
    assert {"weight", "reasons", "refused", "coverage", "target", "worst_example_ids", "thresholds"} <= set(record)


def test_features_hardly_depend_on_the_resolution():
    image = draw(np.random.default_rng(0), PRINT, 0)
    twice = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert np.abs(features.describe(image) - features.describe(twice)).max() < 0.15


@pytest.mark.parametrize("image", [np.zeros((40, 300), np.uint8), np.full((40, 300), 255, np.uint8), np.full((1, 1), 9, np.uint8)])
def test_any_image_has_finite_features(image):
    described = features.describe(image)
    assert described.shape == (features.FEATURES,) and described.dtype == np.float32 and np.isfinite(described).all()


def test_a_line_is_described_in_two_milliseconds():
    image = draw(np.random.default_rng(0), PRINT, 0)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        features.describe(image)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3


@pytest.mark.parametrize("wrong", [
    lambda: features.describe(np.zeros((40, 300, 3), np.uint8)),
    lambda: fit.Lines(["a"], np.zeros((2, features.FEATURES), np.float32), ["p"], ["d"]),
    lambda: fit.Lines(["a"], np.full((1, features.FEATURES), np.nan, np.float32), ["p"], ["d"]),
    lambda: fit.Thresholds(accept_kid_ratio=200),
    lambda: fit.Thresholds(radius_quantile=1.0),
])
def test_what_cannot_be_judged_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_a_source_without_lines_is_refused(target):
    nothing = fit.Lines([], np.zeros((0, features.FEATURES), np.float32), [], [])
    with pytest.raises(ValueError, match="no lines"):
        judge(target, nothing)


def test_every_threshold_has_a_string_under_it():
    source = Path(fit.__file__).read_text()
    for field in dataclasses.fields(fit.Thresholds):
        assert f"    {field.name}: float = {field.default}\n    \"\"\"" in source


# Real lines: hands and types that nobody drew for this test.

def pack(name, *files):
    pd = pytest.importorskip("pandas")
    if not (PACKS / name).is_dir():
        pytest.skip(f"no line pack in {PACKS / name}")
    return pd.concat([pd.read_parquet(PACKS / name / f"{file}.parquet") for file in files])


def real(frame, count=600, change=lambda image, random: image):
    random = np.random.default_rng(0)
    frame = frame.sample(min(count, len(frame)), random_state=0)
    images = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE) for image in frame["image"]]
    return described([change(image, random) for image in images], list(frame["page"]), list(frame["doc"]))


@pytest.fixture(scope="module")
def fraktur():
    """400 labelled lines of 15 one-page documents, and the lines of all other pages."""
    frame = pack("fraktur_print", "train")
    labelled = frame[frame["order"] < 400]
    return real(labelled), frame[~frame["page"].isin(labelled["page"])]


@pytest.fixture(scope="module")
def hand():
    labelled, unlabelled = pack("fr_hand", "train"), pack("fr_hand", "unlabeled-00", "unlabeled-01")
    return real(labelled[labelled["order"] < 400]), unlabelled


@pytest.fixture(scope="module")
def foreign():
    return {"medieval_hand": real(pack("medieval_hand", "unlabeled")), "early_print_fr": real(pack("early_print_fr", "train"))}


@pytest.mark.realdata
def test_fraktur_accepts_its_own_other_pages(fraktur):
    labelled, others = fraktur
    verdict = judge(labelled, real(others))
    assert verdict.verdict == "accept", verdict.reasons


@pytest.mark.realdata
@pytest.mark.parametrize("target", ["fraktur", "hand"])
@pytest.mark.parametrize("source", ["medieval_hand", "early_print_fr"])
def test_foreign_lines_are_not_accepted(request, foreign, target, source):
    verdict = judge(request.getfixturevalue(target)[0], foreign[source])
    assert verdict.verdict in ("reject", "down-weight"), verdict.reasons


@pytest.mark.realdata
@pytest.mark.parametrize("source", ["lectaurep-bronod", "lectaurep-repertoires", "timeuscorpus"])
def test_a_french_hand_accepts_its_own_unlabelled_sources(hand, source):
    labelled, unlabelled = hand
    verdict = judge(labelled, real(unlabelled[unlabelled["source"] == f"HTR-United/{source}"]))
    assert verdict.verdict == "accept", verdict.reasons


@pytest.mark.realdata
def test_fraktur_and_a_french_hand_do_not_accept_each_other(fraktur, hand):
    for (labelled, _), (_, source) in ((fraktur, hand), (hand, fraktur)):
        assert judge(labelled, real(source)).verdict in ("reject", "down-weight")


@pytest.mark.realdata
@pytest.mark.parametrize("target", ["fraktur", "hand"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_made_of_real_lines_is_rejected(request, target, kind):
    labelled, own = request.getfixturevalue(target)
    assert judge(labelled, real(own, 300, GARBAGE[kind])).verdict == "reject"


@pytest.mark.realdata
@pytest.mark.parametrize("target", ["fraktur", "hand"])
def test_real_lines_with_three_in_ten_of_noise_are_accepted_without_the_noise(request, target):
    labelled, own = request.getfixturevalue(target)
    good, bad = real(own, 420), real(own, 180, noise)
    verdict = judge(labelled, joined(good, bad))
    assert verdict.verdict == "accept", verdict.reasons
    assert not verdict.line_weights[-len(bad.line_ids):].any()
