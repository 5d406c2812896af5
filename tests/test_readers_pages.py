"""PAGE XML, ALTO and the cutting of lines from pages."""

import re
import resource
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pages
import pytest
import rendered
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import put, read_all

from maskocr_core.data import images, readers
from maskocr_core.data.readers import alto, cutting, page_image, page_xml, xml_file
from maskocr_core.data.readers.pages import image_named_by
from maskocr_core.data.readers.units import Unreadable

PAGE_VERSIONS = ("2013-07-15", "2016-07-15", "2017-07-15", "2018-07-15", "2019-07-15")


def likeness(reference: np.ndarray, cut: np.ndarray) -> float:
    """Correlation of the middle of a line's rendering with the cut, at the best place within it."""
    room = cv2.copyMakeBorder(cut, 8, 8, 8, 8, cv2.BORDER_REPLICATE)
    return float(cv2.matchTemplate(room, reference[4:-5, 8:-8], cv2.TM_CCOEFF_NORMED).max())


def stretched(cut: np.ndarray, line: pages.Line) -> np.ndarray:
    """A cut brought to the width of the rendering, from which a bent page differs by some percent."""
    return cv2.resize(cut, (line.image.shape[1], cut.shape[0]), interpolation=cv2.INTER_CUBIC)


def plain(page: np.ndarray, line: pages.Line) -> np.ndarray:
    """What a crop of the bounding box gives."""
    x, y = np.array(line.polygon).T
    return page[max(0, int(y.min())) : int(y.max()) + 1, max(0, int(x.min())) : int(x.max()) + 1]


def cut(page, *geometry, **rest) -> np.ndarray:
    return cutting.cut(page, cutting.trace(page.shape, *geometry, **rest))


# Cutting


def test_a_straight_line_comes_out_pixel_by_pixel():
    page, lines = pages.page()
    for line in lines:
        result = cut(page, line.baseline, line.polygon)
        top = round(35 - cutting.trace(page.shape, line.baseline, line.polygon).above)
        assert np.abs(result.astype(int) - line.image[top : top + len(result)]).max() <= 1


@pytest.mark.parametrize(
    "shape",
    [
        {"angle": 3},
        {"angle": -8},
        {"angle": 30},
        {"angle": 90},
        {"radius": 1200},
        {"radius": -900},
        {"radius": 900, "shade": 80},
    ],
)
def test_a_slanted_or_curved_line_comes_out_nearly_as_it_was_rendered(shape):
    page, lines = pages.page(**shape)
    for line in lines:
        result = cut(page, line.baseline, line.polygon)
        assert likeness(line.image, stretched(result, line) if "radius" in shape else result) > 0.9
        if abs(shape.get("angle", 90)) > 3:
            assert likeness(line.image, cv2.resize(plain(page, line), line.image.shape[::-1])) < 0.5


@pytest.mark.parametrize("shape", [{}, {"angle": 4}, {"radius": -1000}, {"shade": 90}])
def test_slivers_of_the_neighbouring_lines_are_gone(shape):
    page, lines = pages.page(pitch=28, **shape)
    alone, _ = pages.page(pitch=28, only=1, **shape)
    line = lines[1]
    polygon = narrowed(line, above=19, below=3)
    foreign = np.abs(cut(page, line.baseline, polygon).astype(int) - cut(alone, line.baseline, polygon))
    in_plain_crop = np.abs(plain(page, line).astype(int) - plain(alone, line))
    assert (foreign > 32).mean() < 0.01 < 0.05 < (in_plain_crop > 32).mean()


def narrowed(line, above, below):
    """A polygon that follows the line closely."""
    points = np.array(line.baseline)
    tangents = np.gradient(points, axis=0)
    normals = np.column_stack([-tangents[:, 1], tangents[:, 0]]) / np.linalg.norm(tangents, axis=1, keepdims=True)
    return [tuple(point) for point in (*(points - above * normals), *(points + below * normals)[::-1])]


