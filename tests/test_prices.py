import json
import math

import pytest
from conftest import REPOSITORY

from maskocr_core.judging import prices

PRICES = {"version": 1, "currency": "EUR", "minutes_per_line": 2.0, "hourly_rate": 30.0}  # a label costs 1 EUR
PRICES |= {"gpu_hour": 2.0, "cpu_hour": 0.1}
BUY = {"name": "service", "cer": 0.1, "price_per_line": 0.02}


def priced(**changed):
    return prices.Prices.model_validate(PRICES | changed)


def written(path, **changed):
    given = PRICES | changed
    path.write_text(json.dumps({name: value for name, value in given.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hourly_rate": None}, "hourly_rate is missing: add it"),
        ({"gpu_hours": 3}, "gpu_hours is unknown: did you mean gpu_hour"),
        ({"minutes_per_line": 0}, "minutes_per_line is 0, but input should be greater than 0"),
        ({"gpu_hour": -1.0}, "gpu_hour is -1.0, but"),
        ({"cpu_hour": "cheap"}, "cpu_hour is 'cheap', but"),
        ({"currency": ""}, "currency is '', but"),
        ({"buy": BUY | {"cer": 5}}, "buy.cer is 5, but input should be less than or equal to 1"),
        ({"buy": {"name": "x", "cer": 0.1}}, "buy.price_per_line is missing: add it"),
        ({"shared_by": 0}, "shared_by is 0, but"),
        ({"lines_per_month": math.nan}, "lines_per_month is nan, but"),
        ({"target_cer": 5}, "target_cer is 5, but input should be less than 1"),
        ({"version": 9}, "version is 9, but input should be 1"),
    ],
)
def test_a_price_file_that_is_wrong_is_refused_in_a_sentence_with_file_field_and_mend(tmp_path, changed, said):
    path = written(tmp_path / "prices.json", **changed)
    with pytest.raises(ValueError) as error:
        prices.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message


def test_the_example_of_a_price_file_is_one():
    example = prices.load(REPOSITORY / "sample" / "prices.json")
    assert example.label == pytest.approx(0.75) and example.buy is not None
