import hashlib
import io
import struct
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskocr_core import artifacts, config
from maskocr_core.data import admitted, batches, images, lines, tombstones


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def row(number: int, **changes) -> dict:
    pixels = np.full((8, 16), 255, np.uint8)
    pixels[:4, :4] = np.frombuffer(hashlib.sha256(str(number).encode()).digest()[:16], np.uint8).reshape(4, 4)
    image = encoded(pixels)
    return {
        "line_id": lines.line_id(image),
        "page_id": f"page-{number // 10}",
        "document_id": f"document-{number // 100}",
        "source": "drawn",
        "image": image,
        "height": 8,
        "width": 16,
        "text": f"line {number}",
        "order": number,
        "license": "CC0-1.0",
    } | changes


def written(folder, *shards, side=None) -> artifacts.Artifact:
    """An artifact of lines: each shard is (name, rows)."""
    for name, rows in shards:
        lines.write(pa.Table.from_pylist(rows, schema=lines.SCHEMA), folder / name)
    for name, table in (side or {}).items():
        lines.write(table, folder / name)
    return artifacts.finish(folder, kind="lines", config={}, metrics={})


def train(folder, *counts: int) -> artifacts.Artifact:
    """Shards of the split train with so many lines each, numbered on."""
    starts = [sum(counts[:number]) for number in range(len(counts))]
    return written(
        folder,
        *(
            (f"train/part-{n:05}.parquet", [row(i) for i in range(start, start + count)])
            for n, (start, count) in enumerate(zip(starts, counts))
        ),
    )


def chosen(folder, shard: str, identities: list[str], weight: float = 0.5) -> artifacts.Artifact:
    rows = [{"line_id": identity, "weight": weight} for identity in identities]
    lines.write(pa.Table.from_pylist(rows, schema=lines.SELECTION), folder / shard)
    return artifacts.finish(folder, kind="selection", config={}, metrics={})


def forget(*names: str) -> None:
    """Put a source, document, page or line on the list of tombstones; the names are those of tombstones.KEY."""
    document = tombstones.digest(*names[:2]) if len(names) > 2 else ""
    tombstones.add([{"digest": tombstones.digest(*names), "document": document, "at": "2026-01-01", "reason": "test"}])


