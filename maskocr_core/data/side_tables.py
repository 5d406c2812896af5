"""Tables that the work on one shard leaves for the process that joins them; no part of any artifact."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa


def save(table: pa.Table, path: Path, compression: str | None = None) -> None:
    """Write a table as one batch of an Arrow file. Compressed, it is smaller, and is decompressed when it is loaded."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())


def load(path: Path) -> pa.Table:
    """A table whose columns are the file's own bytes, mapped and not read, where it was not compressed."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
