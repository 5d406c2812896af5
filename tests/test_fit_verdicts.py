import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core.data.domain_fit import features, fit, likeness, orientation, yardstick
from maskocr_core.data.domain_fit.yardstick import Lines, Thresholds

LETTERS = np.array(list("abcdefghiklmnoprstuvwz   "))
PRINT, SCRIPT = cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX
TURNED = 100


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


def png(image):
    return cv2.imencode(".png", np.ascontiguousarray(image))[1].tobytes()


def described(images, pages, documents, sources=(), turned=0):
    rows = np.arange(min(turned, len(images)))
    after = [[features.described([line])[0] for line in orientation.turned(png(images[row]))] for row in rows]
    after = np.array(after, np.float32).reshape(len(rows), len(orientation.TURNS), features.FEATURES)
    described = np.stack([features.describe(image) for image in images])
    return Lines([f"l{i}" for i in range(len(images))], described, pages, documents, sources, after, rows)


def drawn(documents, each, font=PRINT, change=lambda image, random: image, turned=0):
    random = np.random.default_rng((min(documents), each))
    names = [document for document in documents for _ in range(each)]
    images = [change(draw(random, font, document), random) for document in names]
    return described(
        images, [f"d{d}/p{i % each // 10}" for i, d in enumerate(names)], [f"d{d}" for d in names], turned=turned
    )


def joined(*parts):
    ids = [f"{number}/{line}" for number, part in enumerate(parts) for line in part.line_ids]
    return Lines(
        ids,
        np.concatenate([part.features for part in parts]),
        sum((list(part.pages) for part in parts), []),
        sum((list(part.documents) for part in parts), []),
    )


def first(lines, count):
    return Lines(lines.line_ids[:count], lines.features[:count], lines.pages[:count], lines.documents[:count])


def judge(target, source, **thresholds):
    return fit.judge(yardstick.calibrate(target, Thresholds(**thresholds)), source)


def noise(image, random):
    return random.integers(0, 256, image.shape).astype(np.uint8)


GARBAGE = {
    "noise": noise,
    "blank": lambda image, random: np.full_like(image, 230),
    "inverted": lambda image, random: 255 - image,
    "columns shuffled": lambda image, random: image[:, random.permutation(image.shape[1])],
    "rotated": lambda image, random: np.rot90(image),
}


@pytest.fixture(scope="module")
def target():
    return drawn(range(16), 25, turned=400)


@pytest.fixture(scope="module")
def alike():
    return drawn(range(100, 112), 25, turned=TURNED)


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


@pytest.mark.parametrize(
    "turn, mend", [("upside down", "180°"), ("mirrored", "mirror them back"), ("light on dark", "invert them")]
)
def test_turned_lines_are_rejected_with_the_mend(target, turn, mend):
    turned = drawn(range(100, 106), 25, change=lambda image, random: orientation.TURNS[turn](image), turned=TURNED)
    verdict = judge(target, turned)
    assert verdict.verdict == "reject" and turn in verdict.reasons[0] and mend in verdict.reasons[0]
    assert verdict.turned[turn] > 0.5


def test_of_lines_as_they_should_be_few_lie_nearer_when_turned(target, alike):
    turned = judge(target, alike).turned
    assert set(turned) == set(orientation.TURNS) and max(turned.values()) < 0.3


def test_a_turn_that_left_out_documents_do_not_tell_is_not_asked_of_a_source(target, alike):
    # Turned lines of the target that look like upright ones: a script that is symmetric.
    same = np.repeat(target.features[target.turned_rows][:, None], len(orientation.TURNS), axis=1)
    closer = dataclasses.replace(target, turned=same + 0.9 * (target.features.mean(0) - same))
    assert fit.judge(yardstick.calibrate(closer, Thresholds()), alike).turned == {}


def test_what_is_foreign_either_way_round_is_not_said_to_be_turned(target):
    foreign = drawn(range(200, 206), 25, SCRIPT, lambda image, random: image[::-1, ::-1], turned=TURNED)
    verdict = judge(target, foreign)
    assert verdict.verdict == "reject" and not any("turn them" in reason for reason in verdict.reasons)


def test_undoing_a_turn_gives_the_line_back():
    image = draw(np.random.default_rng(0), PRINT, 0)
    for turn, undo in orientation.TURNS.items():
        if "turned" not in turn:
            assert np.array_equal(undo(undo(image)), image)
    assert np.array_equal(orientation.TURNS["turned to the left"](np.rot90(image)), image)
    assert np.array_equal(orientation.TURNS["turned to the right"](np.rot90(image, -1)), image)