def test_a_row_group_has_512_rows(tmp_path):
    artifact = train(tmp_path / "lines", 1100)
    metadata = pq.read_metadata(tmp_path / "lines/train/part-00000.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [512, 512, 76]
    assert artifact.manifest["files"][0]["rows"] == 1100 == lines.count(artifact, "train")
    assert lines.groups_of(artifact, "train/part-00000.parquet") == 3


def test_a_split_without_lines_leaves_no_shard_and_an_empty_index(tmp_path):
    artifact = train(tmp_path / "lines", 3)
    empty = lines.index(artifact, "val")
    assert lines.shards(artifact, "val") == [] and empty.num_rows == 0
    assert empty.schema == lines.index(artifact, "train").schema


def test_the_index_leads_to_every_image(tmp_path):
    artifact = train(tmp_path / "lines", 550, 50)
    table = lines.index(artifact, "train")
    assert "image" not in table.column_names and len(set(table["line_id"].to_pylist())) == 600
    for place in table.take([0, 511, 512, 549, 550, 599]).to_pylist():
        group = lines.open_parquet(artifact, place["shard"]).read_row_group(place["group"])
        assert lines.line_id(group["image"][place["row"]].as_py()) == place["line_id"]


def test_the_index_of_some_row_groups_is_that_part_of_the_whole(tmp_path):
    artifact = train(tmp_path / "lines", 1100)
    (shard,) = lines.shards(artifact, "train")
    whole = lines.index_of(artifact, shard, ["line_id"])
    assert lines.index_of(artifact, shard, ["line_id"], [1]).to_pylist() == whole.slice(512, 512).to_pylist()
    assert lines.index_of(artifact, shard, ["line_id"], []).num_rows == 0


def test_the_index_and_the_stream_of_images_have_one_order(tmp_path):
    artifact = train(tmp_path / "lines", 70, 80)
    streamed = [identity for batch in lines.images(artifact, "train") for identity in batch["line_id"].to_pylist()]
    assert streamed == lines.index(artifact, "train")["line_id"].to_pylist()


def test_images_come_in_the_order_that_they_are_asked_for(tmp_path):
    artifact = train(tmp_path / "lines", 40, 60)
    wanted = [row(number)["line_id"] for number in (70, 3, 99)]
    assert [lines.line_id(image) for image in lines.images_of(artifact, "train", wanted)] == wanted


def test_neighbours_of_a_page_are_not_left_side_by_side_and_the_order_hangs_on_nothing_else():
    rows = [row(number) for number in range(100)]
    order = [line["order"] for line in lines.in_order(rows)]
    assert sorted(order) == list(range(100))
    assert sum(after == before + 1 for before, after in zip(order, order[1:])) < 10
    assert [line["order"] for line in lines.in_order(rows[::-1])] == order


def test_a_flipped_byte_in_a_shard_is_noticed_wherever_its_images_are_read(tmp_path):
    artifact = train(tmp_path / "lines", 64)
    shard = tmp_path / "lines/train/part-00000.parquet"
    column = pq.read_metadata(shard).row_group(0).column(lines.SCHEMA.get_field_index("image"))
    begin, whole = column.dictionary_page_offset or column.data_page_offset, shard.read_bytes()
    for place in (begin + 300, begin + 1000, begin + 2000):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((OSError, ValueError)):
            list(lines.images(artifact, "train"))
        with pytest.raises(ValueError, match="changed after it was written"):
            artifact.read_bytes("train/part-00000.parquet")
    shard.write_bytes(whole)
    assert sum(batch.num_rows for batch in lines.images(artifact, "train")) == 64


def test_a_whole_shard_in_the_place_of_another_is_noticed_however_it_is_read(tmp_path):
    artifact = train(tmp_path / "lines", 30, 30)
    first, second = (tmp_path / "lines" / shard for shard in lines.shards(artifact, "train"))
    assert lines.count(artifact, "train") == 60 == lines.index(artifact, "train").num_rows
    first.write_bytes(second.read_bytes())
    name = first.relative_to(tmp_path / "lines").as_posix()
    reads = (lines.index_of, lambda *shard: list(lines.rows_of(*shard)))
    for read in reads:
        with pytest.raises(ValueError, match=f"{name} was changed after it was written"):
            read(artifact, name)
    first.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        lines.index_of(artifact, name)


def test_a_line_without_a_page_cannot_be_written(tmp_path):
    with pytest.raises((ValueError, OSError)):
        written(tmp_path / "lines", ("train/part-0.parquet", [row(0, page_id=None)]))


# Copies and what is forgotten


OWNERS = [("train", "a", 0), ("train", "b", 2), ("unlabeled", "c", 1)]  # split, document, row of line 7 there


@pytest.fixture
def copied(tmp_path):
    """Line 7 in three documents, each in a shard of three lines; that of train, document a, is the one to be read."""
    shards, copies = [], []
    for number, (split, document, place) in enumerate(OWNERS):
        rows = [row(100 * number + other, document_id=document) for other in range(3)]
        rows[place] = row(7, document_id=document)
        shard = f"{split}/part-{document}.parquet"
        shards.append((shard, rows))
        copies.append(
            {name: rows[place][name] for name in tombstones.KEY} | {"shard": shard, "place": place, "rank": number}
        )
    return written(
        tmp_path / "lines", *shards, side={"duplicates.parquet": pa.Table.from_pylist(copies, schema=lines.DUPLICATES)}
    )


def owners(artifact) -> list[str]:
    """The documents for which line 7 is read, by every way of reading."""
    identity = row(7)["line_id"]
    found = {name: [] for name in ("index", "images", "groups")}
    for split in ("train", "unlabeled"):
        found["index"] += [
            line["document_id"] for line in lines.index(artifact, split).to_pylist() if line["line_id"] == identity
        ]
        for batch in lines.images(artifact, split):
            found["images"] += [line["document_id"] for line in batch.to_pylist() if line["line_id"] == identity]
        for shard in lines.shards(artifact, split):
            table = lines.index_of(artifact, shard, ["line_id", "document_id"], [0]).to_pylist()
            found["groups"] += [line["document_id"] for line in table if line["line_id"] == identity]
    assert found["index"] == found["images"] == found["groups"]
    return found["index"]


def test_of_the_copies_of_a_line_the_first_in_rank_is_read(copied):
    assert owners(copied) == ["a"]
    assert lines.index(copied, "train").num_rows == 5 and lines.count(copied, "train") == 6


def test_a_copy_whose_document_is_not_forgotten_is_read_instead(copied):
    forget("drawn", "a")
    assert owners(copied) == ["b"] and lines.index(copied, "train").num_rows == 3
    forget("drawn", "b")
    assert owners(copied) == ["c"] and lines.index(copied, "train").num_rows == 0
    forget("drawn")
    assert owners(copied) == [] and lines.index(copied, "unlabeled").num_rows == 0


def test_a_page_or_a_single_line_is_forgotten_without_the_rest(copied):
    identity = row(7)["line_id"]
    forget("drawn", "a", "page-0", identity)
    assert owners(copied) == ["b"] and lines.index(copied, "train").num_rows == 5
    forget("drawn", "c", row(200)["page_id"])
    assert lines.index(copied, "unlabeled").num_rows == 0


# Selections


def test_a_selection_brings_its_weights_and_leaves_the_other_lines(tmp_path):
    artifact = train(tmp_path / "lines", 20, 20)
    identities = [row(number)["line_id"] for number in range(5)]
    selection = chosen(tmp_path / "selection", "train/part-00000.parquet", identities, weight=0.25)
    table = admitted.selected(artifact, selection, "train")
    assert table["line_id"].to_pylist() == sorted(identities)
    assert set(table["weight"].to_pylist()) == {0.25}
    assert {"shard", "group", "row", "text"} <= set(table.column_names)
    assert [admitted.count_selected(artifact, selection, shard) for shard in lines.shards(artifact, "train")] == [5, 0]


def test_a_split_of_which_nothing_is_selected_is_empty(tmp_path):
    artifact = train(tmp_path / "lines", 5)
    selection = chosen(tmp_path / "selection", "train/part-00000.parquet", [row(0)["line_id"]])
    assert admitted.selected(artifact, selection, "val").num_rows == 0


def test_a_selection_made_for_other_lines_is_refused_with_the_mend(tmp_path):
    artifact = train(tmp_path / "lines", 5)
    selection = chosen(tmp_path / "selection", "train/part-00001.parquet", [row(7)["line_id"]])
    with pytest.raises(ValueError, match="run validate and fit again on these lines"):
        admitted.selected(artifact, selection, "train")


# The format before this one: no duplicates.parquet, no retain_until, one selection.parquet


@pytest.fixture
def first_format():
    """(lines, selection): 8, 4, 4 and 12 lines of train, val, test and unlabeled; of the last, a third is not selected."""
    folder = Path(__file__).parent / "data/lines_v1"
    return artifacts.Artifact(folder / "lines"), artifacts.Artifact(folder / "selection")


def test_lines_of_the_first_format_are_read(first_format):
    artifact, _ = first_format
    assert artifact.manifest["format_version"] == 1
    assert [lines.index(artifact, split).num_rows for split in ("train", "val", "test", "unlabeled")] == [8, 4, 4, 12]
    batch = next(lines.images(artifact, "train"))
    assert batch.schema.names == lines.SCHEMA.names and batch["retain_until"].null_count == batch.num_rows
    assert all(lines.line_id(line["image"]) == line["line_id"] for line in batch.to_pylist())


def test_a_selection_of_the_first_format_is_read(first_format):
    table = admitted.selected(*first_format, "unlabeled")
    assert table.num_rows == 8 and set(table["weight"].to_pylist()) == {0.5}
    assert admitted.selected(*first_format, "train").num_rows == 8
    counts = [admitted.count_selected(*first_format, shard) for shard in lines.shards(first_format[0], "unlabeled")]
    assert len(counts) == 3 and sum(counts) == 8


def test_training_reads_the_first_format_as_a_stream(first_format):
    source = batches.Stream(*first_format, "unlabeled", config.load("smoke").data)
    assert len(source) == 8
    drawn = [identity for batch in islice(batches.training(source, batch=4, seed=0), 8) for identity in batch.line_ids]
    assert set(drawn) == set(admitted.selected(*first_format, "unlabeled")["line_id"].to_pylist())


def test_what_is_forgotten_is_hidden_in_the_first_format_too(first_format):
    artifact, _ = first_format
    forget("rendered", "train/document-0")
    assert lines.index(artifact, "train").num_rows == 4
    assert sum(batch.num_rows for batch in lines.images(artifact, "train")) == 4
    assert admitted.selected(*first_format, "train").num_rows == 4


# Images


@pytest.mark.parametrize("format", images.FORMATS)
def test_the_allowed_formats_have_the_size_that_they_decode_to(format):
    image = encoded(np.full((20, 90), 200, np.uint8), format)
    assert images.size(image) == (20, 90) == images.decode(image).shape


@pytest.mark.parametrize("format", ["GIF", "BMP", "PPM", "ICO"])
def test_another_format_is_refused_whatever_its_name(format):
    image = encoded(np.full((20, 90), 200, np.uint8), format)
    for reading in (images.size, images.decode):
        with pytest.raises(ValueError, match="no readable PNG, JPEG, WEBP or TIFF image"):
            reading(image)


@pytest.mark.parametrize("content", [b"", b"This is a text.\n", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"<svg/>"])
def test_what_is_no_image_is_refused_as_such(content):
    with pytest.raises(ValueError, match="no readable"):
        images.size(content)


def claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims a size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(20000, 20000), (10000, 10000), (16385, 40), (100, 1025)])
def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded(monkeypatch, width, height):
    assert len(claiming(width, height)) < 100
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for reading in (images.size, images.decode):
        with pytest.raises(ValueError, match="cut pages into lines first"):
            reading(claiming(width, height))


