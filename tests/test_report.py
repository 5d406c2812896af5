import base64
import copy
import io
import math
import re
from html.parser import HTMLParser

import browsing
import pytest
from PIL import Image

from maskocr_core.judging import report


def png():
    content = io.BytesIO()
    Image.new("L", (200, 40), 255).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()


def rate(value, reach=0.01):
    return {"value": value, "low": value - reach, "high": value + reach}


def start(name, last, verdict="undecided", budget=1000):
    return {
        "start": name,
        "verdict": verdict,
        "budget": budget,
        "size": "32x2x2",
        "seeds": 3,
        "learning_rate": 1e-3,
        "cer": {"quarter": rate(3 * last), "half": rate(2 * last), "all": rate(last)},
        "wer": rate(4 * last),
        "exact": 0.25,
        "cpu_minutes": {"finetune": 12.5, "pretrain": 30.0, "transfer": 0.0},
        "curve": [[step, 0.9 * math.exp(-step / 900) + last] for step in range(250, 3001, 250)],
    }


@pytest.fixture
def summary():
    return {
        "verdict": {
            "verdict": "first",
            "reason": "There is no champion.",
            "lines": [
                {
                    "name": "pretrained",
                    "verdict": "better",
                    "value": -0.021,
                    "bound": -0.008,
                    "reason": "Fewer errors.",
                },
            ],
        },
        "data_version": "3f9a",
        "documents": 12,
        "lines": 930,
        "starts": [start("scratch", 0.10, "baseline"), start("pretrained", 0.08, "better")],
        "examples": [
            {"line_id": "a1", "image_png": png(), "reference": "the old mill", "start_name": name, "read": read}
            for name, read in (("scratch", "the cold mill"), ("pretrained", "the old mil"))
        ],
        "fit": [
            {
                "source": "registers",
                "lines": 52000,
                "verdict": "accept",
                "weight": 0.94,
                "coverage": 0.93,
                "kid_ratio": 0.7,
                "reasons": ["covers the target"],
            }
        ],
        "notes": ["Learning rates were chosen on validation."],
    }


