"""One configuration: frozen sections, loaded by recipe name plus `section.field=value` overrides, and nothing else.

Sources: pydantic's frozen models (https://docs.pydantic.dev/latest/concepts/models/); the numbers of the method are
those of Kišš & Hradiš 2025 (arXiv 2503.22513) where the paper or its authors' code fixes them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

STEP = 8  # px of width of one step: patch, label and CTC frame alike (the authors' code: 8); a constant of the method
HANDS = {"pretrain": {"workers"}, "sweep": {"jobs"}}  # by section, the fields that say how many work on a result
ORIENTATIONS = 9  # in histograms of oriented gradients (Dalal & Triggs 2005) and MaskFeat (Wei et al. 2022)

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Strict(), Field(ge=1)]  # strict: `true` is no number of steps
Seed = Annotated[int, Strict(), Field(ge=0, lt=1 << 32)]  # what every generator takes
Column = Literal["image", "page_id", "document_id", "text", "source", "split", "order", "license", "retain_until"]
Start = Literal["scratch", "transfer", "pretrained", "both"]
Direction = Literal["ltr", "rtl"]
Ink = Literal["raw", "levelled"]
Decoding = Literal["ctc", "autoregressive"]
Size = Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*x[1-9]\d*$")]


class Section(BaseModel):
    """A group of knobs. Frozen; unknown fields are refused; the string under a field is its description everywhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Data(Section):
    height: Annotated[int, Field(ge=16, le=128, multiple_of=8)] = 40
    """Height in px to which every line image is scaled, width kept in proportion (the authors' code: 40)."""
    max_width: Annotated[int, Field(ge=64, le=8192)] = 2048
    """Width in px after scaling at which a line is cut (the authors' code: 2,048)."""
    direction: Direction = "ltr"
    """Where a line begins: `ltr` at its left, `rtl` at its right (Hebrew, Arabic): its image is then mirrored to be read."""
    ink: Ink = "levelled"
    """How gray becomes ink: `levelled` to the paper and the darkest ink of each line, or `raw`."""
    columns: dict[Column, str] = {"page_id": "page", "document_id": "doc"}
    """Our column name → the name in your Parquet; a column that already has our name needs no entry."""
    split_unit: Literal["document", "page"] = "document"
    """What is never torn apart when ingest has to split lines itself: a document, or a page where documents are few."""
    validation_share: Probability = 0.1
    """Share of labelled documents that become validation where the data bring no split of their own."""
    test_share: Probability = 0.15
    """Share of labelled documents that become test where the data bring no split of their own."""
    shard_lines: Positive = 4096
    """Lines in one Parquet shard; at about 3 KB a line, 100,000 make the few large files that S3 and DVC like."""

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Data:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"data.validation_share={self.validation_share} and data.test_share={self.test_share} leave nothing to train on"
            )
        return self


class Quality(Section):
    max_refused: Probability = 0.2
    """Share of a source's lines that may be quarantined before `validate` fails the source as a whole."""
    max_refused_shard: Probability = 0.5
    """The same share for one shard of 50 lines or more: where most of it is bad, the file was read wrongly."""


class Fit(Section):
    features: Literal["auto", "strokes", "champion"] = "auto"
    """What a line is described by: its strokes, without any weights, or the champion's encoder; auto: the champion's where there is one."""
    accept_kid_ratio: Annotated[float, Field(gt=0.0)] = 3.0
    """A source is accepted up to this multiple of the KID that as many of the target's own documents would reach at most."""
    reject_kid_ratio: Annotated[float, Field(gt=0.0)] = 100.0
    """A source is rejected beyond this multiple."""
    seed: Seed = 0
    """Seed of sampling and bootstrap."""


