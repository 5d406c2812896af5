"""Archives: what is in them is read as from a folder, and what attacks is refused."""

import gzip
import io
import os
import shutil
import struct
import tarfile
import zipfile

import pages
import pytest
import rendered
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import DATA, data, line, put, read_all

from maskocr_core.data import readers

KINDS = {"zip": "zip", "tar": "tar", "gztar": "tar.gz"}


@pytest.fixture(scope="module")
def yours(tmp_path_factory):
    """A folder of every form."""
    root = tmp_path_factory.mktemp("forms") / "yours"
    rendered.documents(root, documents=3, lines=2)
    page, lines = pages.page(lines=2)
    put(root, "book/0001.png", rendered.png(page))
    put(root, "book/page/0001.xml", pages.page_xml(page, lines))
    put(root, "book/page/other.xml", pages.page_xml(page, lines, name="named.png"))
    put(root, "book/named.png", rendered.png(255 - page))
    rendered.parquet(root / "tables/a.parquet", rendered.rows(documents=2, lines=2, seed=4))
    put(root, "alone.gt.txt", "alone")
    return root


def without_source(rows):
    return sorted(
        (row["line_id"], row["page_id"], row["document_id"], row["text"] or "", row["split"] or "") for row in rows
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_gives_what_its_folder_gives(yours, tmp_path, kind):
    archive = shutil.make_archive(str(tmp_path / "yours"), kind, yours)
    rows, refused = read_all(archive)
    expected, refusals = read_all(yours)
    assert len(rows) == 14 and without_source(rows) == without_source(expected)
    assert {row["source"] for row in rows} == {row["source"] for row in expected} == {"yours", "rendered"}
    assert refused == refusals


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_in_a_folder_is_a_folder_of_its_name(yours, tmp_path, kind):
    shutil.make_archive(str(tmp_path / "root/box"), kind, yours)
    put(tmp_path, "root/other/1.png", line())
    rows, _ = read_all(tmp_path / "root")
    shutil.copytree(yours, tmp_path / "plain/root/box")
    put(tmp_path, "plain/root/other/1.png", line())
    assert without_source(rows) == without_source(read_all(tmp_path / "plain/root")[0])
    assert {row["document_id"] for row in rows if row["source"] == "root"} == {"box", "other"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_units_of_an_archive_are_read_apart(yours, tmp_path, kind):
    archive = shutil.make_archive(str(tmp_path / "yours"), kind, yours)
    small = data(shard_lines=2)
    units = readers.plan(archive, small)
    assert len(units) > 4 and len({unit.name for unit in units}) == len(units)
    rows = [row for unit in reversed(units) for row in readers.read(unit, small)]
    assert len([row for row in rows if isinstance(row, dict)]) == 14


def test_a_zip_that_grows_keeps_the_units_of_its_members(tmp_path):
    def pack(documents):
        path = tmp_path / "yours.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for document in range(documents):
                for number in range(4):
                    archive.writestr(f"d{document:03}/{number}.png", line(document * 4 + number))
        return {unit.name for unit in readers.plan(str(path), data(shard_lines=12))}

    before, after = pack(60), pack(61)
    assert len(before) > 20 and len(before - after) <= 2


# Attacks


def a_tar(path, *members, mode="w"):
    """A tar of one good line and the given TarInfo members, with their content."""
    with tarfile.open(path, mode) as archive:
        for info, content in [(tarfile.TarInfo("good/1.png"), line()), *members]:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def typed(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (tarfile.TarInfo("../../out.png"), "leads out of the archive"),
        (tarfile.TarInfo("/etc/out.png"), "leads out of the archive"),
        (tarfile.TarInfo("a/../../out.png"), "leads out of the archive"),
        (tarfile.TarInfo("C:\\out.png"), "leads out of the archive"),
        (tarfile.TarInfo("..\\out.png"), "leads out of the archive"),
        (typed("a.png", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (typed("a.png", tarfile.LNKTYPE, "good/1.png"), "a link"),
        (typed("a.png", tarfile.CHRTYPE), "a link, a device"),
        (typed("a.png", tarfile.FIFOTYPE), "a link, a device"),
        (tarfile.TarInfo("inner.zip"), "an archive in an archive"),
        (tarfile.TarInfo("inner.tar.gz"), "an archive in an archive"),
        (tarfile.TarInfo("good/1.png"), "comes twice"),
        (tarfile.TarInfo("a\nb.png"), "control characters"),
    ],
)
def test_members_of_a_tar_that_attack_are_refused_and_the_good_one_is_read(tmp_path, mode, info, reason):
    path = a_tar(tmp_path / f"a{'.tar' if mode == 'w' else '.tgz'}", (info, line(2)), mode=mode)
    rows, refused = read_all(path)
    assert len(rows) == 1 and len(refused) == 1 and reason in next(iter(refused.values()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../out.png", "leads out"),
        ("/out.png", "leads out"),
        ("a\\..\\..\\out.png", "leads out"),
        ("in.zip", "an archive in an archive"),
    ],
)
def test_members_of_a_zip_that_attack_are_refused_and_the_good_one_is_read(tmp_path, name, reason):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good/1.png", line())
        archive.writestr(name, line(2))
    rows, refused = read_all(path)
    assert len(rows) == 1 and reason in next(iter(refused.values()))


def test_a_link_an_encrypted_and_a_strangely_packed_member_of_a_zip_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good/1.png", line())
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bz.png", line(3), zipfile.ZIP_BZIP2)
        archive.writestr("secret.png", line(4))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rfind(signature) + offset] |= 1
    path.write_bytes(content)
    rows, refused = read_all(path)
    assert len(rows) == 1
    assert {item.rpartition("/")[2]: reason.partition(":")[0] for item, reason in refused.items()} == {
        "link.png": "is a link or a device; only plain files are read",
        "bz.png": "is packed by a method other than deflate",
        "secret.png": "is encrypted",
    }


def test_a_member_that_expands_beyond_reason_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good/1.png", line())
        archive.writestr("bomb.png", bytes(30 << 20))
        archive.writestr("bomb.xml", b"<a>" + b" " * (30 << 20) + b"</a>")
        archive.writestr("large.png", os.urandom(9 << 20))
    rows, refused = read_all(path)
    assert len(rows) == 1 and len(refused) == 3
    assert (
        "expands more than 200 times" in refused["a.zip/bomb.png"] and "more than the 8,388,608" in refused["large.png"]
    )


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """As the zip bomb without recursion does: many entries of the directory over one stream."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", line(1))
        archive.writestr("2.png", line(2))
        archive.filelist[0].compress_size += 500
        archive.filelist[0].file_size += 500
    rows, refused = read_all(path)
    assert len(rows) == 1 and "shares its bytes" in refused["a.zip/1.png"]


def test_a_gzip_bomb_is_left_after_two_hundred_times_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("maskocr_core.data.readers.archives.FREE_BYTES", 1 << 20)
    info = tarfile.TarInfo("bomb.png")
    path = a_tar(tmp_path / "a.tar.gz", (info, bytes(60 << 20)), (tarfile.TarInfo("behind.png"), line(2)), mode="w:gz")
    rows, refused = read_all(path)
    assert len(rows) == 1 and refused == {"a.tar.gz": "is broken after 1 members: expands more than 200 times"}


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_claims_a_gigabyte_allocates_none(tmp_path, packed):
    """The record of a long name is read whole by whoever lists a tar."""
    good = a_tar(tmp_path / "good.tar").read_bytes()[:1024]
    record = tarfile.TarInfo("././@LongLink")
    record.type, record.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    content = good + record.tobuf(tarfile.GNU_FORMAT) + bytes(3 << 20)
    (tmp_path / "good.tar").unlink()
    (tmp_path / ("a.tgz" if packed else "a.tar")).write_bytes(gzip.compress(content) if packed else content)
    rows, refused = read_all(tmp_path)
    assert len(rows) == 1 and "header of more than 1,048,576 bytes" in next(iter(refused.values()))


def test_a_zip_directory_that_lies_is_refused(tmp_path):
    path = tmp_path / "root/a.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", line())
    whole = path.read_bytes()
    put(tmp_path, "root/b/1.png", line(2))
    end = whole.rfind(b"PK\x05\x06")
    for offset, value in ((12, 0xFFFFFFF0), (16, 0xFFFFFFF0), (16, 3)):
        content = bytearray(whole)
        struct.pack_into("<I", content, end + offset, value)
        path.write_bytes(content)
        rows, refused = read_all(tmp_path / "root")
        assert len(rows) == 1 and len(refused) == 1 and "is broken" in next(iter(refused.values()))


def test_a_member_whose_checksum_is_wrong_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", line(1))
        archive.writestr("2.png", line(2))
    content = bytearray(path.read_bytes())
    content[content.find(line(1)) + 70] ^= 1
    path.write_bytes(content)
    rows, refused = read_all(path)
    assert len(rows) == 1 and "is broken in its archive" in refused["1.png"]


@pytest.mark.parametrize("kind", ["tar", "gztar"])
def test_a_truncated_tar_gives_what_it_has_and_says_so(tmp_path, kind):
    rendered.documents(tmp_path / "in", documents=4, lines=4)
    archive = shutil.make_archive(str(tmp_path / "out"), kind, tmp_path / "in")
    size = os.path.getsize(archive)
    os.truncate(archive, size // 2)
    rows, refused = read_all(archive)
    name = os.path.basename(archive)
    assert 0 < len(rows) < 16 and name in refused and "is broken after" in refused[name]


def test_a_tar_with_a_broken_header_says_so(tmp_path):
    path = a_tar(tmp_path / "a.tar", (tarfile.TarInfo("2.png"), line(2)), (tarfile.TarInfo("3.png"), line(3)))
    content = bytearray(path.read_bytes())
    content[1024 + 150] ^= 1
    path.write_bytes(content)
    rows, refused = read_all(path)
    assert len(rows) == 1 and "a header is broken" in refused["a.tar"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_what_is_no_archive_is_refused_and_the_rest_is_read(tmp_path, name):
    put(tmp_path, f"root/{name}", b"no archive at all")
    put(tmp_path, "root/b/1.png", line())
    rows, refused = read_all(tmp_path / "root")
    assert len(rows) == 1 and list(refused) == [name] and "is broken" in refused[name]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """One small archive of each kind, as bytes."""
    root = tmp_path_factory.mktemp("packed")
    for number in range(3):
        put(root, f"in/a/{number}.png", line(number))
        put(root, f"in/a/{number}.gt.txt", f"line {number}")
    return {
        ending: open(shutil.make_archive(str(root / "out"), kind, root / "in"), "rb").read()
        for kind, ending in KINDS.items()
    }


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(KINDS.values())),
    st.integers(0, 2**31),
    st.integers(0, 7),
    st.booleans(),
    st.binary(max_size=40),
)
def test_flipped_truncated_or_prolonged_archives_never_end_a_run(
    tmp_path_factory, packed, ending, place, bit, truncated, junk
):
    root = tmp_path_factory.mktemp("flip")
    content = bytearray(packed[ending])
    content[place % len(content)] ^= 1 << bit
    content = content[: place % len(content)] if truncated else content + junk
    put(root, f"a.{ending}", bytes(content))
    put(root, "b/1.png", line(9))
    rows, refused = read_all(root)
    assert any(row["document_id"] == "b" for row in rows)
    assert len(rows) == 4 or refused


def test_a_parquet_file_in_an_archive_is_one_unit(tmp_path):
    table = rendered.parquet(tmp_path / "in/a.parquet", rendered.rows(documents=4, lines=4))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(table, "a.parquet")
    units = readers.plan(str(tmp_path / "a.zip"), data(shard_lines=2))
    assert len(units) == 1 and len(list(readers.read(units[0], DATA))) == 16