def test_a_bad_box_does_not_condemn_a_source(target, alike):
    bad = drawn(range(300, 304), 25, change=noise)
    verdict = judge(target, joined(alike, bad))
    assert verdict.verdict == "accept", verdict.reasons
    assert not verdict.line_weights[-100:].any() and verdict.line_weights[:-100].mean() > 0.97
    assert verdict.refused == pytest.approx(0.25, abs=0.02) and verdict.coverage["all"] < verdict.coverage["value"]
    assert "100 of 400 lines are unlike" in verdict.reasons[0]


def test_a_target_of_two_documents_is_undecided_and_says_how_many_more_to_label(alike):
    verdict = judge(drawn(range(2), 200), alike)
    assert verdict.verdict == "undecided" and "label 1 more document." in verdict.reasons[0]
    assert verdict.line_weights.max() == fit.UNDECIDED_WEIGHT


def test_a_target_of_few_lines_is_undecided_and_says_how_many_more_to_label(alike):
    verdict = judge(drawn(range(5), 30), alike)
    assert verdict.verdict == "undecided" and "label 5 more documents." in verdict.reasons[0]


def test_even_a_small_target_refuses_garbage_line_by_line(alike):
    verdict = judge(drawn(range(5), 30), joined(alike, drawn(range(300, 304), 25, change=noise)))
    assert verdict.verdict == "undecided" and "unlike any labelled line" in verdict.reasons[0]
    assert not verdict.line_weights[-100:].any() and verdict.line_weights[:-100].all()


def test_a_handful_of_lines_is_no_target(alike):
    with pytest.raises(ValueError, match="label more"):
        judge(first(alike, 9), alike)


def test_labelled_documents_are_grouped_whole_into_groups_of_a_hundred_lines_or_more(target):
    measured = yardstick.calibrate(target, Thresholds())
    assert [group["lines"] for group in measured.groups] == [100] * 4
    group, count = yardstick.grouped(np.array(["a"] * 30 + ["b"] * 80 + ["c"] * 150 + ["d"] * 20))
    assert count == 2 and group.tolist() == [0] * 110 + [1] * 170


def test_documents_of_one_source_are_grouped_together():
    documents = np.array([name for name in ("a", "b", "c", "d") for _ in range(50)])
    group, count = yardstick.grouped(documents, [{"a": "x", "c": "x"}.get(name, "y") for name in documents])
    assert count == 2 and len({*group[:50], *group[100:150]}) == 1 and len({*group[50:100], *group[150:]}) == 1


