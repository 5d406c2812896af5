"""The computed plan of a run: its formulas against the modules, autograd and the reader that they speak of."""

import json
import math
from collections import Counter
from itertools import islice

import numpy as np
import packed
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from maskocr_core import cli, config
from maskocr_core.config import STEP, Data
from maskocr_core.data import batches, lines
from maskocr_core.model import masking
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.masked import masked_model
from maskocr_core.model.step_features import Pixels
from maskocr_core.planning import model_costs, table
from maskocr_core.planning.assumptions import Assumptions, assume
from maskocr_core.planning.hardware import DEVICES
from maskocr_core.planning.model_costs import Line
from maskocr_core.planning.plan import ROWS_PER_GROUP, batch_line, plan
from maskocr_core.recipes import PAPER_LINES, PAPER_SIZES
from maskocr_core.services import storage

BATCH, STEPS, HIDDEN, CLASSES = 3, 24, 10, 96
kinds = pytest.mark.parametrize("hide", ["noise", "token", "skip"])
stems = pytest.mark.parametrize("stem", ["linear", "convolutional", "slim"])


def tiny(stem="convolutional", hide="skip", *, width=64, depth=2):
    model = [f"model.width={width}", f"model.depth={depth}", "model.heads=4", f"model.stem={stem}"]
    labels = [f"codebook.clusters={CLASSES}", "codebook.features=pixels"]
    return config.load("base", [*model, f"mask.hide={hide}", *labels])


def built(settings):
    model = settings.model
    encoder = Encoder(settings.data.height, model.width, model.depth, model.heads, model.stem, model.dropout)
    return masked_model(encoder, settings.mask.hide, model_costs.outputs(settings))


def a_batch(height=40):
    torch.manual_seed(0)
    mask = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    mask[:, 5 : 5 + HIDDEN] = True
    return torch.rand(BATCH, 1, height, STEPS * STEP), torch.ones(BATCH, STEPS, dtype=torch.bool), mask


def as_line(hide):
    return Line(STEPS, STEPS, *((STEPS - HIDDEN, HIDDEN) if hide == "skip" else (STEPS, 0)))


def planned(recipe="paper-19m", overrides=(), **assumed):
    return plan(config.load(recipe, overrides), assume(**assumed))


# What the formulas say of the model


@stems
@kinds
def test_parameters_are_those_of_the_modules(stem, hide):
    settings = tiny(stem, hide)
    model, counted = built(settings), model_costs.parameters(settings)
    assert counted["stem"] == sum(p.numel() for p in model.encoder.stem.parameters())
    assert counted["stem"] + counted["blocks"] == sum(p.numel() for p in model.encoder.parameters())
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("recipe", PAPER_SIZES)
def test_a_paper_size_has_the_parameters_that_its_name_says(recipe):
    settings = config.load(recipe)
    with torch.device("meta"):
        model = built(settings)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert recipe == f"paper-{encoder / 1e6:.0f}m"
    assert planned(recipe).encoder_parameters == encoder


def test_the_six_sizes_about_double_from_3_to_about_100_million():
    sizes = [planned(recipe).encoder_parameters for recipe in PAPER_SIZES]
    assert len(sizes) == 6 and sizes[0] < 3.5e6 and 80e6 < sizes[-1] < 120e6
    assert all(1.6 < after / before < 2.5 for before, after in zip(sizes, sizes[1:]))


@pytest.mark.parametrize("recipe", PAPER_SIZES)
def test_a_paper_recipe_is_for_50_million_lines_seen_as_often_as_the_plan_supposes(recipe):
    settings = config.load(recipe)
    assert settings.data.height == 40 and settings.codebook.clusters == 4096
    assert settings.pretrain.steps == planned(recipe).updates == math.ceil(2 * PAPER_LINES / settings.pretrain.batch)
    assert settings.pretrain.warmup * settings.pretrain.steps == pytest.approx(10_000, rel=0.01)