def test_what_is_masked_takes_the_brightness_of_the_paper_beside_it():
    page, lines = pages.page(pitch=38, shade=120, lines=3)
    result = cut(page, lines[1].baseline, narrowed(lines[1], 27, 8))
    left, right = np.median(result[:, :40]), np.median(result[:, -40:])
    assert abs(float(result[0, 5]) - left) < 12 and abs(float(result[0, -5]) - right) < 12 and left - right > 40


def test_a_baseline_that_stops_short_of_its_letters_is_continued():
    page, lines = pages.page(angle=5)
    line = lines[1]
    assert likeness(line.image, cut(page, line.baseline[1:-1], line.polygon)) > 0.97


def test_a_baseline_written_from_right_to_left_gives_the_same_line():
    page, lines = pages.page(radius=1500)
    forth = cut(page, lines[0].baseline, lines[0].polygon)
    back = cut(page, lines[0].baseline[::-1], lines[0].polygon)
    assert abs(forth.shape[1] - back.shape[1]) <= 1 and likeness(forth, back) > 0.97


def test_one_spike_of_a_polygon_does_not_shrink_the_line():
    page, lines = pages.page()
    line = lines[2]
    spiked = [*line.polygon]
    x, y = spiked[3]
    spiked[3:4] = [(x - 2, y), (x, y - 70), (x + 2, y)]
    assert abs(len(cut(page, line.baseline, spiked)) - len(cut(page, line.baseline, line.polygon))) <= 2


def test_without_polygon_a_band_about_the_baseline_is_cut():
    page, lines = pages.page(angle=6)
    assert likeness(lines[1].image[4:40], cut(page, lines[1].baseline, None, None, spacing=48)) > 0.95


def test_without_baseline_the_box_of_the_polygon_is_cut_straight():
    page, lines = pages.page()
    for geometry in ((None, lines[1].polygon), (None, None, (40, 80, 657, 124))):
        assert likeness(lines[1].image[2:46], cut(page, *geometry)) > 0.97


def test_a_box_about_a_slanted_baseline_is_no_taller_than_its_text():
    page, lines = pages.page(angle=4)
    x, y = np.array(lines[1].polygon).T
    result = cut(page, lines[1].baseline, None, (x.min(), y.min(), x.max(), y.max()))
    assert result.shape[0] < 70 < np.ptp(y) and likeness(lines[1].image[4:40], result) > 0.9


def test_a_large_scan_gives_lines_of_at_most_128_px():
    page, lines = pages.page(size=150, pitch=260, lines=2, width=3000)
    result = cut(page, lines[0].baseline, lines[0].polygon)
    assert result.shape[0] == 128 and abs(result.shape[1] / 128 - 2920 / 221) < 1


@pytest.mark.parametrize(
    ("baseline", "polygon", "box", "reason"),
    [
        (None, None, None, "neither baseline nor polygon nor box"),
        ([(10, 10)], None, None, "baseline has 1 different points"),
        ([(10, 10), (10, 10)], None, None, "baseline has 1 different points"),
        ([(10, 10), (10.2, 10)], None, None, "no length"),
        ([(10, 10), (float("nan"), 10)], None, None, "no px of a page"),
        ([(10, 10), (float("inf"), 10)], None, None, "no px of a page"),
        ([(10, 10), (1e9, 10)], None, None, "no px of a page"),
        ([(5000, 10), (6000, 10)], None, None, "outside of the page"),
        ([(10, -900), (200, -900)], None, None, "outside of the page"),
        (None, [(10, 10), (20, 10)], None, "polygon has 2 different points"),
        (None, [(10, 10), (400, 10), (200, 10)], None, "too small to be read"),
        (None, None, (10, 10, 5000, 30), "box lies outside"),
        (None, None, (10, 10, 11, 12), "too small"),
        ([(10, 10), (900, 250)] * 400, None, None, "four times round the page"),
        ([(40, 40), (600, 40)], [(40, 200), (600, 200), (600, 240), (40, 240)], None, ""),
    ],
)
def test_geometry_that_is_none_is_refused_in_a_sentence(baseline, polygon, box, reason):
    page, _ = pages.page()
    try:
        result = cut(page, baseline, polygon, box)
    except Unreadable as error:
        assert reason and reason in str(error)
    else:
        assert not reason and result.size