@given(st.lists(st.integers(1, 130), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_no_document_is_torn_and_no_group_is_short(sizes):
    documents = np.array([f"{number:03}" for number, size in enumerate(sizes) for _ in range(size)])
    group, count = yardstick.grouped(documents)
    assert all(len(set(group[documents == name])) == 1 for name in set(documents))
    if count:
        assert sorted(set(group.tolist())) == list(range(count)) and np.bincount(group).min() >= yardstick.GROUP_LINES
    else:
        assert sum(sizes) < yardstick.GROUP_LINES


def test_equally_long_documents_count_fully_and_a_short_one_hardly():
    assert likeness.effective(np.array(["a"] * 10 + ["b"] * 10)) == pytest.approx(2)
    assert 1 < likeness.effective(np.array(["a"] * 99 + ["b"])) < 1.05


def test_the_more_documents_a_source_has_the_nearer_it_must_be(target):
    measured = yardstick.calibrate(target, Thresholds())
    limits = [measured.kid_limit(documents) for documents in (1, 2, 5, 20, 100)]
    assert limits == sorted(limits, reverse=True) and limits[0] > 3 * limits[-1]


def test_left_out_documents_lie_within_the_limit_that_they_set():
    inside = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        values = random.gamma(4.0, size=9)
        inside.append(values[8] <= likeness.prediction_limit(values[:8].mean(), values[:8].std(ddof=1), 8))
    assert np.mean(inside) > 0.9


def test_statistics_that_disagree_leave_a_source_undecided(target, alike):
    verdict = judge(target, alike, accept_kid_ratio=1e-9, reject_kid_ratio=1e-8)
    assert (
        verdict.verdict == "undecided" and "disagree" in verdict.reasons[-1] and "more document" in verdict.reasons[-1]
    )


def test_a_source_within_the_spread_of_the_target_but_in_no_place_of_its_lines_is_undecided(target, alike):
    verdict = fit.judge(dataclasses.replace(yardstick.calibrate(target, Thresholds()), radius=0.01), alike)
    assert verdict.verdict == "undecided" and "disagree" in verdict.reasons[-1]


def test_a_source_between_the_bounds_is_down_weighted(target, alike):
    verdict = judge(target, alike, accept_kid_ratio=1e-9)
    assert verdict.verdict == "down-weight" and 0.1 <= verdict.weight < 1
    assert set(verdict.line_weights.tolist()) <= {0.0, np.float32(verdict.weight).item()}


def test_too_few_lines_to_judge_are_undecided(target, alike):
    assert judge(target, first(alike, 12)).verdict == "undecided"


def test_the_same_arguments_give_the_same_verdict(target, alike):
    one, other = (judge(target, alike) for _ in range(2))
    assert one.record() == other.record() and (one.line_weights == other.line_weights).all()


def test_another_seed_moves_the_numbers_and_not_the_verdict(target, alike):
    verdicts = [fit.judge(yardstick.calibrate(target, Thresholds(), seed), alike) for seed in range(5)]
    assert {verdict.verdict for verdict in verdicts} == {"accept"}
    assert len({verdict.kid["value"] for verdict in verdicts}) == 5


def test_the_intervals_of_a_source_of_few_pages_are_wider(target, alike):
    def widths(pages):
        verdict = judge(target, dataclasses.replace(alike, pages=pages), radius_quantile=0.6)
        return [found["high"] - found["low"] for found in (verdict.coverage, verdict.kid)]

    by_coverage = np.argsort(np.linalg.norm(alike.features - target.features.mean(0), axis=1)).argsort()
    few, many = ([str(rank // size) for rank in by_coverage] for size in (100, 1))
    assert all(wide > 1.5 * narrow for wide, narrow in zip(widths(few), widths(many)))


def test_the_interval_of_kid_holds_its_value(target, alike):
    kid = judge(target, alike).kid
    assert kid["low"] < kid["value"] < kid["high"] and kid["ratio"] == kid["value"] / kid["limit"]


def test_any_number_of_features_can_be_judged(target, alike):
    """An encoder has hundreds of them: as many noisy copies must not drown what is there."""
    mixing = np.random.default_rng(0).normal(size=(features.FEATURES, 300)).astype(np.float32)

    def mixed(lines):
        return dataclasses.replace(lines, features=lines.features @ mixing, turned=None, turned_rows=np.zeros(0, int))

    assert judge(mixed(target), mixed(alike)).verdict == "accept"
    assert judge(mixed(target), mixed(drawn(range(200, 206), 25, SCRIPT))).verdict == "reject"


def test_the_records_are_json_and_hold_the_numbers_of_the_decision(target, alike):
    measured = yardstick.calibrate(target, Thresholds())
    verdict = fit.judge(measured, alike)
    record = json.loads(json.dumps(verdict.record(), allow_nan=False))
    assert record["verdict"] == "accept" and record["kid"]["ratio"] == verdict.kid["ratio"]
    assert {"weight", "reasons", "refused", "coverage", "turned"} <= set(record)
    assert {"groups", "radius", "thresholds"} <= set(json.loads(json.dumps(measured.record(), allow_nan=False)))


def test_no_record_names_a_document_or_a_line(target, alike):
    measured = yardstick.calibrate(target, Thresholds())
    said = json.dumps([measured.record(), fit.judge(measured, alike).record()])
    assert '"d1' not in said and '"l1' not in said


def test_features_hardly_depend_on_the_resolution():
    image = draw(np.random.default_rng(0), PRINT, 0)
    twice = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert np.abs(features.describe(image) - features.describe(twice)).max() < 0.15


@pytest.mark.parametrize(
    "image", [np.zeros((40, 300), np.uint8), np.full((40, 300), 255, np.uint8), np.full((1, 1), 9, np.uint8)]
)
def test_any_image_has_finite_features(image):
    described = features.describe(image)
    assert described.shape == (features.FEATURES,) and described.dtype == np.float32 and np.isfinite(described).all()


FEW = np.zeros((1, features.FEATURES), np.float32)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: features.describe(np.zeros((40, 300, 3), np.uint8)),
        lambda: Lines(["a"], np.zeros((2, features.FEATURES), np.float32), ["p"], ["d"]),
        lambda: Lines(["a"], np.full((1, features.FEATURES), np.nan, np.float32), ["p"], ["d"]),
        lambda: Lines(["a"], FEW, ["p"], ["d"], ["s", "s"]),
        lambda: Lines(
            ["a"], FEW, ["p"], ["d"], ["s"], np.zeros((1, 2, features.FEATURES), np.float32), np.zeros(1, int)
        ),
        lambda: Thresholds(accept_kid_ratio=200),
        lambda: Thresholds(radius_quantile=1.0),
        lambda: Thresholds(refuse_radius=math.nan),
    ],
)
def test_what_cannot_be_judged_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_a_source_without_lines_is_refused(target):
    with pytest.raises(ValueError, match="no lines"):
        judge(target, Lines([], np.zeros((0, features.FEATURES), np.float32), [], []))


def test_every_threshold_has_a_string_under_it():
    source = Path(yardstick.__file__).read_text()
    for field in dataclasses.fields(Thresholds):
        assert f'    {field.name}: float = {field.default}\n    """' in source


# Real lines: hands and types that nobody drew for this test. Targets and sources: benchmarks/fit_cases.py.

BARS = ("fr_hand", "medieval_hand", "fraktur_print")


@pytest.fixture(scope="module")
def cases():
    """By target: its yardstick, and (kind, source, lines) of everything that is held against it."""
    from benchmarks import fit_cases

    made = {}

    def of(name, count=None):
        if (name, count) not in made:
            measured = yardstick.calibrate(fit_cases.target_lines(name, count), Thresholds())
            made[name, count] = measured, list(fit_cases.cases(name)) if count is None else of(name)[1]
        return made[name, count]

    return of


def verdicts(found, kind):
    measured, cases = found
    return {source: fit.judge(measured, lines) for mine, source, lines in cases if mine == kind}


@pytest.mark.realdata
@pytest.mark.parametrize("name", BARS)
def test_own_unlabelled_sources_are_accepted(cases, name):
    found = verdicts(cases(name), "own")
    assert found and {source: verdict.verdict for source, verdict in found.items()} == dict.fromkeys(found, "accept")


@pytest.mark.realdata
@pytest.mark.parametrize("name", BARS)
def test_foreign_sources_are_rejected_or_down_weighted(cases, name):
    found = verdicts(cases(name), "foreign")
    assert len(found) >= 9
    assert {verdict.verdict for verdict in found.values()} <= {"reject", "down-weight"}
    assert all(verdict.weight < 1 for verdict in found.values())


@pytest.mark.realdata
@pytest.mark.parametrize("name", BARS)
def test_damaged_lines_of_the_targets_own_are_rejected(cases, name):
    found = verdicts(cases(name), "damaged")
    assert {source: verdict.verdict for source, verdict in found.items()} == dict.fromkeys(found, "reject")
    for turned, mend in (
        ("upside down", "180°"),
        ("mirrored", "mirror"),
        ("inverted", "invert"),
        ("rotated by 90°", "90°"),
    ):
        assert mend in found[turned].reasons[0]


@pytest.mark.realdata
@pytest.mark.parametrize("name", BARS)
def test_of_a_mix_with_three_in_ten_of_noise_the_good_lines_are_kept(cases, name):
    measured, found = cases(name)
    lines = next(lines for kind, _, lines in found if kind == "mixed")
    verdict = fit.judge(measured, lines)
    good = np.array([line.startswith("0/") for line in lines.line_ids])
    assert verdict.verdict == "accept", verdict.reasons
    assert not verdict.line_weights[~good].any() and verdict.kept[good].mean() > 0.95


@pytest.mark.realdata
@pytest.mark.parametrize("name", BARS)
def test_with_a_hundred_and_fifty_labelled_lines_no_foreign_source_is_accepted(cases, name):
    found = verdicts(cases(name, 150), "foreign")
    assert "accept" not in {verdict.verdict for verdict in found.values()}


@pytest.mark.realdata
def test_the_tables_of_the_documentation_are_current():
    from benchmarks import fit as benchmark

    text = benchmark.DOCUMENT.read_text()
    assert benchmark.render(text) == text, "run `python -m benchmarks.fit --docs` and commit docs/fit.md"
