from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from maskocr_core.data.qa import repeats

IDS = st.integers(0, 30).map(lambda number: f"{number * 0x0807060504030201:032x}"[-32:])


@given(st.lists(st.lists(IDS, max_size=12), max_size=6))
def test_what_occurs_more_than_once_is_found_with_its_count_whatever_shard_it_is_in(tmp_path_factory, shards):
    counts = Counter(identity for shard in shards for identity in shard)
    folder = tmp_path_factory.mktemp("ids")
    assert repeats.find(shards, folder) == {identity: n for identity, n in counts.items() if n > 1}
    assert not list(folder.iterdir())
