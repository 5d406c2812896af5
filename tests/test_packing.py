"""From units to shards, and what the parts say together: copies, documents, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core import config
from maskocr_core.data import lines, packing, readers, side_tables

DATA = config.load("smoke").data
SPLITS = ("train", "test", "unlabeled", "transfer-train")


def part(folder: Path, rows: list[dict], refused: int = 0) -> Path:
    """A part as `pack` leaves it, from rows of packing.COPIES."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=packing.COPIES)
    side_tables.save(table.sort_by("line_id"), folder / "copies.arrow")
    documents = [
        {"source": row["source"], "document_id": row["document_id"], "split": row["shard"].split("/")[0], "lines": 1}
        for row in rows
    ]
    side_tables.save(pa.Table.from_pylist(documents, schema=lines.DOCUMENTS), folder / "documents.arrow")
    items = [{"item": f"{folder.name}/{number}", "reason": "torn"} for number in range(refused)]
    side_tables.save(pa.Table.from_pylist(items, schema=packing.REFUSED), folder / "refused.arrow")
    return folder


def copy(image: int, split: str, number: int, place: int) -> dict:
    return {
        "source": "s",
        "document_id": f"d{number}",
        "page_id": "p",
        "line_id": lines.line_id(image.to_bytes(4)),
        "shard": f"{split}/part-{number}.parquet",
        "place": place,
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(SPLITS)), max_size=8), max_size=6),
    st.integers(1, 50),
)
def test_every_image_of_several_owners_keeps_them_all_in_the_order_in_which_they_are_read(
    tmp_path_factory, drawn, at_once
):
    folder = tmp_path_factory.mktemp("join")
    rows = [
        [copy(image, split, number, place) for place, (image, split) in enumerate(images)]
        for number, images in enumerate(drawn)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "AT_ONCE", at_once)
        passed_over = packing.join(
            [part(folder / f"part{number}", own, refused=number) for number, own in enumerate(rows)], folder / "out"
        )
    expected = []
    everything = [row for own in rows for row in own]
    for identity in sorted({row["line_id"] for row in everything}):
        group = [row for row in everything if row["line_id"] == identity]
        group.sort(key=lambda row: (lines.SPLITS.index(row["shard"].split("/")[0]), row["shard"], row["place"]))
        expected += [row | {"rank": rank} for rank, row in enumerate(group) if len(group) > 1]
    table = pq.read_table(folder / "out/duplicates.parquet")
    assert table.schema.equals(lines.DUPLICATES) and table.to_pylist() == expected
    hidden = [row["shard"].split("/")[0] for row in expected if row["rank"]]
    assert passed_over == {split: hidden.count(split) for split in set(hidden)}
    assert pq.read_table(folder / "out/refused.parquet").num_rows == sum(range(len(rows)))
    documents = pq.read_table(folder / "out/documents.parquet").to_pylist()
    assert sum(document["lines"] for document in documents) == len(everything)
    assert [(row["document_id"], row["split"]) for row in documents] == sorted(
        {(row["document_id"], row["shard"].split("/")[0]) for row in everything}
    )


def test_row_groups_do_not_hang_on_how_the_parts_are_cut(tmp_path):
    items = [{"item": f"{number}", "reason": "torn"} for number in range(40_000)]
    whole = pa.Table.from_pylist(items, schema=packing.REFUSED)
    for name, size in (("many", 7), ("few", 30_000)):
        pieces = (whole.slice(first, size) for first in range(0, len(items), size))
        packing._write(pieces, packing.REFUSED, tmp_path / name)
    packing._write(iter(()), packing.REFUSED, tmp_path / "none")
    assert (tmp_path / "many").read_bytes() == (tmp_path / "few").read_bytes()
    metadata = pq.read_metadata(tmp_path / "many")
    assert {metadata.row_group(n).num_rows for n in range(metadata.num_row_groups - 1)} == {lines.ROWS_PER_GROUP}
    assert pq.read_table(tmp_path / "none").num_rows == 0


_MEASURED = """
import hashlib, json, resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from maskocr_core.data import lines, packing, side_tables
folder, parts, size = Path(sys.argv[1]), int(sys.argv[2]), 2_000
def part(number):
    path = folder / f"part{number}"
    path.mkdir(parents=True)
    ids = sorted(hashlib.sha256(f"{min(number, 1) * number}.{row}".encode()).hexdigest()[:32] for row in range(size))
    column = lambda text: pa.array([text] * size)
    table = pa.Table.from_arrays([column("source"), column(f"document {number}"), column("page" * 20), pa.array(ids),
                                  column(f"train/part-{number:032}.parquet"), pa.array(range(size), pa.int32())], schema=packing.COPIES)
    side_tables.save(table, path / "copies.arrow")
    side_tables.save(lines.DOCUMENTS.empty_table(), path / "documents.arrow")
    side_tables.save(packing.REFUSED.empty_table(), path / "refused.arrow")
    return path
packing.AT_ONCE = 20_000
paths = [part(number) for number in range(parts)]
packing.join(paths[:10], folder / "warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
packing.join(paths, folder / "out")
print(json.dumps({"grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "rows": parts * size}))
"""


