"""What a plan supposes. Every field is a flag of `maskocr plan`, and stands below its table with the string under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from maskocr_core import recipes
from maskocr_core.config import Section

Above = Annotated[float, Field(gt=0.0)]
Price = Annotated[float, Field(ge=0.0)]


class Assumptions(Section):
    lines: Above = recipes.PAPER_LINES
    """Unlabelled lines (the paper: 50 million)."""
    passes: Above = recipes.PASSES
    """How often each line is seen; with the recipe's batch this gives the number of updates (our choice: nothing is known of the paper's)."""
    mean_width: Annotated[float, Field(ge=8.0, le=8192.0)] = 640.0
    """Mean width of a line in px at the recipe's height (our packs at 40 px: 403 to 760; sample/target 626)."""
    padding: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of steps that pad a line to the width of its batch (what bucketing by width aims at)."""
    gpu: Literal["h100", "a100", "l4", "cpu"] = "h100"
    """Processor: H100 SXM 80 GB, A100 SXM 80 GB, L4, or one CPU core in float32 (peak, memory and bandwidth as the vendor says them)."""
    gpus: Annotated[int, Field(ge=1)] = 1
    """How many of them train together, which must divide the recipe's `pretrain.shares`."""
    utilisation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """Share of the peak that matrix products reach (PaLM reported 0.46 on its own processors, arXiv 2204.02311; 0.4 is a guess, and this code reached 0.02 with paper-19m in the one trial there was)."""
    traffic: Annotated[float, Field(ge=0.0)] = 5.0
    """How often a byte kept for the backward pass crosses the memory bus: written and read forward, read backward, its gradient written and read (a guess that fused kernels undercut; 0: never a limit)."""
    cores_per_gpu: Annotated[int, Field(ge=1)] = 4
    """CPU cores that decode lines for one processor (as many threads as training takes beside a GPU, whatever it has more)."""
    lines_per_core: Above = 3321.0
    """Lines a second that one core reads, decodes and scales to 40 px (docs/speed_of_data.md, measured on one core)."""
    network: Above = 10.0
    """Gbit/s from the store to one processor (a guess)."""
    bytes_per_line: Above = 4075.0
    """Bytes of a line in Parquet (sample/target at 48 px; scans of full resolution are larger)."""
    months: Annotated[float, Field(ge=0.0)] = 1.0
    """Months that the lines are kept in the store for this run."""
    price_per_gpu_hour: Annotated[float | None, Field(ge=0.0)] = None
    """Price of an hour of one processor with its cores (an example, no offer: h100 3.00, a100 2.00, l4 0.80, cpu 0.05)."""
    price_per_gb_month: Price = 0.023
    """Price of 10⁹ bytes for a month (an example, no offer: as S3 Standard was listed, https://aws.amazon.com/s3/pricing/)."""
    price_per_1000_gets: Price = 0.0004
    """Price of a thousand GET or HEAD requests (an example, no offer: the same page)."""
    price_per_1000_puts: Price = 0.005
    """Price of a thousand requests that write (an example, no offer: the same page)."""


PRICES = [name for name in Assumptions.model_fields if name.startswith("price_")]


def assume(prices: Path | None = None, **given: Any) -> Assumptions:
    """Assumptions with what is given; of prices, those in a JSON file stand in for what is not given.

    Raises ValueError with the name of the flag for an impossible value, and for a file that cannot be read or names no price.
    """
    named = _prices(prices) if prices else {}
    named |= {name: value for name, value in given.items() if value is not None}
    try:
        return Assumptions.model_validate(named)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']} (given: {first['input']!r})"
        ) from None


def written(value: float | int | str) -> str:
    """A value as a flag takes it: 50000000 and not 5e+07."""
    return value if isinstance(value, str) else f"{value:.10g}"


def _prices(path: Path) -> dict[str, float]:
    try:
        named = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a JSON file of prices: {error}") from None
    if not isinstance(named, dict) or set(named) - set(PRICES):
        raise ValueError(f"{path} must be one JSON object whose names are among {', '.join(PRICES)}")
    return named
