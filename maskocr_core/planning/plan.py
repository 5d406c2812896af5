"""What a whole pre-training run takes: operations, memory, time, requests and money, from a recipe and assumptions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from maskocr_core.config import STEP, Config, Mask
from maskocr_core.planning import model_costs
from maskocr_core.planning.assumptions import Assumptions
from maskocr_core.planning.hardware import DEVICES, Device
from maskocr_core.planning.model_costs import Line

USABLE = 0.9  # of a processor's memory: the rest is for its runtime, workspaces and gaps between blocks
MOMENTS = 64  # of a run at which what it takes is computed, to average over the masking probability
ROWS_PER_GROUP = 512  # as `data.lines` writes them
# What the reader asks of the store for a row group: of the lines, two times the size and the footer, then the columns
# before the image, those after it, and the image; of the selection's part of that shard the size, the footer, the rows.
REQUESTS_PER_GROUP = 10
PART_BYTES = 8 << 20  # boto3 uploads what is larger in parts of this size


@dataclass(frozen=True)
class Plan:
    """All for one recipe; money is in the currency of the prices.

    forward, backward, labelling: operations a line. line_bytes: of one line in the forward and backward pass.
    limits: processor-hours by what might be the limit; all of it overlaps, so that the largest is `gpu_hours`.
    """

    recipe: str
    encoder: str
    stem: str
    hidden: str
    parameters: dict[str, int]
    forward: dict[str, float]
    backward: dict[str, float]
    labelling: float
    updates: int
    steps_seen: float
    state_bytes: float
    line_bytes: float
    lines_per_gpu: int
    lines_at_once: int
    memory_bytes: float
    operations: float
    limits: dict[str, float]
    gpu_hours: float
    days: float
    shards: int
    stored_bytes: float
    read_bytes: float
    gets_per_epoch: float
    gets: float
    puts: float
    cost: dict[str, float]

    @property
    def encoder_parameters(self) -> int:
        return self.parameters["stem"] + self.parameters["blocks"]

    @property
    def limit(self) -> str:
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def total_cost(self) -> float:
        return sum(self.cost.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "encoder_parameters": self.encoder_parameters,
            "limit": self.limit,
            "total_cost": self.total_cost,
        }


def plan(config: Config, assumed: Assumptions) -> Plan:
    """What pre-training by this recipe takes.

    Raises ValueError where the processors do not divide the shares of a batch, or a share does not fit into one.
    """
    device, batch, shares = DEVICES[assumed.gpu], config.pretrain.batch, config.pretrain.shares
    if shares % assumed.gpus:
        raise ValueError(
            f"{config.recipe}: {assumed.gpus} processors do not divide pretrain.shares={shares}: choose other --gpus, "
            f"or --set pretrain.shares to a power of two that they divide"
        )
    parameters = model_costs.parameters(config)
    state = sum(parameters.values()) * _state_bytes(device, shares // assumed.gpus)
    at_once = math.ceil(batch / shares)
    run = _moments(config, assumed, at_once)
    # The first moment hides least, the last one most: what is kept is largest at one of them.
    most = max(_memory(config, line, device) for line in run)
    _demand_room(config, device, state, at_once * most)
    forward, backward = (_mean(costs(config, line) for line in run) for costs in _PASSES)
    labelling = model_costs.labelling(config, run[0])
    seen = assumed.lines * assumed.passes
    operations = seen * (sum(forward.values()) + sum(backward.values()) + labelling)
    kept = seen * sum(_mean(model_costs.kept(config, line, device.activation) for line in run).values())
    stored = _stored(config, assumed)
    limits = _limits(assumed, device, operations, kept, stored["read_bytes"])
    hours = max(limits.values())
    return Plan(
        recipe=config.recipe,
        encoder=f"{config.model.width} × {config.model.depth}",
        stem=config.model.stem,
        hidden=config.mask.hide,
        parameters=parameters,
        forward=forward,
        backward=backward,
        labelling=labelling,
        updates=math.ceil(seen / batch),
        steps_seen=seen * assumed.mean_width / STEP,
        state_bytes=state,
        line_bytes=most,
        lines_per_gpu=batch // assumed.gpus,
        lines_at_once=at_once,
        memory_bytes=state + at_once * most,
        operations=operations,
        limits=limits,
        gpu_hours=hours,
        days=hours / assumed.gpus / 24,
        **stored,
        cost=_cost(assumed, device, hours, stored),
    )


def batch_line(mask: Mask, steps: float, padding: float, probability: float, spread: float, together: int) -> Line:
    """A line of `steps` in a batch of `together` lines at a masking probability, spread over lines by ± `spread`.

    Where hidden steps are left out, the others are padded to the line that has most of them, and so are the hidden ones.
    Lines of one probability differ by the fraction of a step that `masking.sample` rounds up in some of them; where each
    draws its own, the widest is the largest of n normal draws by Blom's formula (Statistical Estimates and Transformed
    Beta-Variables, 1958).
    """
    padded = steps / (1 - padding)
    if mask.hide != "skip":
        return Line(steps, padded, padded, 0.0)
    over = max(0.0, NormalDist().inv_cdf((together - 0.375) / (together + 0.25))) * spread * steps
    seen, asked = (min(padded, _rounded_up(steps * share) + over) for share in (1 - probability, probability))
    return Line(steps, padded, seen, asked)


def _rounded_up(steps: float) -> int:
    return math.ceil(round(steps, 6))  # 80 × 0.35 is a hair above 28


def _moments(config: Config, assumed: Assumptions, together: int) -> list[Line]:
    """A line of mean width at moments spread evenly over the run, at the probability that `masking` gives each."""
    from maskocr_core.model import masking

    mask, steps = config.mask, assumed.mean_width / STEP
    if mask.ratio == "random":
        middle, spread = (mask.start + mask.end) / 2, abs(mask.end - mask.start) / math.sqrt(12)
        return [batch_line(mask, steps, assumed.padding, middle, spread, together)]
    progress = ((moment + 0.5) / MOMENTS for moment in range(MOMENTS))
    probabilities = (masking.probability(at, mask.start, mask.end) for at in progress)
    return [batch_line(mask, steps, assumed.padding, p, 0.0, together) for p in probabilities]


def _limits(assumed: Assumptions, device: Device, operations: float, kept: float, read: float) -> dict[str, float]:
    """Processor-hours by each thing that could be the slowest, all of them overlapping."""
    seconds = {
        "products": operations / (device.peak * assumed.utilisation),
        "memory traffic": kept * assumed.traffic / device.bandwidth,
        "decoding": assumed.lines * assumed.passes / (assumed.lines_per_core * assumed.cores_per_gpu),
        "network": read * 8 / (assumed.network * 1e9),
    }
    return {name: value / 3600 for name, value in seconds.items()}


def _cost(assumed: Assumptions, device: Device, hours: float, stored: dict[str, Any]) -> dict[str, float]:
    price = device.price_per_hour if assumed.price_per_gpu_hour is None else assumed.price_per_gpu_hour
    gets, puts = stored["gets"] * assumed.price_per_1000_gets, stored["puts"] * assumed.price_per_1000_puts
    return {
        "processors": hours * price,
        "storage": stored["stored_bytes"] / 1e9 * assumed.months * assumed.price_per_gb_month,
        "requests": (gets + puts) / 1000,
    }


_PASSES = (model_costs.forward, model_costs.backward)


def _mean(costs: Any) -> dict[str, float]:
    rows = list(costs)
    return {part: sum(row[part] for row in rows) / len(rows) for part in rows[0]}


def _state_bytes(device: Device, shares: int) -> int:
    """Bytes a parameter: float32 weight and two moments of AdamW, a gradient for each level of the tree that adds those of a
    processor's shares, and under autocast a copy of the weight in the type of activations."""
    copy = device.activation if device.activation < 4 else 0
    return 12 + 4 * (1 + int(math.log2(shares))) + copy


