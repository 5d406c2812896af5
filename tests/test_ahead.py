import itertools
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core.data.ahead import ahead


def calls(count, made):
    for number in range(count):

        def call(number=number):
            time.sleep(0.001 * (number % 3))
            made.append(number)
            return number

        yield call


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5))
def test_results_come_in_order_whoever_is_ready_first(count, threads):
    assert list(ahead(calls(count, []), threads)) == list(range(count))


def test_what_is_not_asked_for_is_made_a_few_ahead_and_no_more():
    made = []
    results = ahead(calls(1000, made), threads=2)
    assert next(results) == 0
    time.sleep(0.2)
    assert 3 <= len(made) <= 10
    results.close()


def test_a_closed_iterator_leaves_no_thread_behind():
    before = threading.active_count()
    results = ahead(calls(1000, []), threads=3)
    assert list(itertools.islice(results, 5)) == list(range(5))
    results.close()
    assert threading.active_count() == before


def test_an_error_of_a_call_or_of_what_draws_them_is_raised_where_its_result_would_have_come():
    def broken():
        raise ValueError("line 7 is damaged")

    def drawn():
        yield lambda: 1
        yield broken

    def ends():
        yield lambda: 1
        raise ValueError("there is no line")

    for source, message in ((drawn, "line 7"), (ends, "no line")):
        results = ahead(source(), threads=2)
        assert next(results) == 1
        with pytest.raises(ValueError, match=message):
            next(results)