def test_an_image_of_too_many_bytes_is_refused_unopened():
    with pytest.raises(ValueError, match="more than the"):
        images.size(encoded(np.zeros((20, 90), np.uint8)) + bytes(images.MAX_BYTES))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_every_kind_of_pixel_becomes_gray_with_its_ink_dark(mode):
    gray = np.full((20, 90), 230, np.uint8)
    gray[5:15, 10:80:4] = 20
    if mode == "I;16":
        image = encoded(gray.astype(np.uint16) * 257)
    else:
        buffer = io.BytesIO()
        Image.fromarray(gray).convert("RGB").convert(mode, dither=Image.Dither.NONE).save(buffer, "PNG")
        image = buffer.getvalue()
    pixels = images.decode(image)
    assert pixels.dtype == np.uint8 and pixels.shape == (20, 90)
    assert pixels[gray == 20].max() < 60 and pixels[gray == 230].min() > 200


@pytest.mark.parametrize("hidden", [0, 255])
def test_what_is_transparent_is_paper_whatever_colour_it_hides(hidden):
    pixels = np.full((20, 90, 4), (hidden, hidden, hidden, 0), np.uint8)
    pixels[5:15, 10:20] = (0, 0, 0, 255)
    decoded = images.decode(encoded(pixels))
    assert (decoded[5:15, 10:20] == 0).all() and (decoded[:5] == 255).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(images.FORMATS), st.data())
def test_no_damage_to_an_image_ends_in_anything_but_a_reason(format, data):
    image = bytearray(encoded(np.arange(20 * 90, dtype=np.uint8).reshape(20, 90), format))
    for place in data.draw(st.lists(st.integers(0, len(image) - 1), max_size=6)):
        image[place] = data.draw(st.integers(0, 255))
    damaged = bytes(image[: data.draw(st.integers(0, len(image)))])
    try:
        images.decode(damaged)
    except ValueError as error:
        assert str(error)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(1, 2500),
    st.sampled_from(range(16, 129, 8)),
    st.integers(64, 2048),
)
def test_the_width_known_from_the_header_is_the_width_that_training_sees(own_height, own_width, height, max_width):
    pixels = images.prepare(encoded(np.zeros((own_height, own_width), np.uint8)), height, max_width)
    assert pixels.shape == (height, images.prepared_width(own_height, own_width, height, max_width))
