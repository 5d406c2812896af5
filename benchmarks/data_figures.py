"""From rounds of `data.py` to figures with their goals and spreads, and from its result to Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.results import figure, shown

LIMIT, OURS = "decode", "maskocr"
SHARE_OF_LIMIT, AHEAD, FLAT, LINEAR = 0.8, 1.0, 1.1, 1.1  # goals
TITLES = {
    "maskocr": "**maskocr**",
    "pairs": "**maskocr**, from image files with texts",
    "decode": "the limit",
    "decode_opencv": "OpenCV decoding alone",
    "files": "loose files, PyTorch `Dataset`",
    "webdataset": "WebDataset tar",
    "lmdb": "LMDB, PyTorch `Dataset`",
    "arrow": "Hugging Face `datasets`, map style",
    "streamed": "Hugging Face `datasets`, streamed Parquet",
}
READING = {
    "48": "48 px, nothing to scale; Pillow decodes for the peers, and alone is the limit",
    "48_own_decoder": "48 px; maskocr's own call decodes for all, and alone is the limit",
    "40": "scaled to 40 px; Pillow decodes for the peers, and with the scaling alone is the limit",
}
WHATS = {"ingest": "ingest", "validate": "QA (`validate`)", "fit": "domain fit (`fit`)", "read": "reading"}

Figure = dict[str, Any]
Rounds = list[dict[str, dict[str, float]]]


def all_of(
    counts: dict[str, int], reading: dict[str, Rounds], seen: dict[str, dict], ingest: Rounds, grown: list[dict]
) -> dict[str, Figure]:
    """Every figure by name; counts: of the lines raced over, as `data.prepare` gives them."""
    megabytes = counts["bytes"] / counts["lines"] / 1e6
    found = {}
    for section, rounds in reading.items():
        found |= _speeds(f"read_{section}", rounds, counts["read"], megabytes)
        found |= _ratios(f"read_{section}", rounds, SHARE_OF_LIMIT, AHEAD)
    found |= _speeds("ingest", ingest, counts["lines"], megabytes)
    # The peers neither check an image nor name its line, document and copies: no goal sets the two beside each other.
    found |= _ratios("ingest", ingest, None, None)
    for name, answer in seen.items():
        found[f"read_peak_{name}"] = figure([answer["peak_mib"]], "MiB", "lower")
        found[f"read_private_{name}"] = figure([answer["private_mib"]], "MiB", "lower")
    for what in dict.fromkeys(row["what"] for row in grown):
        found |= _growth(what, sorted((row for row in grown if row["what"] == what), key=lambda row: row["lines"]))
    return found


def _speeds(what: str, rounds: Rounds, lines: int, megabytes: float) -> dict[str, Figure]:
    found = {}
    for name in rounds[0]:
        speeds = [lines / row[name]["seconds"] for row in rounds]
        found[f"{what}_{name}"] = figure(speeds, "lines/s", "higher")
        found[f"{what}_{name}_mb"] = figure([speed * megabytes for speed in speeds], "MB/s", "higher")
    return found


def _ratios(what: str, rounds: Rounds, limit: float | None, peers: float | None) -> dict[str, Figure]:
    return {
        f"{what}_over_{name}": figure(
            [row[name]["seconds"] / row[OURS]["seconds"] for row in rounds],
            "×",
            "higher",
            limit if name == LIMIT else peers,
        )
        for name in rounds[0]
        if name not in (OURS, "pairs", f"{LIMIT}_opencv")
    }


def _growth(what: str, rows: list[dict]) -> dict[str, Figure]:
    """Seconds a million lines and peak memory at the largest size, and how both grew; the start of a stage counts in neither slope."""
    first, *_, last = rows
    found = {
        f"grown_{what}_peak": figure([last["peak_mib"]], "MiB", "lower"),
        f"grown_{what}_memory": figure([last["peak_mib"] / first["peak_mib"]], "×", "lower", FLAT),
    }
    if what != "read":  # an epoch is timed in the races; here it is only looked at
        found[f"grown_{what}_million"] = figure([last["seconds"] / last["lines"] * 1e6], "s per million lines", "lower")
        if len(rows) > 2:
            early, late = (_slope(a, b) for a, b in ((first, rows[-2]), (rows[-2], last)))
            found[f"grown_{what}_slope"] = figure([late / early], "×", "lower", LINEAR)
    return found


def _slope(small: dict, large: dict) -> float:
    return (large["seconds"] - small["seconds"]) / (large["lines"] - small["lines"])


def table(result: dict[str, Any]) -> str:
    """Speed and memory of reading, speed of ingest, and what growing data cost."""
    figures, run = result["figures"], result["runs"][0]
    blocks = [
        _race_table(figures, f"read_{section}", run["reading"][section][0], f"Reading into batches, {title}")
        for section, title in READING.items()
    ]
    blocks += [
        _memory_table(figures, run["seen"]),
        _race_table(figures, "ingest", run["ingest"][0], "Ingest; the limit is Parquet read and written by pyarrow"),
    ]
    blocks += [_growth_table(figures, run["grown"]), _foot(result, run)]
    return "\n\n".join(blocks)


def _race_table(figures: dict, what: str, names: dict, title: str) -> str:
    rows = [f"| {title} | lines/s | MB/s | maskocr's speed over it |", "|---|---|---|---|"]
    for name in (name for name in TITLES if name in names):
        ratio = f"{what}_over_{name}"
        cells = [TITLES[name], shown(figures[f"{what}_{name}"], ",.0f"), shown(figures[f"{what}_{name}_mb"], ".1f")]
        rows.append(f"| {' | '.join(cells)} | {shown(figures[ratio], '.2f') if ratio in figures else ''} |")
    return "\n".join(rows)


def _memory_table(figures: dict, names: dict) -> str:
    rows = ["| Reading, memory of the process | peak, mapped files included | private, without them |", "|---|---|---|"]
    for name in (name for name in TITLES if name in names):
        cells = [shown(figures[f"read_{kind}_{name}"], ",.0f") + " MiB" for kind in ("peak", "private")]
        rows.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _growth_table(figures: dict, grown: list[dict]) -> str:
    sizes = " → ".join(f"{row['lines']:,}" for row in grown if row["what"] == "ingest")
    rows = [
        f"| Growing data: {sizes} lines | time per million lines | cost of a line, later over earlier | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for what in dict.fromkeys(row["what"] for row in grown):
        million, slope = figures.get(f"grown_{what}_million"), figures.get(f"grown_{what}_slope")
        cells = [f"{million['value'] / 60:.1f} min" if million else "see above"]
        cells.append(f"{slope['value']:.2f} ×" if slope else "")
        cells.append(" → ".join(f"{row['peak_mib']:,.0f}" for row in grown if row["what"] == what))
        rows.append(f"| {WHATS[what]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _foot(result: dict, run: dict) -> str:
    counts = run["counts"]
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(run["libraries"].items()))
    data = ", ".join(f"{name} (`{digest[:12]}`)" for name, digest in result["data"].items())
    return (
        f"`{result['command']}` on {result['cpu']}, one core and one thread each: median and [least, most] of "
        f"{len(run['ingest'])} rounds in turn over {counts['read']:,} lines (ingest: {counts['lines']:,}) of "
        f"{counts['bytes'] / counts['lines'] / 1000:.1f} KB, ratios of the same round; {data}; {libraries}."
    )