def test_joining_ten_times_the_lines_takes_no_more_memory(tmp_path):
    def grown(parts: int) -> int:
        """KiB by which the process grew while it joined."""
        command = [sys.executable, "-c", _MEASURED, str(tmp_path / str(parts)), str(parts)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        return json.loads(done.stdout)["grown"]

    # The copies of 400,000 lines are some 85 MB.
    assert grown(200) < grown(20) + 24 * 1024


def shards(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}


def packed(data: Path, out: Path) -> dict[str, bytes]:
    for unit in readers.plan(str(data), DATA):
        (out / unit.name).mkdir(parents=True)
        packing.pack(unit, DATA, "", out / unit.name)
    return {name.partition("/")[2]: content for name, content in shards(out).items()}


def test_a_copy_of_the_data_has_the_same_shards_whatever_its_times_and_its_place(tmp_path):
    first = rendered.documents(tmp_path / "here/pairs", documents=3, lines=2)
    second = rendered.documents(tmp_path / "there/pairs", documents=3, lines=2)
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
    assert packed(first, tmp_path / "a") == packed(second, tmp_path / "b")


def test_another_text_makes_a_shard_of_another_name(tmp_path):
    data = rendered.documents(tmp_path / "pairs", documents=1, lines=2)
    before = packed(data, tmp_path / "a")
    (data / "document-00/000.gt.txt").write_text("Another text.")
    assert not set(before) & set(packed(data, tmp_path / "b"))


def test_two_files_of_the_same_rows_are_two_shards_of_which_one_is_read(tmp_path):
    rows = rendered.rows(documents=1, lines=3)
    for name in ("a", "b"):
        rendered.parquet(tmp_path / f"data/{name}.parquet", rows)
    parts = []
    for unit in readers.plan(str(tmp_path / "data"), DATA):
        parts.append(tmp_path / "parts" / unit.name)
        parts[-1].mkdir(parents=True)
        assert packing.pack(unit, DATA, "", parts[-1])["train"] == 3
    assert len({name for one in parts for name in shards(one)}) == 2
    assert packing.join(parts, tmp_path / "out") == {"train": 3}


def test_a_line_that_comes_twice_on_a_page_is_listed_once_more_and_kept_once(tmp_path):
    rows = rendered.rows(documents=1, lines=2)
    rendered.parquet(tmp_path / "data/a.parquet", [*rows, rows[0]])
    (unit,) = readers.plan(str(tmp_path / "data"), DATA)
    assert packing.pack(unit, DATA, "", tmp_path) == {"train": 2, "refused": 1, "unused": 0, "forgotten": 0}
    assert [row["reason"] for row in packing.refused(tmp_path.parent, [tmp_path.name])] == [
        f"the same image as another line of page {rows[0]['page']}"
    ]


def test_a_unit_of_more_lines_than_a_shard_has_several_of_which_none_is_longer(tmp_path):
    rendered.parquet(tmp_path / "data/a.parquet", rendered.rows(documents=4, lines=20, split="unlabeled"))
    data = DATA.model_copy(update={"shard_lines": 32})
    (unit,) = readers.plan(str(tmp_path / "data"), data)
    assert packing.pack(unit, data, "", tmp_path / "part")["unlabeled"] == 80
    tables = [pq.read_table(path) for path in (tmp_path / "part").rglob("*.parquet")]
    assert sorted(table.num_rows for table in tables) == [16, 32, 32]
    assert side_tables.load(tmp_path / "part/copies.arrow").num_rows == 80
    packing.join([tmp_path / "part"], tmp_path / "out")
    documents = pq.read_table(tmp_path / "out/documents.parquet").to_pylist()
    assert [row["lines"] for row in documents] == [20] * 4


_PACKED = """
import json, resource, sys
from pathlib import Path
from maskocr_core import config
from maskocr_core.data import packing, readers
folder, data = Path(sys.argv[1]), config.load("smoke").data.model_copy(update={"shard_lines": 4096})
packing.SHARD_BYTES = 16 << 20
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
small, giant = (readers.plan(str(folder / name), data)[0] for name in ("small", "giant"))
packing.pack(small, data, "", folder / "part-small")
before = peak()
counts = packing.pack(giant, data, "", folder / "part-giant")
print(json.dumps([counts, peak() - before]))
"""


def test_one_giant_row_group_is_packed_in_bounded_memory(tmp_path):
    (row,) = rendered.rows(documents=1, lines=1, split="unlabeled")
    noise = np.random.default_rng(0).bytes(200_000)  # behind the image, where no decoder looks
    rows = [row | {"image": row["image"] + number.to_bytes(4) + noise} for number in range(1200)]
    for name, some in (("small", rows[:200]), ("giant", rows)):
        rendered.parquet(tmp_path / f"{name}/a.parquet", some)
    command = [sys.executable, "-c", _PACKED, str(tmp_path)]
    counts, grown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert counts["unlabeled"] == 1200
    assert grown < 80, f"{grown} MiB for a row group of 240 MB"
