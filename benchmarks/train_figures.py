"""From rounds of `train.py` to figures with their goals and spreads, and from its result to Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.results import figure, shown

OURS = "skip"
ROUNDS = 5  # fewer are a trial
OF_PEAK = {"pilot": 0.5}  # goals for the blocks; of the larger ones:
OF_PEAK_LARGER = 0.7
AHEAD = {"obvious": 1.4, "authors": 1.4}
WORKERS = 1.8
PADDING = 0.05
TITLES = {
    "skip": "**maskocr**, hidden steps left out (`mask.hide=skip`)",
    "linear": "**maskocr**, the same with the authors' linear patch (`model.stem=linear`)",
    "two": "**maskocr**, a batch in two shares instead of four (`pretrain.shares=2`)",
    "noise": "**maskocr**, noise over hidden steps (`mask.hide=noise`)",
    "obvious": "`nn.TransformerEncoder`, batches as they come",
    "bucketed": "`nn.TransformerEncoder`, in our batches of similar width",
    "authors": "the paper authors' model class",
    "ketos": "kraken's `ketos pretrain`, 48 px",
}
PARTS = {
    "data": "batches (lines decoded already)",
    "labels": "labels",
    "stem": "stem",
    "blocks": "blocks",
    "asking": "cross-attention for hidden steps",
    "head": "heads",
    "loss": "losses",
    "optimiser": "gradient norm, optimiser",
    "rest": "the rest: masks, gathering, adding gradients",
}

Figure = dict[str, Any]
Rounds = list[dict[str, Any]]


def all_of(run: dict[str, Any]) -> dict[str, Figure]:
    """Every figure by name; run: what `train.measured` gives."""
    found = {}
    for recipe, rounds in run["profile"].items():
        found |= _profile(recipe, rounds)
    for recipe, share in run["padding"].items():
        found[f"padding_{recipe}"] = figure([share], "of a batch's steps", "lower", PADDING)
    found |= _race(run["race"])
    found |= _labels(run["labels"])
    if run["workers"]:
        speeds = [{name: _speed(answer) for name, answer in row.items()} for row in run["workers"]]
        for name in speeds[0]:
            found[name] = figure([row[name] for row in speeds], "lines/s", "higher")
        ratios = [row["workers_2"] / row["workers_1"] for row in speeds]
        found["workers_2_over_1"] = figure(ratios, "×", "higher", WORKERS)
        for count in (1, 2):
            waits = [row[f"workers_{count}"]["waited"] / row[f"workers_{count}"]["seconds"] for row in run["workers"]]
            found[f"data_wait_{count}"] = figure(waits, "of the time of training", "lower")
        found["apart_2_over_1"] = figure([row["apart_2"] / row["apart_1"] for row in speeds], "×", "higher")
    return found


def _profile(recipe: str, rounds: Rounds) -> dict[str, Figure]:
    """Peak and speed, and of each part its share of the step and its operations a second over the peak."""
    found = {
        f"peak_{recipe}": figure([row["peak"] / 1e9 for row in rounds], "GFLOP/s", "higher"),
        f"step_{recipe}": figure([_speed(row) for row in rounds], "lines/s", "higher"),
    }
    for part in rounds[0]["parts"]:
        spent = [row["parts"][part] for row in rounds]
        shares = [each["seconds"] / row["seconds"] for each, row in zip(spent, rounds)]
        found[f"share_{recipe}_{part}"] = figure(shares, "of a step", "lower")
        if spent[0]["operations"]:
            rates = [each["operations"] / each["seconds"] / row["peak"] for each, row in zip(spent, rounds)]
            goal = OF_PEAK.get(recipe, OF_PEAK_LARGER) if part == "blocks" else None
            found[f"of_peak_{recipe}_{part}"] = figure(rates, "of the peak", "higher", goal)
    return found


def _race(rounds: Rounds) -> dict[str, Figure]:
    """Speeds, and our own over each of the others by wall time; over kraken by processor time."""
    found = {}
    for name in rounds[0] if rounds else ():
        found[f"train_{name}"] = figure([_speed(row[name]) for row in rounds], "lines/s", "higher")
        found[f"train_cpu_{name}"] = figure(
            [_speed(row[name], "cpu_seconds") for row in rounds], "lines/CPU-s", "higher"
        )
        if name != OURS:
            clock = "cpu_seconds" if name == "ketos" else "seconds"
            ratios = [_speed(row[OURS], clock) / _speed(row[name], clock) for row in rounds]
            found[f"train_over_{name}"] = figure(ratios, "×", "higher", AHEAD.get(name))
    if "train_obvious" in found:
        ratios = [_speed(row["noise"]) / _speed(row["obvious"]) for row in rounds]
        found["train_noise_over_obvious"] = figure(ratios, "×", "higher", AHEAD["obvious"])
    if "train_authors" in found:
        ratios = [_speed(row["linear"]) / _speed(row["authors"]) for row in rounds]
        found["train_linear_over_authors"] = figure(ratios, "×", "higher", AHEAD["authors"])
    return found


def _labels(rounds: Rounds) -> dict[str, Figure]:
    """Speeds of whole trainings, and of stored labels over those made at every meeting."""
    found = {}
    for features in _labelled(rounds):
        speeds = {how: [_speed(row[f"{features}_{how}"]) for row in rounds] for how in ("met", "stored")}
        for how, own in speeds.items():
            found[f"labels_{features}_{how}"] = figure(own, "lines/s", "higher")
        ratios = [stored / met for met, stored in zip(speeds["met"], speeds["stored"])]
        found[f"labels_{features}_stored_over_met"] = figure(ratios, "×", "higher")
    return found


def _labelled(rounds: Rounds) -> list[str]:
    """What the labels of a race were made of."""
    return [name.removesuffix("_met") for name in (rounds[0] if rounds else ()) if name.endswith("_met")]


def _speed(answer: dict[str, float], clock: str = "seconds") -> float:
    return answer["lines"] / answer[clock]


def table(result: dict[str, Any]) -> str:
    """Operations a second, where a step's time goes, the race, and two workers against one."""
    figures, run = result["figures"], result["runs"][0]
    blocks = []
    if run["profile"]:
        recipes = sorted(run["profile"], key=lambda name: -figures[f"step_{name}"]["value"])  # the smallest first
        blocks += [_peak_table(figures, recipes), _share_table(figures, recipes)]
    if run["padding"]:
        blocks.append(_padding_line(figures))
    if run["race"]:
        blocks.append(_race_table(figures, run))
    if run.get("labels"):
        blocks.append(_labels_table(figures, run))
    if run["workers"]:
        blocks.append(_workers_line(figures, run))
    return "\n\n".join([*blocks, _foot(result, run)])


