import json
import math

import pytest

from maskocr_core.judging import weights

PLAIN = {"digit": 3.0, "letter": 1.0, "punctuation": 0.25, "space": 0.5, "other": 2.0}
AMOUNT = {"name": "amount", "pattern": r"\d{1,6}", "weight": 4.0, "fatal": False}


def weighing(*fields, **changed):
    given = {"version": 1, "name": "ours", "unit": "letters", "classes": PLAIN, "fields": list(fields)}
    return weights.Weights.model_validate(given | {"fatal_cost": 100.0, "review_cost": 5.0} | changed)


def written(path, **changed):
    given = weighing(AMOUNT).model_dump(mode="json") | changed
    path.write_text(json.dumps({name: value for name, value in given.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unit": None}, "unit is missing: add it"),
        ({"reveiw_cost": 1}, "reveiw_cost is unknown: did you mean review_cost"),
        ({"fatal_cost": -1}, "fatal_cost is -1, but input should be greater than or equal to 0"),
        ({"fatal_cost": True}, "fatal_cost is True, but"),
        ({"fatal_cost": math.inf}, "fatal_cost is inf, but"),
        ({"classes": PLAIN | {"digit": "3"}}, "classes.digit is '3', but"),
        ({"classes": {"digit": 3.0}}, "classes.letter is missing: add it"),
        ({"fields": [AMOUNT | {"pattern": "["}]}, "fields.0.pattern '[' is no regular expression"),
        ({"fields": [AMOUNT | {"pattern": r"\d*"}]}, "matches the empty text, hence everywhere: ask for"),
        ({"fields": [AMOUNT | {"pattern": "(a+)+b"}]}, "so many ways that the search may not end: put no repeat into"),
        ({"fields": [AMOUNT | {"weight": -2}]}, "fields.0.weight is -2, but"),
        ({"fields": [AMOUNT, AMOUNT]}, "name a field twice: give each another name"),
        ({"version": 2}, "version is 2, but input should be 1"),
    ],
)
def test_a_file_of_weights_that_is_wrong_is_refused_in_a_sentence_with_file_field_and_mend(tmp_path, changed, said):
    path = written(tmp_path / "weights.json", **changed)
    with pytest.raises(ValueError) as error:
        weights.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message


@pytest.mark.parametrize(
    "content", [b"", b"[1", b"\xff", b"[" * 100_000, b'{"version": 1, "version": 1}', b"[]", b"3"], ids=range(7)
)
def test_a_file_that_is_no_json_object_is_refused_with_its_name(tmp_path, content):
    (tmp_path / "weights.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.json"):
        weights.load(tmp_path / "weights.json")


def test_an_absent_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json cannot be read as JSON \(No such file"):
        weights.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)*b", "(?:a?a?)*b", "a?" * 40 + "b", "a*a*a*a*b", "(.*)*b", "(((a*)*)*)*b", "(a*?)+b"]
)
def test_a_pattern_that_could_be_matched_without_end_is_refused(pattern):
    with pytest.raises(ValueError, match="so many ways"):
        weighing(AMOUNT | {"pattern": pattern})
