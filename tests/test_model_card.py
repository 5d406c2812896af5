"""The card of a registered model, and where its lines came from."""

import math

import pyarrow as pa
import pytest
import rendered

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines, provenance
from maskocr_core.judging import model_card

RECOGNIZER = {"height": 40, "direction": "ltr", "max_width": 2048, "decoder": "ctc", "characters": 97}
MADE = {"maskocr": "0.2", "commit": None, "recipe": "pilot", "model": "maskocr", "origins": {}}
SOURCES = [{"use": "fine-tuning", "source": "registers", "license": "CC-BY-4.0", "documents": 3, "lines": 1200}]


def rate(value, reach=0.01):
    return {"value": value, "low": value - reach, "high": value + reach}


@pytest.fixture
def summary():
    start = {"start": "both", "size": "128x4x4", "steps": 480, "budget": 400, "learning_rate": 0.002, "seeds": 3}
    start |= {"cer": {"all": rate(0.06)}, "wer": rate(0.2), "exact": 0.4}
    return {
        "candidate": "both",
        "candidate_seed": 2,
        "candidate_cer": rate(0.0567),
        "starts": [start],
        "confidence": 0.95,
        "lines": 300,
        "documents": 14,
        "verdict": {"verdict": "first", "reason": "There is no champion."},
        "forgetting": [{"set": "older", "start": "both", "after": rate(0.1), "before": None}],
        "calibration": {"usable": True, "reason": "", "known_documents": 0},
        "notes": ["The start was chosen on validation lines."],
    }


def test_a_card_says_what_the_model_is_came_of_reads_and_may_not_be_trusted_with(summary):
    made = MADE | {"origins": {"encoder": "models:/maskocr/3", "labels": "models:/maskocr/3"}}
    card = model_card.text(summary, RECOGNIZER, SOURCES, made)
    assert "| fine-tuning | registers | CC-BY-4.0 | 3 | 1,200 |" in card
    assert "CER **5.67 %** [4.67, 6.67]; intervals are at 95 %" in card and "| 6.00 [5.00, 7.00] | 20.00 |" in card
    assert "Its encoder went on from `models:/maskocr/3`" in card and "were described by `models:/maskocr/3`" in card
    assert "Its confidence is the probability that a line is exact, for lines like those it was fitted on." in card


def test_a_card_says_where_an_interval_or_confidence_or_a_licence_is_missing(summary):
    summary["candidate_cer"] = {"value": 0.1, "low": math.nan, "high": None}
    summary["calibration"] = {"usable": False, "reason": "only 3 of 40 lines read exactly", "known_documents": 0}
    card = model_card.text(summary, RECOGNIZER, [SOURCES[0] | {"license": None}], MADE)
    assert "CER **10.00 %** (documents too few for an interval)" in card and "| registers | not stated |" in card
    assert "Its confidence is no probability: only 3 of 40 lines read exactly." in card
    summary["calibration"] = {"usable": True, "reason": "", "known_documents": 7}
    assert "so that it is hopeful on new documents" in model_card.text(summary, RECOGNIZER, SOURCES, MADE)


def test_names_of_strangers_are_no_markup_on_a_card(summary):
    evil = "a | b [x](http://evil.example) <b> `c` \u202e# d"
    card = model_card.text(summary, RECOGNIZER, [SOURCES[0] | {"source": evil}], MADE)
    (row,) = [line for line in card.splitlines() if "fine-tuning |" in line]
    assert r"a \| b \[x\](http://evil.example) &lt;b&gt; \`c\` \[U+202E\]\# d" in row
    calm = model_card.text(summary, RECOGNIZER, SOURCES, MADE)
    assert len(card.splitlines()) == len(calm.splitlines())


def test_names_of_strangers_are_no_markup_on_the_page_of_a_version(summary):
    evil = "a | b [x](http://evil.example) <b> & `c` \u202e# d"
    line = {"name": f"source {evil}", "verdict": "hold", "value": 0.0123, "bound": None, "limit": 0.005}
    line |= {"unit": "CER points", "reason": f"{evil} is read worse."}
    summary["verdict"] |= {"reason": evil, "lines": [line]}
    summary["starts"][0] |= {"verdict": "baseline", "cer": dict.fromkeys(("quarter", "half", "all"), rate(0.06))}
    page = model_card.shown(summary | {"notes": [evil]})
    escaped = r"a \| b \[x\](http://evil.example) &lt;b&gt; &amp; \`c\` \[U+202E\]\# d"
    table = page.split("```")[1].strip().splitlines()
    assert len(table) == 2 and table[0].startswith("start ") and "6.0 % [5.0–7.0]" in table[1]
    assert f"**first**: {escaped}" in page and f"\n- {escaped}" in page
    assert f"- **source {escaped}**: hold (value 1.23, limit 0.5; CER points). {escaped} is read worse.\n" in page


def test_sources_are_counted_by_use_and_licence_of_the_lines_that_are_read(tmp_path, monkeypatch):
    rows = []
    for number, (source, document, licence) in enumerate(
        [("a", "d1", "CC0"), ("a", "d1", "CC0"), ("a", "d1", "CC-BY"), ("a", "d2", None), ("b", "d1", "CC0")]
    ):
        image = rendered.png(rendered.line(f"line {number}", seed=number))
        rows.append(
            {
                "line_id": lines.line_id(image),
                "page_id": document,
                "document_id": document,
                "source": source,
                "image": image,
                "height": 40,
                "width": 200,
                "text": "x",
                "license": licence,
            }
        )
    for split in ("train", "unlabeled"):
        table = pa.Table.from_pylist(lines.in_order(rows), schema=lines.SCHEMA)
        lines.write(table, tmp_path / f"lines/{split}/part-0.parquet")
    artifacts.finish(tmp_path / "lines", kind="lines", config={}, metrics={})
    found = provenance.sources(Artifact(tmp_path / "lines"), ("unlabeled", "train", "test"), ["b"])
    told = [tuple(row[name] for name in ("use", "source", "license", "documents", "lines")) for row in found]
    assert told == [
        ("pre-training", "b", "CC0", 1, 1),
        ("fine-tuning", "a", None, 1, 1),
        ("fine-tuning", "a", "CC-BY", 1, 1),
        ("fine-tuning", "a", "CC0", 1, 2),
        ("fine-tuning", "b", "CC0", 1, 1),
    ]