@stems
@kinds
def test_operations_are_those_that_torch_counts(stem, hide):
    settings = tiny(stem, hide)
    # Of the attention kernels of a CPU, torch counts the plain one only.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            hidden, visible = built(settings)(*a_batch())
        with FlopCounterMode(display=False) as backward:
            (hidden.sum() + visible.sum()).backward()
    line = as_line(hide)
    assert forward.get_total_flops() == BATCH * sum(model_costs.forward(settings, line).values())
    assert backward.get_total_flops() == BATCH * sum(model_costs.backward(settings, line).values())


def test_operations_of_labels_are_those_that_torch_counts():
    settings, F = tiny(), 32
    P = settings.data.height * settings.codebook.window
    book = Codebook(
        settings.data.height,
        Pixels(settings.codebook.window),
        *(torch.rand(size) for size in ((P,), (F, P), (CLASSES, F))),
    )
    ink, valid, _ = a_batch()
    with FlopCounterMode(display=False) as counter:
        book.labels(ink, valid)
    assert counter.get_total_flops() == BATCH * model_costs.labelling(settings, as_line("noise"))


@pytest.mark.parametrize("features", ["gradients", "random", "encoder"])
def test_every_kind_of_features_has_its_cost_and_pixels_as_target_have_none(features):
    settings = config.load("base", [f"codebook.features={features}"])
    assert model_costs.labelling(settings, as_line("noise")) > 0
    assert model_costs.labelling(config.load("base", ["mask.predict=pixels"]), as_line("noise")) == 0


@stems
@kinds
def test_what_is_kept_for_the_backward_pass_is_what_autograd_keeps(stem, hide):
    settings = tiny(stem, hide, depth=3)
    model, saved = built(settings), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor  # the tensor itself, or its memory would be given to the next one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for logits in model(*a_batch()):
            functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    formula = BATCH * sum(model_costs.kept(settings, as_line(hide), 4).values())
    assert formula <= kept <= 1.02 * formula  # what is left out: means and deviations of norms, masks


# What the masking does to a batch


@pytest.mark.parametrize("probability", [0.1, 0.35, 0.6])
@pytest.mark.parametrize("span", [1, 2, 3])
def test_steps_left_over_are_padded_to_the_line_that_has_most_of_them(probability, span):
    steps, together = 80, 64
    mask = config.Mask(hide="skip", span=span)
    line = batch_line(mask, steps, 0.0, probability, 0.0, together)
    torch.manual_seed(0)
    hidden = masking.sample(torch.ones(200 * together, steps, dtype=torch.bool), probability, span).sum(1)
    hidden = hidden.view(200, together).float()
    assert line.asked == pytest.approx(float(hidden.max(1).values.mean()), abs=2)
    assert line.seen == pytest.approx(float((steps - hidden).max(1).values.mean()), abs=2)


@kinds
def test_only_where_steps_are_left_out_does_a_higher_probability_make_a_step_cheaper(hide):
    def blocks(probability):
        ends = [f"mask.start={probability}", f"mask.end={probability}", f"mask.hide={hide}"]
        return planned(overrides=ends).forward["blocks"]

    assert (blocks(0.6) < blocks(0.1)) == (hide == "skip")


def test_a_ratio_drawn_for_each_line_is_padded_for_more_than_one_that_rises():
    rising, drawn = (planned(overrides=["mask.hide=skip", f"mask.ratio={ratio}"]) for ratio in ("rising", "random"))
    assert drawn.forward["blocks"] > rising.forward["blocks"]


# What a run takes


@settings(max_examples=25, deadline=None)
@given(st.floats(1e3, 1e10), st.floats(1.01, 100.0), st.sampled_from(sorted(DEVICES)))
def test_more_lines_take_in_proportion_more(count, factor, gpu):
    few, many = (planned("paper-3m", lines=n, gpu=gpu) for n in (count, count * factor))
    assert many.gpu_hours == pytest.approx(factor * few.gpu_hours)
    assert many.operations == pytest.approx(factor * few.operations)
    assert many.stored_bytes == pytest.approx(factor * few.stored_bytes)
    assert many.total_cost > few.total_cost and many.gets >= few.gets and many.shards >= few.shards
    assert few.memory_bytes == many.memory_bytes


