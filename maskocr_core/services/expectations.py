"""Great Expectations, the one module that knows it: a suite over the metadata of lines, and its Data Docs.

Pixels are not its business: reading images through a validator takes hours and gigabytes, columns of numbers seconds.
Source: https://docs.greatexpectations.io/docs/core/introduction/ (GX Core 1.x, ephemeral context).
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS = (
    "line_id",
    "split",
    "source",
    "document_id",
    "page_id",
    "height",
    "width",
    "ink",
    "contrast",
    "characters",
    "pixels_per_character",
)
LABELLED, HELD_OUT = ("train", "val", "test", "transfer-train", "transfer-val"), ("val", "test", "transfer-val")
HEIGHTS, WIDTHS = (8, 1024), (8, 16384)  # px
# Ranges of a sound collection; `MOSTLY` of the lines must lie in them, single lines are the quarantine's business.
INK, CONTRAST, CHARACTERS, PIXELS_PER_CHARACTER, MOSTLY = (0.005, 0.5), (0.05, 1.0), (1, 500), (2.0, 200.0), 0.95

# A small stand-in for the style sheets that the templates would load from elsewhere.
STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top }
ul { padding-left: 1.2rem } nav ol, .breadcrumb { list-style: none; padding: 0 } a { color: #0b57d0 }
.fa-check-circle::before { content: "✓"; color: #18794e } .fa-times::before { content: "✗"; color: #b42318 }
.fa-exclamation-triangle::before { content: "!"; color: #b54708 } .badge { background: #eee; padding: 0 .3rem }
.row { display: flex; gap: 2rem; flex-wrap: wrap } .row > .col-lg-10, .row > .col-12 { flex: 1 0 30rem }
.modal, .ge-walkthrough, .card:has(.btn-group), footer, button { display: none }
</style>"""
LOADED = re.compile(r"<(script|style|iframe)\b.*?</\1>|<(link|img)\b[^>]*>", re.DOTALL | re.IGNORECASE)


def check(frame: pd.DataFrame, docs_out: Path) -> dict[str, Any]:
    """Hold the metadata of lines against the suite and write its Data Docs, which open without a network.

    frame: one row a line with COLUMNS: `height` and `width` in px, `ink` and `contrast` as `quality.measure` gives
    them, `characters` (nullable) and `pixels_per_character` (nullable, px of width), null for unlabelled lines.
    docs_out: folder for the pages, begun by `index.html`.
    Returns {"success": bool, "expectations": [{"expectation", "column", "success", "unexpected_percent", "observed"}]}
    of JSON-able values; `observed` is a few of the unexpected values, None where there are none.
    Raises ValueError if a column is missing or the frame has no rows.
    """
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise ValueError(f"the frame lacks {', '.join(missing)}: give every column of {', '.join(COLUMNS)}")
    if frame.empty:
        raise ValueError("there are no lines to check: ingest some first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _validate(frame[list(COLUMNS)].assign(page_also_in=_leaks(frame)), docs_out)
    _make_offline(docs_out)
    found = [_plain(one) for one in result.results]
    return {"success": all(one["success"] for one in found), "expectations": found}


def _validate(frame: pd.DataFrame, docs_out: Path):
    # GX is read once and asks then: it shall neither count its use nor draw bars nor greet in our log.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    context.add_data_docs_site(
        "lines",
        {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs_out.resolve())},
        },
    )
    asset = context.data_sources.add_pandas("lines").add_dataframe_asset("lines")
    batch = asset.add_batch_definition_whole_dataframe("lines")
    suite = context.suites.add(gx.ExpectationSuite("lines", expectations=_suite(gx.expectations)))
    validation = context.validation_definitions.add(gx.ValidationDefinition(name="lines", data=batch, suite=suite))
    result = validation.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY")
    context.build_data_docs()
    return result


def _suite(expect) -> list:
    def between(column: str, limits: tuple[float, float], mostly: float = 1.0):
        low, high = limits
        return expect.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, mostly=mostly)

    identities = ("line_id", "split", "source", "document_id", "page_id")
    return [
        *(expect.ExpectColumnValuesToNotBeNull(column=column) for column in identities),
        expect.ExpectColumnValuesToBeUnique(column="line_id"),
        expect.ExpectColumnValuesToBeInSet(column="split", value_set=[*LABELLED, "unlabeled"]),
        between("height", HEIGHTS),
        between("width", WIDTHS),
        between("ink", INK, MOSTLY),
        between("contrast", CONTRAST, MOSTLY),
        between("characters", CHARACTERS),
        between("pixels_per_character", PIXELS_PER_CHARACTER, MOSTLY),
        expect.ExpectColumnValuesToBeNull(column="page_also_in"),
    ]


def _leaks(frame: pd.DataFrame) -> pd.Series:
    """For a labelled line, another labelled split with lines of its page, if either is held out; else null.

    An unlabelled line beside a test line is no leak: half transcribed pages are common, and no text passes.
    """
    labelled = frame[frame["split"].isin(LABELLED)]
    page = ["source", "document_id", "page_id"]  # "1" is a page of many documents
    splits = labelled.groupby(page)["split"].agg(lambda values: sorted(set(values)))
    torn = {page: names for page, names in splits.items() if len(names) > 1 and set(names) & set(HELD_OUT)}
    others = [
        next((name for name in torn.get(key, ()) if split in LABELLED and name != split), None)
        for *key_parts, split in frame[[*page, "split"]].itertuples(index=False)
        for key in [tuple(key_parts)]
    ]
    return pd.Series(others, index=frame.index, dtype="object")


def _plain(one) -> dict[str, Any]:
    config, result = one.expectation_config, one.result
    percent, observed = result.get("unexpected_percent"), result.get("partial_unexpected_list")
    return {
        "expectation": config.type,
        "column": config.kwargs.get("column"),
        "success": bool(one.success),
        "unexpected_percent": None if percent is None or math.isnan(percent) else float(percent),
        "observed": [str(value) for value in observed] if observed else None,
    }


def _make_offline(folder: Path) -> None:
    """Take scripts and whatever is loaded from elsewhere out of the pages; a script drew the index, so it is ours."""
    shutil.rmtree(folder / "static", ignore_errors=True)
    pages = sorted(path for path in folder.rglob("*.html") if path.name != "index.html")
    for page in pages:
        html = LOADED.sub("", page.read_text("utf-8"))
        page.write_text(html.replace("</head>", STYLE + "</head>", 1), "utf-8")
    names = [page.relative_to(folder) for page in pages]
    links = "".join(f'<li><a href="{name.as_posix()}">{name.parts[0]}</a></li>' for name in reversed(names))
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Lines</title>{STYLE}</head>'
    (folder / "index.html").write_text(f"{head}<body><h1>Lines</h1><ul>{links}</ul></body></html>", "utf-8")
