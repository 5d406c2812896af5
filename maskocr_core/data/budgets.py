"""Budgets of labels: which lines a smaller budget takes of a larger one."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def nested(table: pa.Table, budget: int) -> pa.Table:
    """The first `budget` lines in the nested order that the data bring, else by a hash of document, then line.

    Smaller budgets are subsets of larger ones; 0 is all of them, as is a budget beyond what is there.
    """
    if not budget or budget >= table.num_rows:
        return table
    if table["order"].null_count:
        keys = [
            hashlib.sha256(document.encode()).hexdigest() + line
            for document, line in zip(table["document_id"].to_pylist(), table["line_id"].to_pylist())
        ]
        order = np.argsort(np.array(keys))
    else:
        order = pc.sort_indices(table, [("order", "ascending"), ("line_id", "ascending")])
    return table.take(order[:budget]).sort_by("line_id")