@settings(max_examples=25, deadline=None)
@given(st.floats(64, 2048), st.floats(1.0, 4.0))
def test_wider_lines_and_larger_models_take_no_less(width, factor):
    few, many = (planned("paper-6m", mean_width=w) for w in (width, width * factor))
    assert many.operations >= few.operations and many.line_bytes >= few.line_bytes
    small, large = (planned(recipe, mean_width=width) for recipe in ("paper-6m", "paper-11m"))
    assert large.operations > small.operations and large.line_bytes > small.line_bytes


def test_more_processors_share_the_time_and_read_everything_each():
    one, eight = planned("paper-86m"), planned("paper-86m", gpus=8)
    assert eight.days < one.days / 7
    assert eight.gets == 8 * one.gets and eight.read_bytes == 8 * one.read_bytes


def test_the_slowest_of_products_memory_decoding_and_network_is_the_limit():
    plans = {
        "products": planned("paper-86m", gpu="l4"),
        "memory traffic": planned("paper-3m", gpu="l4"),
        "decoding": planned("paper-3m", cores_per_gpu=1),
        "network": planned("paper-3m", network=0.1),
    }
    for limit, found in plans.items():
        assert found.limit == limit and found.gpu_hours == found.limits[limit] == max(found.limits.values())


def test_utilisation_is_the_share_of_the_peak_that_products_reach():
    found = planned("paper-86m", utilisation=0.5)
    assert found.limits["products"] * 3600 * 0.5 * DEVICES["h100"].peak == pytest.approx(found.operations)


def test_a_batch_is_taken_in_its_shares_and_each_must_fit():
    whole, parts = (planned("paper-86m", [f"pretrain.shares={shares}"]) for shares in (1, 8))
    assert (whole.lines_at_once, parts.lines_at_once) == (1024, 128)
    # The parts hold gradients on three levels of their sum beside the one that is being made.
    assert parts.state_bytes - whole.state_bytes == 3 * 4 * sum(parts.parameters.values())
    with pytest.raises(ValueError, match="paper-86m: .* do not fit into 90% of 24 GB: raise pretrain.shares=1"):
        planned("paper-86m", ["pretrain.shares=1"], gpu="l4")


@pytest.mark.parametrize("recipe", PAPER_SIZES)
@pytest.mark.parametrize("gpu", ["h100", "a100", "l4"])
def test_every_paper_size_fits_into_every_gpu_as_it_stands(recipe, gpu):
    assert planned(recipe, gpu=gpu).memory_bytes <= 0.9 * DEVICES[gpu].memory


def test_processors_that_do_not_divide_the_shares_are_refused():
    with pytest.raises(ValueError, match="paper-19m: 3 processors do not divide pretrain.shares=8"):
        planned(gpus=3)


# What the store holds and is asked


