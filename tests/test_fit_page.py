import base64
import json
import re

import numpy as np
import packed
import pytest
import rendered

from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines, pages
from maskocr_core.data.domain_fit import features, fit, fit_page, sampling, selecting, texts, yardstick
from maskocr_core.data.domain_fit.yardstick import Thresholds

HOSTILE = "<script>alert('x')</script>\u202e$x$ & Söhne"


def written(root, sources, *, documents=12, transfer=()):
    """The page of a target of `documents` and these unlabelled sources, {name: line images}."""
    target = [(f"text {n}", rendered.line(rendered.words(n), seed=n, degrade=0.3)) for n in range(documents * 30)]
    flat = [(None, image) for images in sources.values() for image in images]
    packed.pack(root, {"train": target, "unlabeled": flat})
    artifact, shards = Artifact(root / "lines"), {}
    described = {}
    for split, name in (("train", "train/part-00000.parquet"), ("unlabeled", "unlabeled/part-00000.parquet")):
        for batch in lines.images(artifact, split):
            for row in batch.to_pylist():
                described[row["line_id"]] = features.described([row["image"]])[0]
                shards[row["line_id"]] = name

    def of(images, name, size=30):
        found = [lines.line_id(rendered.png(image)) for image in images]
        names = [f"{name}/d{place // size}" for place in range(len(found))]
        return yardstick.Lines(found, np.stack([described[one] for one in found]), names, names)

    judged = {name: of(images, name) for name, images in sources.items()}
    counts = {name: {"lines": len(images), "quarantined": 0} for name, images in sources.items()}
    samples = sampling.Samples(of([image for _, image in target], "t"), judged, ([], []), {}, shards, counts)
    measured = yardstick.calibrate(samples.target, Thresholds())
    verdicts = {name: fit.judge(measured, found) for name, found in judged.items()}
    weighed = {
        name: {"selected": int(v.kept.sum()), "weight": v.weight * int(v.kept.sum())} for name, v in verdicts.items()
    }
    records = selecting.records(measured, verdicts, samples, weighed)
    out = root / "out"
    out.mkdir()
    fit_page.write(artifact, measured, records, list(transfer), selecting.examples(verdicts, samples), samples, out)
    return (out / "fit.html").read_text(), out


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    random = np.random.default_rng(0)
    like = [rendered.line(rendered.words(n), seed=n, degrade=0.3) for n in range(5000, 5090)]
    noise = [random.integers(0, 255, (48, 400), dtype=np.uint8) for _ in range(40)]
    warned = texts.compare(["wie er sagt"] * 300, [f"d{n // 30}" for n in range(300)], ["<ως λεει> &"] * 40)
    return written(
        tmp_path_factory.mktemp("page"),
        {"like": like, HOSTILE: noise + like[:5]},
        transfer=[{"source": "<i>", **warned}],
    )


def test_every_source_stands_on_the_page_with_its_verdict_and_reasons(page):
    text, _ = page
    assert re.search(r"<bdi>like</bdi></th><td class=\"verdict accept\">accept", text)
    assert "40 of 45 lines are unlike any labelled line" in text and 'section class="source reject"' in text
    assert "Typical" in text and "Borderline" in text and "Refused one by one" in text


def test_the_plot_shows_both_statistics_with_their_limits(page):
    svg = base64.b64decode(re.search(r"data:image/svg\+xml;base64,([^\"]+)", page[0])[1]).decode()
    for words in ("accept 3", "reject 100", "reject 0.50", "accepted"):
        assert f"<!-- {words} -->" in svg


def test_nothing_that_strangers_wrote_is_markup_and_control_characters_are_seen(page):
    text, _ = page
    assert "<script" not in text and "<b>" not in text and "<i>" not in text
    assert "&lt;script&gt;" in text and "[U+202E]" in text and "default-src 'none'" in text


def test_the_page_asks_the_network_for_nothing(page):
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)\w+:", page[0])


def test_which_lines_are_shown_is_listed(page):
    text, out = page
    shown = json.loads((out / "shown.json").read_text())
    assert set(shown) == {"fit.html", "examples.json"}
    assert text.count("data:image/webp") == len(shown["fit.html"]) >= 12
    named = [
        one
        for kinds in json.loads((out / "examples.json").read_text()).values()
        for found in kinds.values()
        for one in found
    ]
    assert set(named) == set(shown["examples.json"]) and set(named) <= set(shown["fit.html"])


def test_warnings_about_texts_are_on_the_page(page):
    assert "which hardly a line of this source is" in page[0]


def test_a_target_too_small_for_statistics_has_a_page_too(tmp_path):
    text, _ = written(
        tmp_path, {"like": [rendered.line(rendered.words(n), seed=n) for n in range(900, 940)]}, documents=2
    )
    assert "undecided" in text and "more documents." in text and "data:image/svg" not in text


def test_the_same_verdicts_make_the_same_page(page, tmp_path):
    like = [rendered.line(rendered.words(n), seed=n, degrade=0.3) for n in range(5000, 5040)]
    one, other = (written(tmp_path / name, {"like": like})[0] for name in ("one", "other"))
    assert one == other


def test_a_picture_is_small_whatever_the_line_is():
    for shape in ((1000, 3), (3, 16000), (1, 1)):
        picture = pages.picture(np.zeros(shape, np.uint8))
        assert 1 <= picture["width"] <= 640 and 1 <= picture["height"] <= 640


@pytest.mark.browser
def test_a_browser_asks_for_nothing_but_the_page_itself(page):
    from browsing import opened

    asked, said = opened(page[1] / "fit.html")
    assert asked == [(page[1] / "fit.html").as_uri()] and not said
