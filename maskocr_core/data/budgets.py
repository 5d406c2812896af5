"""Budgets of labels: which lines a smaller budget takes of a larger one."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def nested(table: pa.Table, budget: int, split_unit: Literal["document", "page"] = "document") -> pa.Table:
    """The first `budget` lines in the nested order that the data bring, else by a hash of the split unit, then by line.

    Smaller budgets are subsets of larger ones, and of as few units as may be, as somebody labels them; 0 is all of them, as
    is a budget beyond what is there. split_unit: as in `Data`.
    """
    if not budget or budget >= table.num_rows:
        return table
    if table["order"].null_count:
        units = table[f"{split_unit}_id"].to_pylist()
        keys = [
            hashlib.sha256(unit.encode()).hexdigest() + line for unit, line in zip(units, table["line_id"].to_pylist())
        ]
        order = np.argsort(np.array(keys))
    else:
        order = pc.sort_indices(table, [("order", "ascending"), ("line_id", "ascending")])
    return table.take(order[:budget]).sort_by("line_id")