def test_the_reader_asks_the_store_as_often_as_the_plan_says(tmp_path, monkeypatch):
    asked = Counter()

    class Counted:
        closed = False

        def __init__(self, uri):
            asked["requests"] += 1  # its size
            self.file = open(uri, "rb")

        def read(self, count=-1):
            asked["requests"] += 1
            return self.file.read(count)

        def __getattr__(self, name):
            return getattr(self.file, name)

    random = np.random.default_rng(0)
    noise = ((str(number), random.integers(0, 255, (32, 32), np.uint8)) for number in range(2 * ROWS_PER_GROUP))
    packs = packed.pack(tmp_path, {"unlabeled": noise}, shard_lines=ROWS_PER_GROUP)
    stream = packed.stream(packs, "unlabeled", Data(height=32))
    monkeypatch.setattr(storage, "open_input", lambda uri: pa.PythonFile(Counted(uri), mode="r"))
    for _ in islice(batches.training(stream, batch=64, seed=0), 2 * ROWS_PER_GROUP // 64):
        pass
    assert asked["requests"] == planned(lines=2 * ROWS_PER_GROUP).gets_per_epoch


def test_shards_and_row_groups_are_those_of_the_data():
    assert ROWS_PER_GROUP == lines.ROWS_PER_GROUP
    found = planned(overrides=["data.shard_lines=1000"], lines=10_500, bytes_per_line=3000)
    assert found.shards == 11 and found.stored_bytes == 31.5e6
    assert found.puts == 11  # 3 MB each: one request
    large = planned(overrides=["data.shard_lines=10000"], lines=10_000, bytes_per_line=3000)
    assert large.puts == 4 + 2  # 30 MB in parts of 8 MiB, with begin and end


def test_costs_are_amounts_times_prices():
    prices = {"price_per_gpu_hour": 7, "price_per_gb_month": 2, "price_per_1000_gets": 3, "price_per_1000_puts": 5}
    found = planned(months=4, **prices)
    assert found.cost["processors"] == pytest.approx(7 * found.gpu_hours)
    assert found.cost["storage"] == pytest.approx(found.stored_bytes / 1e9 * 4 * 2)
    assert found.cost["requests"] == pytest.approx((3 * found.gets + 5 * found.puts) / 1000)
    assert found.total_cost == pytest.approx(sum(found.cost.values()))
    assert planned(**dict.fromkeys(prices, 0)).total_cost == 0


# As a command


def shown(*words):
    return CliRunner().invoke(cli.app, ["plan", *words], env={"COLUMNS": "200"})


def test_the_table_says_that_it_is_computed_and_names_every_assumption():
    done = shown("--lines", "50e6")
    assert done.exit_code == 0, done.output
    assert table.CAUTION in done.output and all(recipe in done.output for recipe in PAPER_SIZES)
    for flag, value, _ in table.supposed(Assumptions()):
        assert f"{flag} {value}" in done.output
    assert "an example, no offer" in done.output


def test_json_holds_what_the_table_shows_and_flags_change_it():
    told = json.loads(
        shown("--json", "--recipe", "paper-3m", "--recipe", "small", "--lines", "1e6", "--gpus", "2").output
    )
    assert [each["recipe"] for each in told["plans"]] == ["paper-3m", "small"]
    assert told["assumptions"]["lines"] == 1e6 and told["assumptions"]["gpus"] == 2
    assert told["plans"][0] == json.loads(json.dumps(planned("paper-3m", lines=1e6, gpus=2).as_json()))
    assert told["note"] == table.CAUTION


def test_prices_of_a_file_stand_in_for_the_examples_and_a_flag_for_both(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"price_per_gpu_hour": 10, "price_per_gb_month": 1}')
    words = ["--recipe", "paper-3m", "--json", "--prices", str(path)]
    assert json.loads(shown(*words).output)["assumptions"]["price_per_gpu_hour"] == 10
    told = json.loads(shown(*words, "--price-per-gpu-hour", "20").output)["assumptions"]
    assert (told["price_per_gpu_hour"], told["price_per_gb_month"]) == (20, 1)


@pytest.mark.parametrize("content", ["[1]", "{", '{"price_per_gpu": 1}'])
def test_a_file_that_names_no_prices_is_refused(tmp_path, content):
    path = tmp_path / "prices.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="prices.json"):
        assume(path)


@pytest.mark.parametrize(
    "flag, value",
    [("lines", 0), ("passes", -1), ("padding", 1), ("utilisation", 1.1), ("gpus", 0), ("price_per_gpu_hour", -1)],
)
def test_an_impossible_assumption_is_refused_by_the_name_of_its_flag(flag, value):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')}: .*given: {value}"):
        assume(**{flag: value})


def test_every_assumption_says_what_it_is():
    assert all(field.description for field in Assumptions.model_fields.values())
