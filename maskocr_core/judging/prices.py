"""What labels, computing and buying cost: a file of prices, from which `roi` tells whether pre-training pays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict

from maskocr_core.judging.forms import Amount, Name, Section, read

Above0 = Annotated[float, Strict(), Field(gt=0.0, le=1e12)]


class Buy(Section):
    """What can be bought instead."""

    name: Name
    """name of the service"""
    cer: Annotated[float, Strict(), Field(gt=0.0, le=1.0)]
    """its CER on your own test lines, as a share (0.05, not 5)"""
    price_per_line: Above0
    """price of reading one line"""


class Prices(Section):
    """A file of prices, all in one currency."""

    version: Literal[1]
    """version of this format, 1"""
    currency: Name
    """currency of all prices, such as EUR"""
    minutes_per_line: Above0
    """minutes that a person needs to transcribe one line, checking included"""
    hourly_rate: Above0
    """cost of an hour of that person's work"""
    gpu_hour: Amount
    """price of an hour of one GPU"""
    cpu_hour: Amount
    """price of an hour of one CPU core"""
    target_cer: Annotated[float, Strict(), Field(gt=0.0, lt=1.0)] | None = None
    """CER that is wanted, as a share (0.05, not 5); left out for what scratch reaches with all labels"""
    shared_by: Annotated[int, Strict(), Field(ge=1)] = 1
    """how many recognisers (collections, retrainings) share one pre-training"""
    buy: Buy | None = None
    """what can be bought instead, left out if nothing"""
    lines_per_month: Above0 | None = None
    """lines to read in a month, left out if unknown"""
    months: Above0 = 12.0
    """months over which buying is compared"""
    own_price_per_line: Amount = 0.0
    """price of reading one line oneself: computers and their care"""

    @property
    def label(self) -> float:
        """Price of one labelled line."""
        return self.minutes_per_line / 60 * self.hourly_rate


def load(path: Path | str) -> Prices:
    """Prices from a JSON file. Raises ValueError, in a sentence with the file, the field and the mend, for a file that
    cannot be read and for a missing, unknown or impossible field."""
    return read(Path(path), Prices)
