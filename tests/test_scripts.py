import pytest

from maskocr_core.data import scripts


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("Straße, 12 €", ("Latn",)),
        ("12.–14.", ()),
        ("e\u0301 ſ æ ꝑ", ("Latn",)),
        ("λόγος est verbum", ("Grek", "Latn")),
        ("שלום", ("Hebr",)),
        ("漢字かなカナ", ("Jpan",)),
    ],
)
def test_scripts_are_those_of_the_letters(text, codes):
    assert scripts.of(text) == codes


def test_a_look_alike_inside_a_word_is_found_and_a_foreign_word_is_not():
    assert scripts.mixed_words("\u0410nna dixit λόγος") == ["\u0410nna"]