class Model(Section):
    width: Annotated[int, Field(ge=16, multiple_of=8)] = 512
    """Width of the encoder (the authors' code: 512)."""
    depth: Positive = 6
    """Transformer blocks (the authors' code: 6)."""
    heads: Positive = 4
    """Attention heads (the authors' code: 4)."""
    stem: Literal["linear", "convolutional", "slim"] = "convolutional"
    """How pixels become steps of 8 px: one linear patch, or a linear layer behind three strided convolutions of 32, 64 and 96 channels or of 16, 48 and 96."""
    places: Literal["rotary", "sinusoidal"] = "rotary"
    """How attention knows places: queries and keys turned by theirs, or sinusoidal positions added with a random offset a line in training (the authors' code)."""
    dropout: Probability = 0.0
    """Dropout in the blocks (the authors' code: 0)."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Model:
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width} is not divisible by model.heads={self.heads}")
        if self.places == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"model.width={self.width} makes heads of {self.width // self.heads}: rotary places want an even number; "
                "change model.heads, or set model.places=sinusoidal"
            )
        return self

    @property
    def size(self) -> str:
        """Width, depth and heads, as `pretrain.sizes` has them."""
        return f"{self.width}x{self.depth}x{self.heads}"

    def sized(self, size: str) -> Model:
        """This model as large as `size` says, or itself for an empty one. Raises ValueError for an impossible size."""
        if not size:
            return self
        width, depth, heads = map(int, size.split("x"))
        return Model(**self.model_dump() | {"width": width, "depth": depth, "heads": heads})


class Codebook(Section):
    clusters: Annotated[int, Field(ge=2)] = 4096
    """k of k-means: the number of labels that masked steps are predicted among (paper: 4,096)."""
    features: Literal["pixels", "gradients", "random", "encoder"] = "gradients"
    """What describes a step: its pixels, gradient histograms, a random network, or the encoder that `encoder_uri` names; of those that need no encoder, gradients read as well as pixels. An encoder that has seen transcriptions is worth most (docs/method.md)."""
    window: Annotated[int, Field(ge=8, le=64, multiple_of=8)] = 16
    """Width in px of the window, centred on a step, that pixels and gradients describe."""
    components: Positive = 32
    """Principal components kept of a step's features before k-means."""
    sample_lines: Positive = 20000
    """Lines, about, from which steps are drawn for PCA and k-means: each is drawn by a hash of its id."""
    seed: Seed = 0
    """Seed of the sample, the PCA and k-means."""


