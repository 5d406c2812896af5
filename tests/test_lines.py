import hashlib
import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskocr_core import artifacts
from maskocr_core.data import images, lines


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


def written(folder, count: int, shard_lines: int = 4096, split: str = "train") -> artifacts.Artifact:
    writer = lines.ShardWriter(folder, split, shard_lines)
    for number in range(count):
        writer.add(row(number))
    writer.flush()
    return artifacts.finish(folder, kind="lines", config={}, metrics={})


def chosen(folder, identities: list[str], split: str = "train", weight: float = 0.5) -> artifacts.Artifact:
    rows = [{"line_id": identity, "split": split, "weight": weight} for identity in identities]
    lines.write(pa.Table.from_pylist(rows, schema=lines.SELECTION), folder / "selection.parquet")
    return artifacts.finish(folder, kind="selection", config={}, metrics={})


def test_a_row_group_has_512_rows(tmp_path):
    artifact = written(tmp_path / "lines", 1100)
    metadata = pq.read_metadata(tmp_path / "lines/train/part-00000.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [512, 512, 76]
    assert artifact.manifest["files"][0]["rows"] == 1100


def test_a_shard_has_no_more_lines_than_were_asked_for(tmp_path):
    artifact = written(tmp_path / "lines", 25, shard_lines=10)
    assert [entry["rows"] for entry in artifact.manifest["files"]] == [10, 10, 5]
    assert lines.index(artifact, "train").num_rows == 25


def test_a_split_without_lines_leaves_no_shard_and_an_empty_index(tmp_path):
    artifact = written(tmp_path / "lines", 3)
    empty = lines.index(artifact, "val")
    assert artifact.names("val/") == [] and empty.num_rows == 0
    assert empty.schema == lines.index(artifact, "train").schema


def test_the_index_leads_to_every_image(tmp_path):
    artifact = written(tmp_path / "lines", 600, shard_lines=550)
    table = lines.index(artifact, "train")
    assert "image" not in table.column_names and len(set(table["line_id"].to_pylist())) == 600
    for place in table.take([0, 511, 512, 549, 550, 599]).to_pylist():
        group = lines.open_parquet(artifact, place["shard"]).read_row_group(place["group"])
        assert lines.line_id(group["image"][place["row"]].as_py()) == place["line_id"]


def test_the_index_and_the_stream_of_images_have_one_order(tmp_path):
    artifact = written(tmp_path / "lines", 150, shard_lines=70)
    streamed = [identity for batch in lines.images(artifact, "train") for identity in batch["line_id"].to_pylist()]
    assert streamed == lines.index(artifact, "train")["line_id"].to_pylist()


def test_images_come_in_the_order_that_they_are_asked_for(tmp_path):
    artifact = written(tmp_path / "lines", 100)
    wanted = [row(number)["line_id"] for number in (70, 3, 99)]
    assert [lines.line_id(image) for image in lines.images_of(artifact, "train", wanted)] == wanted


def test_neighbours_of_a_page_are_not_left_side_by_side(tmp_path):
    order = lines.index(written(tmp_path / "lines", 100), "train")["order"].to_pylist()
    assert sorted(order) == list(range(100))
    assert sum(after == before + 1 for before, after in zip(order, order[1:], strict=False)) < 10


def test_a_flipped_byte_in_a_shard_is_noticed_wherever_its_images_are_read(tmp_path):
    artifact = written(tmp_path / "lines", 64)
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


def test_a_selection_brings_its_weights_and_leaves_the_other_lines(tmp_path):
    artifact = written(tmp_path / "lines", 20)
    identities = [row(number)["line_id"] for number in range(5)]
    table = lines.selected(artifact, chosen(tmp_path / "selection", identities, weight=0.25), "train")
    assert table["line_id"].to_pylist() == sorted(identities)
    assert set(table["weight"].to_pylist()) == {0.25}
    assert {"shard", "group", "row", "text"} <= set(table.column_names)


def test_a_selection_of_another_split_selects_nothing_here(tmp_path):
    artifact = written(tmp_path / "lines", 5)
    selection = chosen(tmp_path / "selection", [row(0)["line_id"]], split="val")
    assert lines.selected(artifact, selection, "train").num_rows == 0


def test_a_selection_made_for_other_lines_is_refused_with_the_mend(tmp_path):
    artifact = written(tmp_path / "lines", 5)
    selection = chosen(tmp_path / "selection", [row(0)["line_id"], row(7)["line_id"]])
    with pytest.raises(ValueError, match="run validate and fit again on these lines"):
        lines.selected(artifact, selection, "train")


def test_a_line_without_a_page_cannot_be_written(tmp_path):
    writer = lines.ShardWriter(tmp_path / "lines", "train", 10)
    writer.add(row(0, page_id=None))
    with pytest.raises((ValueError, OSError)):
        writer.flush()


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