NUMBERS = st.one_of(st.integers(-50, 1100), st.floats(-50, 1100), st.floats(), st.sampled_from([0.0, 1e12, -1e-12]))
POINTS = st.none() | st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12)


@settings(max_examples=300, deadline=None)
@given(POINTS, POINTS, st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS))
def test_any_geometry_gives_a_line_or_a_sentence(baseline, polygon, box):
    page = np.full((300, 1000), 255, np.uint8)
    try:
        result = cut(page, baseline, polygon, box)
    except Unreadable as error:
        assert str(error)
    else:
        assert result.dtype == np.uint8 and 0 < result.shape[0] <= 128 and result.shape[1] <= images.MAX_WIDTH


# Files


def book(root, form=pages.page_xml, name="book/0001", page_image_suffix="png", **changes):
    page, lines = pages.page(angle=2, lines=3)
    content = rendered.png(page)
    if page_image_suffix == "jpg":
        content = cv2.imencode(".jpg", page, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    put(root, f"{name}.{page_image_suffix}", content)
    put(root, f"{name}.xml", form(page, lines, **changes))
    return page, lines


@pytest.mark.parametrize(
    ("form", "version"),
    [*((pages.page_xml, version) for version in PAGE_VERSIONS), *((pages.alto, version) for version in (2, 3, 4))],
)
def test_the_lines_of_a_page_file_are_cut_and_have_their_texts(tmp_path, form, version):
    _, lines = book(tmp_path / "yours", form, version=version)
    rows, refused = read_all(tmp_path / "yours")
    assert not refused
    assert [row["text"] for row in rows] == [line.text for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert (row["document_id"], row["page_id"], row["source"], row["split"]) == ("book", "book/0001", "yours", None)
        # Before version 4 an ALTO baseline is one height, and the line comes out as slanted as it is.
        if form is pages.page_xml or version == 4:
            assert likeness(line.image, images.decode(row["image"])) > 0.95


def test_two_reads_give_the_same_bytes(tmp_path):
    book(tmp_path)
    first, second = read_all(tmp_path)[0], read_all(tmp_path)[0]
    assert [row["image"] for row in first] == [row["image"] for row in second] and len(first) == 3


@pytest.mark.parametrize("texts", ["none", "empty"])
def test_a_line_without_text_is_unlabelled(tmp_path, texts):
    page, lines = book(tmp_path)
    content = pages.page_xml(page, lines, texts=texts != "none")
    for line in lines:
        content = content.replace(line.text, " ")
    put(tmp_path, "book/0001.xml", content)
    assert [row["text"] for row in read_all(tmp_path)[0]] == [None] * 3


def test_of_several_readings_the_first_by_index_is_taken_and_that_of_words_is_not(tmp_path):
    page, lines = book(tmp_path)
    content = pages.page_xml(page, lines[:1]).replace(
        "<TextEquiv>",
        '<Word id="w"><Coords points="1,1 2,2 3,3"/><TextEquiv><Unicode>word</Unicode></TextEquiv></Word>'
        '<TextEquiv index="1"><Unicode>second</Unicode></TextEquiv><TextEquiv index="0">',
    )
    put(tmp_path, "book/0001.xml", content)
    assert [row["text"] for row in read_all(tmp_path)[0]] == [lines[0].text]


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        ('<String CONTENT="Was"/><SP/><String CONTENT="ist"/>', "Was ist"),
        ('<String CONTENT="Was"/><String CONTENT="ist"/>', "Was ist"),
        ('<String CONTENT="Wa"/><String CONTENT="s"/><SP/><String CONTENT="ist"/>', "Was ist"),
        ('<String CONTENT="Wasser" SUBS_CONTENT="Wasserfall"/><HYP CONTENT="\u00ad"/>', "Wasser-"),
        ('<String CONTENT="Wasser"/><HYP CONTENT="\u2e17"/>', "Wasser\u2e17"),
        ('<String CONTENT="A &amp; B"/>', "A & B"),
        ("", None),
    ],
)
def test_the_text_of_an_alto_line_is_what_its_image_shows(inside, text):
    content = (
        '<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Layout><Page WIDTH="9" HEIGHT="9">'
        f'<TextLine ID="l" HPOS="1" VPOS="1" WIDTH="5" HEIGHT="5">{inside}</TextLine></Page></Layout></alto>'
    )
    (line,) = alto.layout(xml_file.parse(content.encode())).lines
    assert line.text == text and line.box == (1, 1, 6, 6)


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ({"a/0001.xml": "", "a/0001.jpg": ""}, 3),
        ({"a/page/0001.xml": "", "a/0001.jpg": ""}, 3),
        ({"a/0001.alto.xml": "", "a/0001.jpg": ""}, 3),
        ({"a/0001.xml": "0001.bin.png", "a/0001.bin.png": ""}, 3),
        ({"a/x.xml": "scan 17.jpg", "a/scan 17.jpg": "", "a/scan 18.jpg": None}, 3),
        ({"a/xml2/x.xml": "../scans/17.jpg", "a/scans/17.jpg": ""}, 3),
        ({"a/x.xml": "C:\\scans\\17.jpg", "a/17.jpg": ""}, 3),
        ({"a/x.xml": "../../../b/17.jpg", "b/17.jpg": ""}, 0),
        ({"a/0001.xml": "", "b/0001.jpg": ""}, 0),
    ],
)
def test_the_image_of_a_page_is_found_by_stem_or_by_the_name_that_the_file_gives(tmp_path, layout, rows):
    page, lines = pages.page(lines=3)
    for name, named in layout.items():
        if name.endswith(".xml"):
            put(tmp_path, f"root/{name}", pages.page_xml(page, lines, name=named or "elsewhere.tif"))
        elif named is None:
            put(tmp_path, f"root/{name}", rendered.png(np.zeros((20, 30), np.uint8)))
        else:
            put(tmp_path, f"root/{name}", rendered.png(page))
    found, refused = read_all(tmp_path / "root")
    assert sum(row["text"] is not None for row in found) == rows
    if not rows:
        assert sum("put it beside" in reason for reason in refused.values()) == 3


