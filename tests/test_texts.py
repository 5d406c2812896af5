import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core.data.domain_fit import texts

LATIN, GREEK, CYRILLIC = "abcdefghilmnoprstuv", "αβγδεζηθικλμνοπρστ", "абвгдежзиклмнопрст"


def lines(letters, count, language=0, seed=0, length=30):
    chances = np.random.default_rng(language).dirichlet(np.full(len(letters) + 1, 3.0))
    random = np.random.default_rng([seed, 1])
    return ["".join(random.choice(list(letters + " "), length, p=chances)) for _ in range(count)]


@pytest.fixture(scope="module")
def target():
    """Texts of twelve documents of forty lines, alike but not the same, and their documents."""
    chosen = [lines(LATIN, 40, language=number % 2, seed=number) for number in range(12)]
    return sum(chosen, []), [f"d{number:02}" for number in range(12) for _ in range(40)]


def test_texts_of_the_same_kind_are_no_reason_to_warn(target):
    found = texts.compare(*target, lines(LATIN, 200, language=0, seed=98) + lines(LATIN, 200, language=1, seed=99))
    assert found["warnings"] == [] and found["divergence"] < found["limit"]


def test_another_script_is_said(target):
    found = texts.compare(*target, lines(GREEK, 200))
    assert "written in Latn" in found["warnings"][0] and found["scripts"] == {"Grek": 1.0}


def test_characters_that_a_source_never_has_are_said_and_named(target):
    found = texts.compare(*target, [line.replace("e", "a") for line in target[0]])
    assert any("never occur in this source: e" in warning for warning in found["warnings"]) and found["unknown"] == [
        "e"
    ]


def test_another_language_in_the_same_letters_is_said(target):
    found = texts.compare(*target, lines(LATIN, 400, language=9))
    assert any("another kind or language" in warning for warning in found["warnings"])


def test_of_a_target_with_few_documents_no_limit_is_known(target):
    found = texts.compare(target[0][:40], target[1][:40], lines(LATIN, 200, language=9))
    assert found["limit"] is None and not any("language" in warning for warning in found["warnings"])


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=80, deadline=None)
def test_divergence_is_symmetric_and_lies_between_zero_and_one(a, b):
    value = texts.divergence(a, b)
    assert -1e-9 <= value <= 1 + 1e-9 and value == pytest.approx(texts.divergence(b, a))
    assert texts.divergence(a, a) == pytest.approx(0)
