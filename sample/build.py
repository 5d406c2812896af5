"""How the sample was drawn from the full line packs: whole pages, chosen by a hash of their name, short lines preferred.

    python sample/build.py PACKS        # PACKS holds fraktur_print/, early_print_fr/ and medieval_hand/

The files it writes are committed, so nobody needs to run it; it stands here so that the choice can be checked.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

HERE = Path(__file__).parent
LICENCES = {
    "fraktur_print": "MIT, Copyright (c) 2018 (chreul/19th-century-fraktur-OCR, commit 636167f). "
    "Cite: Reul et al., arXiv:1810.03436; Springmann et al., arXiv:1809.05501.",
    "early_print_fr": "Gallicorpora HTR-incunable-15e-siecle and HTR-imprime-{gothique-16e,16e,17e,18e}-siecle (commits 6e050f9, fb99875 and "
    "others): LICENSE file CC0 1.0, catalogue CC BY 4.0. Attribution: Pinche, Gabay, Leroy, Vlachou-Efstathiou, Christensen.",
    "medieval_hand": "HTRomance-Project/medieval-latin (commit fe25eb9), CC BY 4.0. Attribution: Glaise, Clérice et al.",
}
CHANGES = "Changes made: pages cut into lines, grey, 48 px high, recompressed; text normalised; a selection of pages and of lines up to a width."


def pages(table: pa.Table, max_width: int, seed: str) -> list[pa.Table]:
    """The pages of a pack, in an order given by a hash of their names, without lines wider than `max_width` px."""
    table = table.filter(pc.less_equal(table["width"], max_width))
    names = sorted(
        table["page"].unique().to_pylist(), key=lambda page: hashlib.sha256(f"{seed}{page}".encode()).digest()
    )
    return [table.filter(pc.equal(table["page"], name)) for name in names]


def take(queue: list[pa.Table], lines: int) -> pa.Table:
    """Whole pages off the queue until `lines` are there; the last page is cut."""
    taken: list[pa.Table] = []
    while sum(page.num_rows for page in taken) < lines:
        taken.append(queue.pop(0))
    return pa.concat_tables(taken).slice(0, lines)


def save(table: pa.Table, name: str, pack: str, split: str) -> None:
    """Write one file with its split, a fresh order, and licence and attribution in the metadata."""
    rows = table.num_rows
    order = range(rows) if split != "unlabeled" else [-1] * rows
    text = table["text"] if split != "unlabeled" else pa.nulls(rows, pa.string())
    for column, values in (("split", pa.array([split] * rows)), ("order", pa.array(order, pa.int32())), ("text", text)):
        table = table.set_column(table.schema.get_field_index(column), column, values)
    table = table.replace_schema_metadata({"licence": LICENCES[pack], "changes": CHANGES})
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=256, compression="zstd", write_page_checksum=True)
    print(f"{name}: {rows} lines, {len(table['page'].unique())} pages, {path.stat().st_size / 1e6:.1f} MB")


def main(packs: Path) -> None:
    def read(pack: str, split: str) -> pa.Table:
        return pq.read_table(packs / pack / f"{split}.parquet")

    fraktur = pages(read("fraktur_print", "train"), 1000, "target")
    save(take(fraktur, 400), "target/train.parquet", "fraktur_print", "train")
    validation = pages(read("fraktur_print", "val"), 1000, "target") + fraktur[:8]
    del fraktur[:8]
    save(take(validation, 150), "target/val.parquet", "fraktur_print", "val")
    save(
        take(pages(read("fraktur_print", "test"), 1100, "target"), 300), "target/test.parquet", "fraktur_print", "test"
    )
    save(take(fraktur, 1500), "target/unlabeled-fraktur.parquet", "fraktur_print", "unlabeled")
    foreign = read("medieval_hand", "unlabeled")
    foreign = foreign.filter(pc.equal(foreign["source"], "HTRomance-Project/medieval-latin"))
    save(take(pages(foreign, 1000, "target"), 400), "target/unlabeled-medieval.parquet", "medieval_hand", "unlabeled")
    early = pages(read("early_print_fr", "train"), 700, "transfer")
    save(take(early, 1000), "transfer/train.parquet", "early_print_fr", "train")
    save(take(early, 100), "transfer/val.parquet", "early_print_fr", "val")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
