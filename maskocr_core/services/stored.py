"""What is known of a file without reading it, wherever it lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file below a URI. `stamp` changes whenever the content does: size and mtime here, the ETag in S3.

    modified: seconds since 1970 by the clock of the store; 0 where only a list of files is known.
    """

    uri: str
    name: str
    size: int
    stamp: str
    modified: float = 0.0
