"""Which lines a selection admits, and with what weight: the shards of `lines` seen through the side table that fit writes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines


def selected_of(
    artifact: Artifact,
    selection: Artifact,
    shard: str,
    columns: Iterable[str] = lines.INDEX_COLUMNS,
    groups: Iterable[int] | None = None,
) -> pa.Table:
    """`index_of` the lines of a shard that the selection admits, with their `weight`, sorted by `line_id`."""
    table = lines.index_of(artifact, shard, columns, groups)
    chosen = _weights(selection, selection.version, shard)
    found = pc.index_in(table["line_id"], value_set=chosen["line_id"].combine_chunks())
    weights = chosen["weight"].take(found.drop_null())
    return table.filter(found.is_valid()).append_column(lines.SELECTION.field("weight"), weights).sort_by("line_id")


@lru_cache(maxsize=16)
def _weights(selection: Artifact, version: str, shard: str) -> pa.Table:
    """The selection of one shard, as `lines.SELECTION` has it. `version`: a folder may hold another one later."""
    if lines.SELECTION_1 in selection.names():
        chosen = lines.read_table(selection, lines.SELECTION_1)
        return chosen.filter(pc.equal(chosen["split"], shard.split("/")[0])).select(lines.SELECTION.names)
    return lines.read_table(selection, shard) if shard in selection.names() else lines.SELECTION.empty_table()


def selected_shards(artifact: Artifact, selection: Artifact, split: str) -> list[str]:
    """Names of the shards of a split of which the selection admits any line, in order."""
    return [shard for shard in lines.shards(artifact, split) if count_selected(artifact, selection, shard)]


def accepted_shards(artifact: Artifact, selection: Artifact) -> list[str]:
    """`selected_shards` of the unlabelled lines. Raises ValueError if no line of theirs is admitted."""
    if not (found := selected_shards(artifact, selection, "unlabeled")):
        raise ValueError(
            f"{selection.folder} admits no unlabelled line of {artifact.folder}: see the verdicts of fit and the quarantine of validate"
        )
    return found


def count_selected(artifact: Artifact, selection: Artifact, shard: str) -> int:
    """How many lines of a shard the selection admits, from its manifest alone; lines forgotten since are among them."""
    if lines.SELECTION_1 in selection.names():
        return selected_of(artifact, selection, shard, ["line_id"]).num_rows
    return next((entry["rows"] for entry in selection.manifest["files"] if entry["name"] == shard), 0)


def selected(artifact: Artifact, selection: Artifact, split: str) -> pa.Table:
    """`selected_of` all shards of a split, joined and sorted by `line_id`.

    Raises ValueError if the selection was made for other lines.
    """
    demand_made_for(selection, artifact)
    tables = [selected_of(artifact, selection, shard) for shard in lines.shards(artifact, split)]
    if not tables:
        return lines.index(artifact, split).append_column("weight", pa.array([], pa.float32()))
    return pa.concat_tables(tables).sort_by("line_id")


def demand_made_for(selection: Artifact, artifact: Artifact) -> None:
    """Raises ValueError if a selection names a shard that these lines do not have."""
    strange = [name for name in selection.names(suffix=".parquet") if name.split("/")[0] in lines.SPLITS]
    if set(strange) - set(artifact.names()):
        raise ValueError(
            f"{selection.folder} selects lines that {artifact.folder} does not hold: run validate and fit again on these lines"
        )