def _peak_table(figures: dict[str, Figure], recipes: list[str]) -> str:
    rows = [
        "| forward and backward | a large matrix product | blocks, over it | goal | stem, over it | lines/s of the whole step |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        blocks, stem = figures[f"of_peak_{recipe}_blocks"], figures[f"of_peak_{recipe}_stem"]
        cells = [
            f"`{recipe}`",
            f"{shown(figures[f'peak_{recipe}'], '.1f')} GFLOP/s",
            shown(blocks, ".2f"),
            f"{blocks['goal']:.2f}",
            shown(stem, ".2f"),
            shown(figures[f"step_{recipe}"], ".1f"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _share_table(figures: dict[str, Figure], recipes: list[str]) -> str:
    rows = [f"| share of a step | {' | '.join(f'`{recipe}`' for recipe in recipes)} |", f"|---|{'---|' * len(recipes)}"]
    for part, title in PARTS.items():
        names = [f"share_{recipe}_{part}" for recipe in recipes]
        if any(name in figures for name in names):
            cells = [_percent(figures[name]) if name in figures else "" for name in names]
            rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _padding_line(figures: dict[str, Figure]) -> str:
    shares = {name.removeprefix("padding_"): _percent(figures[name]) for name in figures if name.startswith("padding_")}
    said = ", ".join(f"{share} (`{name}`)" for name, share in shares.items())
    return f"Of a batch's steps so much is padding, where less than {100 * PADDING:g} % is the goal: {said}."


def _race_table(figures: dict[str, Figure], run: dict[str, Any]) -> str:
    rows = [
        f"| training steps, `{run['recipe']}` | parameters | lines/s | lines per CPU second | speed of the first row over it |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in TITLES if name in run["parameters"]):
        ratio = f"train_over_{name}"
        cells = [
            TITLES[name],
            f"{run['parameters'][name] / 1e6:.2f} M",
            shown(figures[f"train_{name}"], ".1f"),
            shown(figures[f"train_cpu_{name}"], ".1f"),
            shown(figures[ratio], ".2f") if ratio in figures else "",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    if same := figures.get("train_noise_over_obvious"):
        rows.append(
            f"\nWith noise over hidden steps, the same work as `nn.TransformerEncoder` does, maskocr's speed over it is {shown(same, '.2f')} ×."
        )
    if alike := figures.get("train_linear_over_authors"):
        rows.append(f"\nWith their linear patch, maskocr's speed over the authors' class is {shown(alike, '.2f')} ×.")
    rows += [f"\nLeft out: {TITLES[name]} ({reason})." for name, reason in run["left_out"].items()]
    return "\n".join(rows)


def _labels_table(figures: dict[str, Figure], run: dict[str, Any]) -> str:
    rows = [
        f"| whole pre-training, `{run['recipe']}`, {run['meetings']} meetings of each line; labels of | made at every meeting, lines/s | made once and stored | stored over made at every meeting |",
        "|---|---|---|---|",
    ]
    for features in _labelled(run["labels"]):
        met, stored = (shown(figures[f"labels_{features}_{how}"], ".1f") for how in ("met", "stored"))
        rows.append(
            f"| `{features}` | {met} | {stored} | {shown(figures[f'labels_{features}_stored_over_met'], '.2f')} |"
        )
    return "\n".join(rows)


def _workers_line(figures: dict[str, Figure], run: dict[str, Any]) -> str:
    one, two, ratio = (figures[name] for name in ("workers_1", "workers_2", "workers_2_over_1"))
    return (
        f"Two workers of one thread train `{run['recipe']}` at {shown(two, '.1f')} lines/s, one at {shown(one, '.1f')}: "
        f"{shown(ratio, '.2f')} ×, goal {ratio['goal']:g}.{_waits(figures)}{_apart(figures)}"
    )


def _waits(figures: dict[str, Figure]) -> str:
    if "data_wait_2" not in figures:
        return ""
    one, two = (_percent(figures[f"data_wait_{count}"]) for count in (1, 2))
    return f" One waits for lines, which they read from shards and decode meanwhile, {one} of the time, two {two}."


def _apart(figures: dict[str, Figure]) -> str:
    if "apart_2_over_1" not in figures:
        return ""
    return (
        " Two trainings that are none of each other's, a core each, are together as fast as "
        f"{shown(figures['apart_2_over_1'], '.2f')} of one that has the machine to itself: more, this machine does not give to two."
    )


def _foot(result: dict[str, Any], run: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(run["libraries"].items()))
    data = ", ".join(f"{name} (`{digest[:12]}`)" for name, digest in result["data"].items())
    rounds = max(
        *(len(run.get(part, [])) for part in ("race", "labels", "workers")), *map(len, run["profile"].values()), 0
    )
    # Padding is counted, not timed: it is the same at each time.
    trial = "" if rounds >= ROUNDS or not rounds else "**A trial that proves nothing but that the benchmark runs:** "
    timed = (
        f" on {result['cpu']}, one thread each: median and [least, most] of {rounds} rounds, ratios of the same round"
    )
    return f"{trial}`{result['command']}`{timed if rounds else ''}; {run['lines']:,} lines of {run['mean_width']:.0f} px in the mean; {data}; {libraries}."


def _percent(figure: Figure) -> str:
    return f"{100 * figure['value']:.1f} %"
