"""Which files belong together: a line image and its text, a page file and the image of its page.

A page file is matched by its stem, as in `0001.xml` and `0001.jpg`, in its own folder or, for a folder named `page` or
`alto`, in the one above; only where that finds nothing is the file opened for the image that it names.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from maskocr_core.data import images
from maskocr_core.data.readers import archives
from maskocr_core.data.readers.rows import check_name, shown
from maskocr_core.data.readers.units import Entry, Item, Unreadable

TEXT_SUFFIXES = (".gt.txt", ".txt")
PAGE_FOLDERS = ("page", "pagexml", "alto", "xml")
FOREIGN_IMAGES = (".jp2", ".j2k", ".jxl", ".bmp", ".gif", ".pdf", ".heic", ".avif", ".djvu")
BYTES_OF_A_LINE = 2_000  # of a page file, roughly: what its number of lines is guessed by


def gather(entries: Iterable[Entry], image_named_by: Callable[[Entry], str]) -> Iterator[Item]:
    """Items of all entries that could be lines or pages; other files are left aside.

    image_named_by: the image that a page file names, or an empty string.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        try:
            check_name(entry.name, "its name")
            found[entry.name] = entry
        except Unreadable as error:
            yield refused(entry.name, str(error))
    claimed: set[str] = set()
    used: set[str] = set()
    for item in _pages(found, image_named_by):
        item = replace(item, text=_text_beside(item.files[1].name, found)) if len(item.files) > 1 else item
        claimed |= {entry.name for entry in item.files}
        used |= {item.text.name} if item.text else set()
        yield item
    for name, entry in found.items():
        lower = name.lower()
        if name in claimed:
            continue
        if lower.endswith(images.SUFFIXES):
            text = _text_beside(name, found)
            used |= {text.name} if text else set()
            yield Item("line", name, (entry,), text)
        elif lower.endswith(FOREIGN_IMAGES):
            yield refused(name, "is of a format that is not read: make it PNG, JPEG, WebP or TIFF")
        elif lower.endswith(archives.FOREIGN):
            yield refused(name, f"is an archive that is not read: pack it as {', '.join(archives.SUFFIXES)}")
    for name in found:
        if name.endswith(".txt") and name not in used:
            yield refused(name, "a transcription without an image beside it")


def refused(name: str, reason: str) -> Item:
    return Item("refused", shown(name), reason=reason)


def _pages(found: dict[str, Entry], image_named_by: Callable[[Entry], str]) -> Iterator[Item]:
    """Every page file with the images that may be its page; of two files about one image the ALTO is refused."""
    by_stem = _images_by_stem(found)
    owners: dict[str, str] = {}
    pages = [entry for name, entry in found.items() if name.lower().endswith(".xml")]
    for entry in sorted(
        pages, key=lambda entry: ("alto" in _last(entry.folder) or "alto" in _last(entry.name), entry.name)
    ):
        candidates = _candidates(entry, by_stem) or _named(entry, image_named_by(entry), found)
        owner = next((owners[image.name] for image in candidates if image.name in owners), None)
        if owner:
            yield Item("refused", entry.name, (entry,), reason=f"is about the same page as {owner}, which is read")
            continue
        owners |= {image.name: entry.name for image in candidates}
        yield Item("page", entry.name, (entry, *candidates), lines=max(1, entry.size // BYTES_OF_A_LINE))


def _images_by_stem(found: dict[str, Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Images under (folder, stem); `0001.bin.png` is one of `0001` too, behind those that are it exactly."""
    by_stem = defaultdict(list)
    names = [name for name in found if name.lower().endswith(images.SUFFIXES)]
    for name in sorted(names, key=lambda name: (_last(name).count("."), name)):
        stem = _last(name).rpartition(".")[0]
        while stem:
            by_stem[found[name].folder, stem].append(found[name])
            stem = stem.rpartition(".")[0]
    return by_stem


def _candidates(entry: Entry, by_stem: dict[tuple[str, str], list[Entry]]) -> list[Entry]:
    stem = _last(entry.name)[: -len(".xml")]
    if stem.lower().endswith((".alto", ".page")):
        stem = stem.rpartition(".")[0]
    folders = [entry.folder]
    if _last(entry.folder).lower() in PAGE_FOLDERS:
        folders.append(entry.folder.rpartition("/")[0])
    return next((by_stem[folder, stem] for folder in folders if (folder, stem) in by_stem), [])


def _named(entry: Entry, name: str, found: dict[str, Entry]) -> list[Entry]:
    """The image that a page file names, where it is below the root at all: looked up, never followed."""
    name = name.replace("\\", "/").rpartition("://")[2]
    places = [posixpath.normpath(posixpath.join(entry.folder, name)), posixpath.join(entry.folder, _last(name))]
    places.append(posixpath.join(entry.folder.rpartition("/")[0], _last(name)))
    return [found[place] for place in places if place in found and place.lower().endswith(images.SUFFIXES)][:1]


def _text_beside(image: str, found: dict[str, Entry]) -> Entry | None:
    stem = image.rpartition(".")[0]
    return next((found[stem + suffix] for suffix in TEXT_SUFFIXES if stem + suffix in found), None)


def _last(path: str) -> str:
    return path.rpartition("/")[2]