class Mask(Section):
    start: Probability = 0.1
    """Masking probability of a step at the start of pre-training."""
    end: Probability = 0.6
    """Masking probability at the end; it rises linearly with progress (paper, change 1; the form is our choice)."""
    span: Positive = 2
    """Steps masked together: 1 draws each step alone as the authors' code does, 2 hides about one letter."""
    visible_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the loss on visible steps beside the loss on masked ones (paper, change 2; the value is our choice)."""
    ratio: Literal["rising", "random"] = "rising"
    """The probability rises with progress (paper), or each line draws one evenly between `start` and `end` (R²MAE)."""
    hide: Literal["noise", "token", "skip"] = "skip"
    """How a step is hidden: noise for pixels (the authors' code), a token after the stem, or left out of the encoder."""
    predict: Literal["labels", "pixels"] = "labels"
    """What is predicted of a step: its label (paper), or its normed pixels as masked auto-encoders do."""


class Training(Section):
    steps: Positive = 10000
    """Optimiser steps."""
    batch: Positive = 32
    """Lines in one step, over all workers."""
    fill: Literal["lines", "tokens"] = "lines"
    """`lines`: always `batch` lines; `tokens`: as many as fill the steps of `batch` lines of mean width, so that the widest lines need no more memory."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-4
    """Peak learning rate of AdamW after the warm-up; it falls to zero along a cosine."""
    warmup: Probability = 0.06
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay on matrices."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest gradient norm."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints: what a kill can cost at most."""
    seed: Seed = 0
    """Seed of initial weights, order of lines, masks and augmentation."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Ray workers that train data-parallel; 0 trains inside the calling process."""
    shares: Annotated[int, Strict(), Field(ge=1, le=64)] = 4
    """Equal parts of a batch whose gradients are made one by one and averaged: a result is the same for any workers that divide it."""
    sizes: tuple[Size, ...] = ()
    """Other encoders beside `model`, as width x depth x heads such as "192x6x3": each is pre-trained and fine-tuned too, and the best on validation is kept."""
    probe_labels: Annotated[int, Field(ge=0)] = 0
    """Labelled lines of which a linear CTC probe of the frozen encoder is made some eight times along pre-training; 0: none."""

    @model_validator(mode="after")
    def _workers_share_a_batch_evenly(self) -> Training:
        if self.shares & (self.shares - 1):
            raise ValueError(f"pretrain.shares={self.shares} is no power of two: gradients are added pair by pair")
        if self.workers and self.shares % self.workers:
            raise ValueError(
                f"pretrain.workers={self.workers} does not divide pretrain.shares={self.shares}: "
                "set pretrain.shares to a power of two that it divides"
            )
        return self


class Sweep(Section):
    starts: Annotated[tuple[Start, ...], Field(min_length=1)] = ("scratch", "transfer", "pretrained", "both")
    """Where fine-tuning starts from; `transfer` and `both` need `transfer_uri` and are left out without it."""
    budgets: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1000,)
    """Numbers of labelled lines; smaller sets are nested in larger ones."""
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] = (1e-3,)
    """Peak learning rates tried for every start; the better one on validation is kept."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """One run for each seed, start, budget and learning rate."""
    steps: Annotated[int, Field(ge=4)] = 3000
    """Cap of fine-tuning steps, the same for every start."""
    transfer_steps: Positive = 3000
    """Steps of training on the transfer lines, before fine-tuning, for `transfer` and `both`."""
    transfer_learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of that training: one for both, whatever is tried afterwards."""
    batch: Positive = 16
    """Lines in one step of fine-tuning and of transfer training."""
    decoder: Decoding = "ctc"
    """What makes characters of steps: `ctc`, one linear layer, or `autoregressive`, the paper's decoder: slower, on top of any start."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor by which each layer below the head learns slower where a start brings a trained encoder; 1: all alike."""
    frozen: Probability = 0.0
    """Share of the steps in which an encoder that a start brings trained is left as it is, while the head learns."""
    replay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the lines of fine-tuning that are old ones, of the transfer lines, where a start was trained on them: against forgetting."""
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the weights of a start that is a trained recogniser which stays in the result: against forgetting."""
    validations: Annotated[int, Field(ge=4, multiple_of=4)] = 12
    """How often a run is validated, evenly over its steps; the best checkpoint on validation is kept."""
    jobs: Annotated[int, Field(ge=0)] = 2
    """Fine-tuning runs at a time, one thread each, as Ray tasks; 0 runs them one after another in this process."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> Sweep:
        for name in ("starts", "budgets", "learning_rates", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(
                    f"sweep.{name}={list(values)} names a value twice: the same run cannot be made two times"
                )
        return self


class Gate(Section):
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of every interval."""
    min_documents: Annotated[int, Field(ge=4)] = 4
    """Test documents below which no verdict is given."""
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.005
    """How much higher than the champion's the CER of a protected set may be, as a share: 0.005 is half a point."""
    slices: tuple[Annotated[str, Field(pattern=r"^(source|length|contrast|sharpness)=.+$")], ...] = ()
    """Slices of the test lines that are protected like old domains, as the report names them: "source=registers", "length=short", "contrast=lowest third"."""
    small_slices: Literal["shown", "block"] = "shown"
    """What a protected set of too few documents does: it is `shown`, or it must `block` a promotion until more is labelled."""
    ece: Annotated[float, Field(gt=0.0, le=1.0)] = 0.15
    """How far confidence may be from the truth in the mean (expected calibration error on the test lines)."""
    test_uses: Positive = 20
    """Verdicts on the same test lines from which on the report warns that they are worn."""


class Registry(Section):
    model: Annotated[str, Field(pattern=r"^[^'\"`/:]+$")] = "maskocr"
    """Name of the registered model in MLflow, without quotes, slashes and colons, which MLflow cannot look for."""
    experiment: Annotated[str, Field(min_length=1)] = "maskocr"
    """Name of the MLflow experiment."""