def test_an_image_outside_of_the_root_is_never_followed(tmp_path):
    page, lines = pages.page(lines=1)
    secret = put(tmp_path, "secret/0001.png", rendered.png(page))
    for number, name in enumerate([str(secret), "../secret/0001.png", secret.as_uri(), "http://127.0.0.1:9/1.png"]):
        put(tmp_path, f"root/a/x{number}.xml", pages.page_xml(page, lines, name=name))
    rows, refused = read_all(tmp_path / "root")
    assert not rows and len(refused) == 4


def test_of_page_and_alto_files_about_one_page_only_one_is_read(tmp_path):
    page, lines = pages.page(lines=2)
    put(tmp_path, "a/0001.png", rendered.png(page))
    put(tmp_path, "a/page/0001.xml", pages.page_xml(page, lines))
    put(tmp_path, "a/alto/0001.xml", pages.alto(page, lines))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 2 and rows[0]["page_id"] == "a/page/0001"
    assert refused == {"a/alto/0001.xml": "is about the same page as a/page/0001.xml, which is read"}


def test_the_text_of_a_whole_page_beside_its_page_file_is_no_transcription_of_a_line(tmp_path):
    book(tmp_path)
    put(tmp_path, "book/0001.txt", "the whole\npage")
    rows, refused = read_all(tmp_path)
    assert len(rows) == 3 and not refused


def test_a_side_file_beside_a_line_image_leaves_the_line_as_it_is(tmp_path):
    put(tmp_path, "a/1.png", rendered.png(np.zeros((20, 90), np.uint8)))
    put(tmp_path, "a/1.gt.txt", "Text.")
    put(tmp_path, "a/1.xml", "<mets/>")
    rows, refused = read_all(tmp_path)
    assert [row["text"] for row in rows] == ["Text."]
    assert refused == {"a/1.xml": "is neither PAGE XML nor ALTO; taken for a side file"}