def rendered(summary, folder):
    report.render(summary, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects every start tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_decision_and_its_reason_stand_before_everything_else(summary, tmp_path):
    html = rendered(summary, tmp_path)
    body = html[html.index("<body>") :]
    expected = (
        "Verdict: first",
        "There is no champion.",
        "Fewer errors.",
        "labelled lines",
        "<figure>",
        ">registers<",
        ">line a1<",
        ">Notes<",
    )
    order = [body.index(text) for text in expected]
    assert order == sorted(order)


def test_rates_stand_in_percent_with_their_interval(summary, tmp_path):
    html = rendered(summary, tmp_path)
    assert "<b>8.00</b><br><small>7.00 to 9.00</small>" in html and "−2.10" in html and "42.5" in html


def test_usable_confidence_comes_with_its_table_and_what_reviews_of_three_prices_come_to(summary, tmp_path):
    review = [
        {"factor": factor, "threshold": threshold, "share": share, "cost": rate(cost, 0.5), "unit": "wrong letters"}
        for factor, threshold, share, cost in ((1.0, 0.8, 0.4, 2.0), (0.5, None, 1.0, 1.5), (2.0, 0.0, 0.0, 3.0))
    ]
    summary["calibration"] = {
        "usable": True,
        "reason": "",
        "known_documents": 0,
        "ece": rate(0.012, 0.004),
        "chance": 0.02,
        "brier": rate(0.09),
        "auroc": rate(0.94),
        "exact": rate(0.3),
        "table": [{"sentence": "at 1 % accepted-line error 62 % [58, 66] need no person"}],
        "review": review,
    }
    html = rendered(summary, tmp_path)
    assert "<li>at 1 % accepted-line error 62 % [58, 66] need no person</li>" in html
    costs = "A line then costs {} wrong letters [{}, {}].</p>".format
    assert "lines below a confidence of 0.80 go to a person (40 % of them). " + costs("2.00", "1.50", "2.50") in html
    assert "Were a review half as dear: a person reads every line. " + costs("1.50", "1.00", "2.00") in html
    assert "Were it twice as dear: no line goes to a person. " + costs("3.00", "2.50", "3.50") in html
    summary["calibration"] |= {"usable": False, "reason": "only 3 of 40 lines read exactly", "review": None}
    html = rendered(summary, tmp_path)
    assert "<b>Not usable:</b> only 3 of 40 lines read exactly." in html and "go to a person" not in html


def test_the_investment_is_judged_with_its_reason_above_the_fold_or_said_to_lack_something(summary, tmp_path):
    def header(**facts):
        html = rendered(summary | facts, tmp_path)
        return html[html.index("<header") : html.index("</header>")]

    row = {"start": "pretrained", "verdict": "go", "reason": "It pays from 900 labels on.", "break_even": None}
    returns = [row | {"purchase": None}, row | {"start": "transfer", "reason": "Never.", "purchase": None}]
    said = header(candidate="pretrained", returns=returns, priced=True)
    assert "pretrained: <b>go</b>" in said and "It pays from 900 labels on." in said and "Never." not in said
    assert "It pays from 900 labels on. Never." in header(candidate="scratch", returns=returns, priced=True)
    budgets = [{"start": "pretrained", "budget": budget} | {"cer": rate(0.1)} for budget in (100, 300)]
    assert "no prices of labels and computing" in header(efficiency=budgets, returns=[], priced=False)
    assert "held against a start from scratch" in header(efficiency=budgets, returns=[], priced=True)


def test_the_report_loads_nothing_from_anywhere(summary, tmp_path):
    for tag, attributes in Page(rendered(summary, tmp_path)).tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")


@pytest.mark.browser
def test_in_a_browser_the_decision_stands_above_the_fold_and_nothing_is_asked_for_or_runs_over(summary, tmp_path):
    summary["verdict"]["reason"] = "The CER of pretrained is 2.00 points below that of the champion. " * 3
    rendered(summary, tmp_path)
    assert browsing.opened(tmp_path / "report.html") == ([(tmp_path / "report.html").as_uri()], [])
    with browsing.browser() as launched:
        tab = launched.new_page(viewport={"width": 1280, "height": 720})
        tab.goto((tmp_path / "report.html").as_uri())
        header, why = (tab.locator(name).first.bounding_box() for name in ("header", "table"))
        assert header["y"] + header["height"] < 500 and why["y"] + why["height"] < 720
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_no_text_from_outside_acts_as_markup(summary, tmp_path):
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{"
    calm = Page(rendered(summary, tmp_path / "calm")).tags
    summary["verdict"]["reason"] = summary["data_version"] = summary["starts"][0]["start"] = evil
    summary["starts"][0]["verdict"] = summary["fit"][0]["source"] = summary["fit"][0]["reasons"][0] = evil
    summary["notes"][0] = summary["verdict"]["lines"][0]["name"] = evil
    for example in summary["examples"]:
        example.update(line_id=evil, start_name=evil)
    html = rendered(summary, tmp_path)
    assert [tag for tag, _ in Page(html).tags] == [tag for tag, _ in calm]
    summary["examples"][0].update(reference=evil, read=evil[3:])
    assert not re.search(r"<script|<img src=x", rendered(summary, tmp_path))


def test_direction_overrides_and_control_characters_are_spelled_out(summary, tmp_path):
    summary["examples"][0].update(reference="price 100\u202e", read="price \u0000 \ud800", start_name="a\u2066b")
    html = rendered(summary, tmp_path)
    assert "[U+202E]" in html and "[U+0000]" in html and "a[U+2066]b" in html
    assert not set("\u202e\u0000\u2066") & set(html)


def test_a_line_of_ten_thousand_characters_is_shown_whole_as_text(summary, tmp_path):
    long = "<b>\u202e&" * 2500
    summary["examples"][0].update(reference=long, read=long[::-1])
    html = rendered(summary, tmp_path)
    assert html.count("[U+202E]") == 5000 and "<b>\u202e" not in html and len(Page(html).tags) < 60_000


def test_right_to_left_text_is_isolated_and_keeps_its_joiners(summary, tmp_path):
    summary["examples"][0].update(reference="می\u200cشود", read="می\u200cشود")
    assert '<bdi dir="auto" class="text">می\u200cشود</bdi>' in rendered(summary, tmp_path)


def test_differing_characters_are_marked_on_both_sides(summary, tmp_path):
    html = rendered(summary, tmp_path)
    assert "the <mark>c</mark>old mill</bdi>" in html and "the old mil<mark>l</mark></bdi>" in html


@pytest.mark.parametrize(
    ("text", "other", "runs"),
    [
        ("abc", "abc", [("abc", False)]),
        ("abc", "axc", [("a", False), ("b", True), ("c", False)]),
        ("abcd", "axd", [("a", False), ("bc", True), ("d", False)]),
        ("abc", "", [("abc", True)]),
        ("", "abc", []),
        ("e\u0301 ", "\u00e9", [("\u00e9", False)]),
    ],
)
def test_exactly_what_scores_as_an_error_is_marked(text, other, runs):
    assert report.marked(text, other) == runs


def test_the_image_of_a_line_stands_once_for_all_its_readings(summary, tmp_path):
    assert rendered(summary, tmp_path).count(png()) == 1


def test_a_line_read_as_nothing_says_so(summary, tmp_path):
    summary["examples"][0]["read"] = ""
    assert "<i>nothing</i>" in rendered(summary, tmp_path)


def test_examples_fit_and_notes_may_be_missing(summary, tmp_path):
    for key in ("examples", "fit", "notes"):
        del summary[key]
    html = rendered(summary, tmp_path)
    assert "Lines as they were read" not in html and "Fit of" not in html and "Notes" not in html


def test_too_few_documents_are_warned_of_and_unknown_bounds_are_dashes(summary, tmp_path):
    summary.update(documents=3)
    summary["starts"][0]["wer"] = {"value": 0.3, "low": math.nan, "high": None}
    summary["starts"][0]["cer"]["all"] = {"value": 0.1, "low": None, "high": None}
    summary["verdict"]["lines"][0].update(value=None, bound=None)
    html = rendered(summary, tmp_path)
    assert "fewer than 10 documents" in html and "no interval" in html and "–" in html and "nan" not in html


def test_several_label_budgets_are_told_apart(summary, tmp_path):
    summary["starts"].append(start("pretrained", 0.12, budget=250))
    assert "250 labelled lines" in rendered(summary, tmp_path)


def test_runs_without_a_curve_still_have_a_report(summary, tmp_path):
    for each in summary["starts"]:
        each["curve"] = []
    assert "Verdict: first" in rendered(summary, tmp_path)


def test_the_png_shows_the_plots(summary, tmp_path):
    report.render(summary, tmp_path)
    with Image.open(tmp_path / "report.png") as image:
        image.load()
        assert image.width > 1000 and len(image.convert("L").getcolors()) > 10


def test_the_summary_is_left_as_it_was_and_gives_the_same_bytes_again(summary, tmp_path):
    before = copy.deepcopy(summary)
    for folder in ("one", "two"):
        report.render(summary, tmp_path / folder)
    assert summary == before
    for name in ("report.html", "report.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