class Retrain(Section):
    min_lines: Positive = 1000
    """New lines, accepted by domain fit, that are enough to train again."""
    drift: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Share of the new lines that lie where no labelled line lies, as domain fit sees it, that is enough to train again."""
    max_age_days: Positive = 90
    """Age of the champion in days from which on any new line is enough to train again."""
    settle_minutes: Annotated[float, Field(ge=0.0)] = 10.0
    """Age in minutes below which an object waits for the next run: the rest of its pair may still be on its way."""
    abandoned_hours: Annotated[float, Field(gt=0.0)] = 72.0
    """Hours after which the unfinished claim of another run is taken over: longer than any run takes."""
    keep_perplexity: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """A given codebook is kept while its perplexity on new lines is at least this share of that on its own lines."""


class Config(Section):
    """Everything that decides a result. Where it runs (image, GPUs, secrets) is no part of it."""

    recipe: str
    """The recipe this configuration was made from."""
    data: Data = Data()
    quality: Quality = Quality()
    fit: Fit = Fit()
    model: Model = Model()
    codebook: Codebook = Codebook()
    mask: Mask = Mask()
    pretrain: Training = Training()
    sweep: Sweep = Sweep()
    gate: Gate = Gate()
    registry: Registry = Registry()
    retrain: Retrain = Retrain()

    @model_validator(mode="after")
    def _sizes_can_be(self) -> Config:
        sizes = [self.model.size]
        for size in self.pretrain.sizes:
            try:
                sizes.append(self.model.sized(size).size)
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"pretrain.sizes: {size} cannot be: {message}") from None
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"pretrain.sizes={list(self.pretrain.sizes)} names a size twice, or that of model itself")
        return self

    @model_validator(mode="after")
    def _components_are_there(self) -> Config:
        book, there = self.codebook, self.numbers_of_a_step
        if there and book.components > there:
            raise ValueError(
                f"codebook.components={book.components} exceeds the {there} numbers that codebook.features={book.features} "
                f"describes a step of data.height={self.data.height} by"
            )
        return self

    @property
    def numbers_of_a_step(self) -> int | None:
        """How many numbers describe a step before their principal components; None where a network describes it."""
        height, book = self.data.height, self.codebook
        return {"pixels": height * book.window, "gradients": height // STEP * ORIENTATIONS}.get(book.features)

    def demand_old_lines(self, transfer_is_model: bool) -> None:
        """Raises ValueError if old lines are to be replayed and a trained recogniser stands where they would come from."""
        if transfer_is_model and self.sweep.replay and "transfer" in self.sweep.starts:
            raise ValueError(
                f"sweep.replay={self.sweep.replay:g} draws old lines, and transfer_uri is a trained recognizer, which brings "
                "none: give its lines as transfer_uri, or set sweep.replay=0 (sweep.average needs no lines)"
            )

    def digest(self, sections: tuple[str, ...]) -> str:
        """sha256 of the named sections as canonical JSON: what a stage that reads only these depends on.

        How many work on it is left out: with more or fewer, unfinished work is gone on with, and
        the result is the same to the bit where each has one thread (docs/training.md).
        """
        chosen = {
            name: getattr(self, name).model_dump(mode="json", exclude=HANDS.get(name)) for name in sorted(sections)
        }
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def load(recipe: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The only way to a Config: a named recipe with `section.field=value` overrides (values as JSON, or plain text).

    Raises ValueError, with the nearest known name, for an unknown recipe, section or field and for an impossible value.
    """
    from maskocr_core import recipes

    if recipe not in recipes.RECIPES:
        raise ValueError(
            f"unknown recipe {recipe!r}{_nearest(recipe, recipes.RECIPES)}; known: {', '.join(recipes.RECIPES)}"
        )
    tree = recipes.RECIPES[recipe]().model_dump()
    for override in overrides:
        path, equals, text = override.partition("=")
        section, dot, field = path.partition(".")
        if not (equals and dot):
            raise ValueError(
                f"override {override!r} is not of the form section.field=value, such as pretrain.steps=500"
            )
        if not isinstance(tree.get(section), dict):
            known = [name for name, value in tree.items() if isinstance(value, dict)]
            raise ValueError(
                f"unknown section {section!r} in {override!r}{_nearest(section, known)}; known: {', '.join(known)}"
            )
        if field not in tree[section]:
            raise ValueError(
                f"unknown field {path!r}{_nearest(field, tree[section])}; known in {section}: {', '.join(tree[section])}"
            )
        tree[section][field] = _value(text)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":  # our own sentences name the fields
            raise ValueError(message) from None
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {message} (given: {first['input']!r})") from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
