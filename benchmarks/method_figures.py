"""The figures of `method.py`, and its table for the documentation."""

from __future__ import annotations

import re
from typing import Any

from benchmarks import results
from maskocr_core.judging.comparison import TITLES

USUAL = "pretrain.steps=5000"
FEATURES = "codebook.features="


def figures(packs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How much lower than scratch each start is, with the spread over seeds, and how pre-training stands to transfer."""
    goals = {("fr_hand", 300): 0.25, ("fr_hand", 1000): 0.20, ("medieval_hand", 1000): 0.20}
    found = {}
    for pack in packs:
        by_seed = {(row["start"], row["budget"], row["decoder"]): row["by_seed"]["all"] for row in pack["rows"]}
        for row in pack["rows"]:
            kind = row["budget"], row["decoder"]
            base, own = by_seed["scratch", *kind], row["by_seed"]["all"]
            key = _key(pack, row)
            found[f"cer_{key}"] = {
                "value": row["cer"]["all"]["value"],
                "unit": "CER on the validation lines, mean over seeds",
                "goal": None,
                "better": "lower",
                "spread": [min(own), max(own)],
            }
            if row["start"] != "scratch":
                goal = goals.get((pack["pack"], row["budget"])) if row["start"] == "pretrained" else None
                found[f"lower_than_scratch_{key}"] = _lower(own, base, "scratch", goal)
            if row["start"] in ("pretrained", "both") and ("transfer", *kind) in by_seed:
                found[f"lower_than_transfer_{key}"] = _lower(own, by_seed["transfer", *kind], "transfer", 0.0)
    return found


def _key(pack: dict[str, Any], row: dict[str, Any]) -> str:
    """What the figures of a row are called by."""
    decoder = "" if row["decoder"] == "ctc" else f"_{row['decoder']}"
    told = "".join("_" + re.sub("[^a-z0-9]+", "_", word) for word in told_apart(pack))
    return f"{pack['pack']}_{row['budget']}_{row['start']}{decoder}{told}"


def told_apart(pack: dict[str, Any]) -> tuple[str, ...]:
    """What sets the pre-training of these rows apart from the first of a pack, which a recogniser made the labels of."""
    rounds, changes = pack.get("rounds", 1), pack["changes"]  # rows of before rounds were asked for say nothing of them
    features = next((change.removeprefix(FEATURES) for change in changes if change.startswith(FEATURES)), "gradients")
    told = [f"round {rounds}"] if rounds > 1 else []
    told += [f"labels of {features}"] if features != "encoder" else []
    told += [f"the last round with {change}" for change in pack.get("last_round", [])]
    told += [f"fine-tuned with {change}" for change in pack.get("fine_tuning", [])]
    return (*told, *(change for change in changes if change != USUAL and not change.startswith(FEATURES)))


def _said(pack: dict[str, Any]) -> str:
    """What a title says of it."""
    return "".join(f", {word}" for word in told_apart(pack))


def _lower(own: list[float], other: list[float], than: str, goal: float | None) -> dict[str, Any]:
    """How much lower the mean over seeds is, as a share, and each seed for itself."""
    shares = [1 - one / another for one, another in zip(own, other, strict=True)]
    return {
        "value": 1 - sum(own) / sum(other),
        "unit": f"share of the CER of {than}",
        "goal": goal,
        "better": "higher",
        "spread": [min(shares), max(shares)],
    }


def table(result: dict[str, Any]) -> str:
    """A row a pack, budget, decoder and start: CER on validation along fine-tuning, and against scratch and transfer."""
    lines = [
        "| lines | labels | start | learning rate | validation CER after ¼ of the steps | after ½ | after all | lower than scratch | goal | points to transfer [95 %] | CPU minutes of fine-tuning |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    shown: dict[tuple[Any, ...], list[float]] = {}  # the first row of each kind that is not pre-trained
    for run in result["runs"]:
        for row in run["rows"]:
            apart = _said(run)
            if row["start"] not in ("pretrained", "both"):
                kind, came = (run["pack"], row["budget"], row["decoder"], row["start"]), row["by_seed"]["all"]
                if shown.get(kind) == came:  # it is the same however others are pre-trained
                    continue
                apart = f", beside {', '.join(told_apart(run))}" if kind in shown else ""
                shown.setdefault(kind, came)
            lower = result["figures"].get(f"lower_than_scratch_{_key(run, row)}")
            cells = [
                run["pack"],
                f"{row['budget']:,}",
                TITLES[row["start"]] + ("" if row["decoder"] == "ctc" else f", {row['decoder']}") + apart,
                f"{row['learning_rate']:g}",
                *(results.percent(row["by_seed"][mark]) for mark in ("quarter", "half", "all")),
                _share(lower) if lower else "",
                f"{100 * lower['goal']:.0f} %" if lower and lower["goal"] else "",
                _points(row["differences"].get("transfer")),
                f"{row['cpu_minutes']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    said = [
        f"- {run['pack']}{_said(run)}, `{run.get('command', result['command'])}`: {run['lines']:,} validation lines of {run['documents']} documents, data `{run['data'][:12]}`, "
        + "".join(_pretraining(made) for made in run["pretraining"])
        + f"fine-tuning on {run['fine_tuned_on']}, commit "
        f"{results.short(run['commit'])}" + (f" and {', '.join(run['changes'])}" if run["changes"] else "")
        for run in result["runs"]
    ]
    return (
        "\n".join(lines) + f"\n\nMean and [least, most] of {len(result['seeds'])} seeds.\n\n" + ".\n".join(said) + "."
    )


def _pretraining(made: dict[str, Any]) -> str:
    budgets = " and ".join(f"{budget:,}" for budget in made["budgets"])
    return f"pre-training for {budgets} labels {made['metrics']['cpu_minutes']:.0f} CPU minutes{_along(made)}, "


def _along(made: dict[str, Any]) -> str:
    """How pre-training went: labels guessed at its end, and what a linear layer read on the frozen encoder, from first to last."""
    guessed = [look["masked_accuracy"] for look in made["along"] if "masked_accuracy" in look]
    probed = [look["probe_cer"] for look in made["along"] if "probe_cer" in look]
    said = f" ({100 * guessed[-1]:.0f} % of hidden labels guessed at its end" if guessed else ""
    if said and probed:
        last = made["metrics"]["probe_cer"]  # the log's last row may have been written before the last look
        said += f"; CER of a linear probe of the frozen encoder {100 * probed[0]:.0f} to {100 * last:.0f} %"
    return said + ")" if said else ""


def _points(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * difference[name] for name in ("value", "low", "high")))


def _share(figure: dict[str, Any]) -> str:
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * share for share in (figure["value"], *figure["spread"])))