def test_coordinates_for_another_size_of_the_same_image_are_scaled(tmp_path):
    page, lines = book(tmp_path)
    half = cv2.resize(page, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    put(tmp_path, "book/0001.png", rendered.png(half))
    rows, _ = read_all(tmp_path)
    assert len(rows) == 3 and 20 <= rows[0]["height"] <= 26
    assert (
        likeness(stretched(lines[0].image[::2], lines[0]), stretched(images.decode(rows[0]["image"]), lines[0])) > 0.8
    )


@pytest.mark.parametrize(("unit", "px"), [("mm10", 254 / 300), ("inch1200", 1200 / 300)])
def test_alto_in_lengths_is_cut_where_alto_in_pixels_is(tmp_path, unit, px):
    """Of a page scanned at 300 dpi: how long a px is, is said by the image alone."""
    page, lines = pages.page(lines=3)
    in_pixels = pages.alto(page, lines)

    def measured(found):
        return found[1] + " ".join(f"{float(each) * px:.2f}" for each in found[2].split()) + '"'

    lengths = re.sub(r'((?:HPOS|VPOS|WIDTH|HEIGHT|POINTS|BASELINE)=")([^"]*)"', measured, in_pixels)
    for name, content in (("pixels", in_pixels), ("lengths", lengths.replace(">pixel<", f">{unit}<"))):
        put(tmp_path / name, "book/0001.png", rendered.png(page))
        put(tmp_path / name, "book/0001.xml", content)
    (ours, _), (theirs, refused) = (read_all(tmp_path / name) for name in ("pixels", "lengths"))
    assert not refused and [row["text"] for row in theirs] == [row["text"] for row in ours]
    for one, other in zip(ours, theirs):
        assert abs(one["width"] - other["width"]) <= 2 and abs(one["height"] - other["height"]) <= 2
        images_ = [cv2.resize(images.decode(row["image"]), (600, 60)) for row in (one, other)]
        assert likeness(*images_) > 0.9


def refusals_of_lines(tmp_path):
    rows, refused = read_all(tmp_path)
    assert not rows
    assert set(refused) == {"book/0001.xml#l0", "book/0001.xml#l1", "book/0001.xml#l2"}
    (reason,) = set(refused.values())
    return reason


def test_an_image_of_other_proportions_refuses_the_lines_of_its_page(tmp_path):
    book(tmp_path, size=(1000, 3000))
    assert "bring the image that the page file was made from" in refusals_of_lines(tmp_path)


def test_a_missing_broken_or_huge_image_refuses_every_line_of_its_page(tmp_path):
    book(tmp_path)
    path = tmp_path / "book/0001.png"
    whole = path.read_bytes()
    path.unlink()
    assert "named '0001.png' is not there" in refusals_of_lines(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "is a broken PNG image" in refusals_of_lines(tmp_path)
    path.write_bytes(b"no image")
    assert "is no readable PNG, JPEG, WEBP, TIFF image" in refusals_of_lines(tmp_path)


@pytest.mark.parametrize("size", [(13_000, 13_000), (40_000, 40_000), (1, 200_000_000)])
def test_a_page_of_too_many_pixels_is_refused_by_its_header(size):
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    content = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I4s", 0, b"IDAT")
        + b"\x35\xaf\x06\x1e"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unreadable, match="150,000,000"):
        page_image.decode(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_grey_page_of_each_format_is_decoded_to_the_same(tmp_path):
    page, _ = pages.page(lines=1)
    for suffix in (".png", ".tif", ".webp", ".jpg"):
        options = {".webp": [cv2.IMWRITE_WEBP_QUALITY, 101], ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 100]}.get(suffix, [])
        found = page_image.decode(cv2.imencode(suffix, page, options)[1].tobytes())
        assert np.abs(found.astype(int) - page).max() <= 6, suffix


def test_a_broken_line_is_refused_by_its_name_and_its_neighbours_are_read(tmp_path):
    page, lines = book(tmp_path)
    content = pages.page_xml(page, lines)
    first = f'points="{lines[1].baseline[0][0]:.1f}'
    put(tmp_path, "book/0001.xml", content.replace(first, first.replace('points="', 'points="x')))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 2 and list(refused) == ["book/0001.xml#l1"] and "are no numbers" in refused["book/0001.xml#l1"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "<PcGts xmlns='http://schema.primaresearch.org/PAGE/gts/pagecontent/2010-03-19'/>",
            "2013-07-15 to 2019-07-15 are read",
        ),
        ("<PcGts xmlns='http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15'/>", "without a Page"),
        ("<alto xmlns='http://schema.ccs-gmbh.com/ALTO'/>", "versions 2, 3 and 4 are read"),
        (
            "<alto xmlns='http://www.loc.gov/standards/alto/ns-v4#'><Description><MeasurementUnit>ell</MeasurementUnit></Description></alto>",
            "MeasurementUnit pixel, mm10, inch1200",
        ),
        (
            "<alto xmlns='http://www.loc.gov/standards/alto/ns-v4#'><Description><MeasurementUnit>mm10</MeasurementUnit></Description><Page/></alto>",
            "measures in mm10 and gives its page no WIDTH and HEIGHT",
        ),
        ("<alto xmlns='http://www.loc.gov/standards/alto/ns-v4#'/>", "has 0 pages"),
        ("<alto xmlns='http://www.loc.gov/standards/alto/ns-v4#'><Page/></alto>", "has no TextLine"),
        ("<html/>", "neither PAGE XML nor ALTO"),
        ("<PcGts", "is no readable XML"),
        ("", "is no readable XML"),
        ("\x00\x01", "is no readable XML"),
        ('<?xml version="1.0" encoding="x-unknown"?><a/>', "is no readable XML"),
    ],
)
def test_a_page_file_that_is_not_read_says_which_are(tmp_path, content, reason):
    put(tmp_path, "a/1.png", rendered.png(np.zeros((20, 90), np.uint8)))
    put(tmp_path, "b/1.xml", content)
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and reason in refused["b/1.xml"]


