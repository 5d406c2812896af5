"""Budgets of labels: smaller ones within larger ones, of few split units, in the order that the data bring."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core.data import budgets

LINES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 999), st.integers(0, 50)),
    min_size=1,
    max_size=40,
    unique_by=lambda line: line[2],
)


def table(lines, ordered):
    """document, page, number and order of each line, as columns of the selected lines."""
    columns = {
        "line_id": [f"{number:04d}" for _, _, number, _ in lines],
        "document_id": [f"d{document}" for document, _, _, _ in lines],
        "page_id": [f"d{document}p{page}" for document, page, _, _ in lines],
        "order": [order if ordered else None for _, _, _, order in lines],
    }
    return pa.table(
        columns, pa.schema([pa.field(name, pa.int32() if name == "order" else pa.string()) for name in columns])
    )


def ids(found):
    return found["line_id"].to_pylist()


@given(LINES, st.integers(0, 45), st.integers(0, 45), st.sampled_from(["document", "page"]))
def test_a_smaller_budget_is_within_a_larger_one_and_zero_is_all(lines, one, other, unit):
    given_table = table(lines, ordered=False)
    small, large = sorted((one, other))
    of = lambda budget: set(ids(budgets.nested(given_table, budget, unit)))  # noqa: E731
    assert len(of(large)) == (min(large, len(lines)) or len(lines))
    assert small == 0 or of(small) <= (of(large) if large else of(0))
    assert of(0) == {f"{number:04d}" for _, _, number, _ in lines}


@given(LINES, st.integers(1, 40), st.sampled_from(["document", "page"]))
def test_a_budget_takes_split_units_whole_but_the_last(lines, budget, unit):
    given_table = table(lines, ordered=False)
    taken = set(ids(budgets.nested(given_table, budget, unit)))
    whole = {}
    for row in given_table.to_pylist():
        whole.setdefault(row[f"{unit}_id"], set()).add(row["line_id"])
    assert sum(bool(members & taken) and not members <= taken for members in whole.values()) <= 1


@given(LINES, st.integers(1, 40))
def test_the_order_of_the_data_is_kept(lines, budget):
    given_table = table(lines, ordered=True)
    order = sorted((order, f"{number:04d}") for _, _, number, order in lines)
    assert set(ids(budgets.nested(given_table, budget))) == {line for _, line in order[:budget]}
