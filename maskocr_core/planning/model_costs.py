"""What the masked model costs a line: parameters, floating-point operations, bytes kept for the backward pass.

An operation is an addition or a multiplication; those of matrix products, convolutions and attention are counted, as
`torch.utils.flop_counter` counts them, and element-wise ones are not. Bytes are those that autograd keeps. All of it
follows the modules of `maskocr_core.model`; the tests hold these formulas against them.

Letters as there: D model width, L steps of 8 px, K what is predicted of a step, H height in px.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskocr_core.config import STEP, Config
from maskocr_core.model.stem_layers import CONVOLUTIONS

FLOAT32 = 4


@dataclass(frozen=True)
class Line:
    """Steps of one line as a batch holds it: `real` ones, `padded` to its batch's width, `seen` by the blocks, and
    `asked` for by cross-attention, where hidden steps are left out of the encoder (else 0)."""

    real: float
    padded: float
    seen: float
    asked: float


def outputs(config: Config) -> int:
    """K: classes, or pixels, predicted of one step."""
    return config.codebook.clusters if config.mask.predict == "labels" else config.data.height * STEP


def parameters(config: Config) -> dict[str, int]:
    """Trained numbers of the stem, the blocks with the norms around them, and of what predicts; without the last: the encoder."""
    D, K = config.model.width, outputs(config)
    predictor = K * (D + 1)
    if config.mask.hide == "token":
        predictor += D
    if config.mask.hide == "skip":
        predictor += K * (D + 1) + 12 * D * D + 16 * D
    return {
        "stem": _stem_parameters(config),
        "blocks": config.model.depth * (12 * D * D + 13 * D) + 4 * D,
        "predictor": predictor,
    }


def forward(config: Config, line: Line) -> dict[str, float]:
    """Operations of the forward pass of one line, by part."""
    D, K, V, M = config.model.width, outputs(config), line.seen, line.asked
    asking = 20 * D * D * M + 4 * D * D * V + 4 * D * M * V if config.mask.hide == "skip" else 0.0
    return {
        "stem": line.padded * sum(_stem_layers(config)),
        "blocks": config.model.depth * (24 * D * D * V + 4 * D * V * V),
        "asking": asking,
        "head": 2 * D * K * line.real,
    }


def backward(config: Config, line: Line) -> dict[str, float]:
    """The same of the backward pass: twice the forward pass, but for the gradient of the pixels, which nobody needs."""
    twice = {part: 2 * operations for part, operations in forward(config, line).items()}
    return twice | {"stem": twice["stem"] - line.padded * _stem_layers(config)[0]}


def labelling(config: Config, line: Line) -> float:
    """Operations that find the labels of one line while training: features, projection, distances to all centroids."""
    if config.mask.predict != "labels":
        return 0.0
    D, H, book = config.model.width, config.data.height, config.codebook
    size, making = {
        "pixels": (config.numbers_of_a_step, 0.0),
        "gradients": (config.numbers_of_a_step, 0.0),
        "random": (
            CONVOLUTIONS["convolutional"][-1].channels * H // STEP,
            line.padded * sum(_stem_layers(config, "convolutional")[:-1]),
        ),
        # Of an encoder as large as the one that is trained, two thirds of the blocks.
        "encoder": (
            D,
            line.padded * sum(_stem_layers(config))
            + -(-2 * config.model.depth // 3) * (24 * D * D * line.padded + 4 * D * line.padded**2),
        ),
    }[book.features]
    return making + line.padded * 2 * book.components * (size + book.clusters)


def kept(config: Config, line: Line, activation: int) -> dict[str, float]:
    """Bytes that autograd keeps of one line between forward and backward pass, by part.

    activation: bytes of what matrix products, convolutions and GELU read: 2 under bfloat16 autocast, 4 in float32.
    What norms and the softmax read stays float32 under autocast.
    """
    D, H, V, M = config.model.width, config.data.height, line.seen, line.asked
    pixels, cells, convolutions = STEP * H, STEP * H, CONVOLUTIONS[config.model.stem]
    for convolution in convolutions:
        cells //= convolution.stride**2
        pixels += convolution.channels * cells
    if convolutions:
        pixels += convolutions[-1].channels * cells  # the column's input is a copy
    skips, turns = config.mask.hide == "skip", config.model.places == "rotary"
    turn = skips * turns * D // config.model.heads * FLOAT32  # cosines and sines, of each line where its steps differ
    return {
        # with the input of the norm after it and, to leave steps out, what they are chosen from
        "stem": line.padded * (pixels * activation + (1 + skips) * D * FLOAT32),
        # Two norms' inputs; queries, keys, values, what is mixed, twice the four times wider middle, two norms' outputs;
        # queries and keys once more where they are turned.
        "blocks": V * D * (config.model.depth * (2 * FLOAT32 + (14 + 2 * turns) * activation) + FLOAT32) + V * turn,
        "asking": skips
        * (D * (M * (3 * FLOAT32 + (12 + turns) * activation) + V * (3 + turns) * activation) + (M + V) * turn),
        "head": line.real * (D * activation + outputs(config) * FLOAT32),
    }


def gradient_of_logits(config: Config, line: Line, activation: int) -> float:
    """Bytes of one line that the loss needs beside what is kept: the gradient of the logits, in float32 and as they are."""
    return line.real * outputs(config) * (FLOAT32 + activation)


def _stem_parameters(config: Config) -> int:
    D, H = config.model.width, config.data.height
    convolutions = CONVOLUTIONS[config.model.stem]
    if not convolutions:
        return D * (H * STEP + 1)
    return sum(layer.weights for layer in convolutions) + D * (convolutions[-1].channels * H // STEP + 1)


def _stem_layers(config: Config, stem: str | None = None) -> list[float]:
    """Operations of each layer of the stem for one step."""
    D, H = config.model.width, config.data.height
    convolutions, cells = CONVOLUTIONS[stem or config.model.stem], float(H * STEP)
    if not convolutions:
        return [2.0 * H * STEP * D]
    layers = []
    for convolution in convolutions:
        cells /= convolution.stride**2
        layers.append(2 * cells * convolution.weights)
    return [*layers, 2.0 * convolutions[-1].channels * H // STEP * D]