# Hostile files

LAUGHS = (
    "<!DOCTYPE a [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
    + "]><a>&a9;</a>"
)
ATTACKS = {
    "billion laughs": LAUGHS,
    "quadratic blow-up": f"<!DOCTYPE a [<!ENTITY x '{'y' * 50_000}'>]><a>{'&x;' * 50_000}</a>",
    "external entity": "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
    "parameter entity": "<!DOCTYPE a [<!ENTITY % x SYSTEM 'http://127.0.0.1:9/x.dtd'> %x;]><a/>",
    "external DTD": "<!DOCTYPE a SYSTEM 'http://127.0.0.1:9/x.dtd'><a/>",
    "plain DTD": "<!DOCTYPE a><a/>",
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_entities_are_refused(attack, encoding):
    with pytest.raises(Unreadable, match="has a document type or entities"):
        xml_file.parse(ATTACKS[attack].encode(encoding))
    assert image_named_by(ATTACKS[attack].encode(encoding)) == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<a>" + b"<b/>" * 1_001 + b"</a>", "more than 1,000 elements"),
        (b"<a>" * 101, "more than 100 in one another"),
        (b" " * ((32 << 20) + 1), "at most 33,554,432"),
    ],
)
def test_too_large_or_too_deep_xml_is_refused(monkeypatch, content, reason):
    monkeypatch.setattr(xml_file, "MAX_ELEMENTS", 1_000)
    with pytest.raises(Unreadable, match=reason):
        xml_file.parse(content)


def test_endless_coordinates_are_refused():
    with pytest.raises(Unreadable, match="characters"):
        xml_file.points("1,1 " * 1_000_000)
    with pytest.raises(Unreadable, match="at most 10,000 points"):
        xml_file.points("1,1 " * 10_001)


def test_lines_that_cover_their_page_over_and_over_are_refused_at_last(tmp_path):
    page = np.full((300, 400), 255, np.uint8)
    whole = pages.Line(page, "x", [], [(0, 0), (400, 0), (400, 300), (0, 300)])
    put(tmp_path, "a/0001.png", rendered.png(page))
    put(tmp_path, "a/0001.xml", pages.page_xml(page, [whole] * 60, baselines=False))
    rows, refused = read_all(tmp_path)
    assert len(rows) == 20 and len({reason for reason in refused.values()}) == 1