def _memory(config: Config, line: Line, device: Device) -> float:
    kept = model_costs.kept(config, line, device.activation)
    return sum(kept.values()) + model_costs.gradient_of_logits(config, line, device.activation)


def _demand_room(config: Config, device: Device, state: float, share: float) -> None:
    if state + share > device.memory * USABLE:
        raise ValueError(
            f"{config.recipe}: {state / 1e9:.1f} GB of weights with their states and {share / 1e9:.1f} GB of activations do not fit "
            f"into {USABLE:.0%} of {device.memory / 1e9:.0f} GB: raise pretrain.shares={config.pretrain.shares}, or choose another --gpu"
        )


def _stored(config: Config, assumed: Assumptions) -> dict[str, Any]:
    """What the store holds and is asked. Each processor reads every row group, as the reader gives each a part of every batch."""
    shards = math.ceil(assumed.lines / config.data.shard_lines)
    shard_bytes = config.data.shard_lines * assumed.bytes_per_line
    per_epoch = math.ceil(assumed.lines / ROWS_PER_GROUP) * REQUESTS_PER_GROUP * assumed.gpus
    return {
        "shards": shards,
        "stored_bytes": assumed.lines * assumed.bytes_per_line,
        "read_bytes": assumed.lines * assumed.bytes_per_line * assumed.passes * assumed.gpus,
        "gets_per_epoch": per_epoch,
        "gets": per_epoch * assumed.passes,
        "puts": shards * (1 if shard_bytes <= PART_BYTES else math.ceil(shard_bytes / PART_BYTES) + 2),
    }