def test_a_large_page_is_decoded_once_and_leaves_nothing_behind(tmp_path):
    page = np.full((6000, 6000), 255, np.uint8)
    small, lines = pages.page(lines=4)
    page[: small.shape[0], : small.shape[1]] = small
    for number in range(3):
        put(tmp_path, f"a/{number}.png", cv2.imencode(".png", page)[1].tobytes())
        put(tmp_path, f"a/{number}.xml", pages.page_xml(page, lines))
    code = (
        "import resource, sys\nfrom maskocr_core import config\nfrom maskocr_core.data import readers\n"
        "data = config.load('smoke').data\nunits = readers.plan(sys.argv[1], data)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = sum(1 for unit in units for row in readers.read(unit, data) if not isinstance(row, readers.Refused))\n"
        "print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == 12 and grown < 36 * 4, f"{grown} MiB for pages of 36 MB"


# Anything at all

NUMBERS_AND_JUNK = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20),
    st.sampled_from(["1,2 3,4 5,6", "nan,1 2,3", "1 2", "-1,-1", "1e400,0 1,1", "7"]),
)
STRUCTURES = {
    "page": (
        f"{{http://schema.primaresearch.org/PAGE/gts/pagecontent/{PAGE_VERSIONS[-1]}}}",
        "PcGts",
        ["Page", "TextRegion", "TextLine", "Coords", "Baseline", "TextEquiv", "Unicode", "Word"],
        ["id", "points", "index", "imageFilename", "imageWidth", "imageHeight"],
    ),
    "alto": (
        "{http://www.loc.gov/standards/alto/ns-v4#}",
        "alto",
        ["Layout", "Page", "TextLine", "String", "SP", "HYP", "Shape", "Polygon", "Description", "MeasurementUnit"],
        ["ID", "HPOS", "VPOS", "WIDTH", "HEIGHT", "BASELINE", "POINTS", "CONTENT"],
    ),
}


def trees(namespace, tags, attributes):
    def element(tag, attributes, text, children):
        made = ElementTree.Element(namespace + tag, attributes)
        made.text = text.replace("\ufffe", "").replace("\uffff", "")
        made.extend(children)
        return made

    junk = NUMBERS_AND_JUNK.map(lambda text: text.replace("\ufffe", "").replace("\uffff", ""))
    given_ones = st.dictionaries(st.sampled_from(attributes), junk)
    leaves = st.builds(element, st.sampled_from(tags), given_ones, junk, st.just([]))
    return st.recursive(
        leaves,
        lambda inner: st.builds(element, st.sampled_from(tags), given_ones, junk, st.lists(inner, max_size=4)),
        max_leaves=12,
    )


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(sorted(STRUCTURES)))
def test_any_structure_of_their_elements_gives_lines_or_sentences(drawn, form):
    namespace, root, tags, attributes = STRUCTURES[form]
    made = ElementTree.Element(namespace + root)
    made.extend(drawn.draw(st.lists(trees(namespace, tags, attributes), min_size=1, max_size=3)))
    try:
        layout = {"page": page_xml, "alto": alto}[form].layout(xml_file.parse(ElementTree.tostring(made)))
    except Unreadable as error:
        assert str(error)
    else:
        assert all(line.reason if isinstance(line, readers.Refused) else line.name for line in layout.lines)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 2**31), st.integers(0, 9))
def test_flipped_truncated_or_random_page_files_never_end_a_run(tmp_path_factory, junk, place, cuts):
    root = tmp_path_factory.mktemp("junk")
    page, lines = pages.page(lines=1, width=300)
    content = bytearray(pages.page_xml(page, lines).encode())
    content[place % len(content)] ^= 1 << cuts % 8
    put(root, "a/0001.png", rendered.png(page))
    put(root, "a/0001.xml", bytes(content))
    put(root, "a/0002.xml", bytes(content[: place % len(content)]))
    put(root, "a/0003.xml", junk)
    rows, refused = read_all(root)
    assert len(rows) + len(refused) >= 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 7), st.booleans())
def test_flipped_or_truncated_page_images_never_end_a_run(place, bit, truncated):
    page, _ = pages.page(lines=1, width=300)
    content = bytearray(rendered.png(page))
    content[place % len(content)] ^= 1 << bit
    try:
        assert page_image.decode(bytes(content[: place % len(content)] if truncated else content)).dtype == np.uint8
    except Unreadable as error:
        assert str(error)
