"""Great Expectations, the one module that knows it: a suite over the metadata of lines, and its Data Docs.

Pixels are not its business: reading images through a validator takes hours and gigabytes, columns of numbers seconds. The
columns come a chunk at a time and the answers are added up, so that memory does not grow with the number of lines.
Source: https://docs.greatexpectations.io/docs/core/introduction/ (GX Core 1.x, ephemeral context).
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

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
    "sharpness",
    "along_width",
    "characters",
    "pixels_per_character",
    "script_count",
    "times_read",
    "page_also_in",
    "image_also_in",
)
SPLITS = ("train", "val", "test", "unlabeled", "transfer-train", "transfer-val", "protected-test")
HEIGHTS, WIDTHS = (8, 1024), (8, 16384)  # px
# Ranges of a sound collection; `MOSTLY` of the lines must lie in them, single lines are the quarantine's business.
INK, CONTRAST, CHARACTERS, PIXELS_PER_CHARACTER, MOSTLY = (0.005, 0.5), (0.05, 1.0), (1, 500), (2.0, 200.0), 0.95
SHARPNESS = (0.02, 10.0)  # three times the least that a single line needs, up to that of noise
ALONG_THE_WIDTH = 0.5  # share of lines whose ink has to alternate along the width: of one line alone it is a weak sign
CHUNK = 1 << 16  # lines checked at a time: GX needs 0.2 s a chunk however small
EXAMPLES = 10  # unexpected values shown of each expectation

# A small stand-in for the style sheets that the templates would load from elsewhere.
STYLE = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
h4 { font-size: 1.4rem; margin: 0 } h5 { font-size: 1.1rem; margin: 1.2rem 0 .2rem } h6 { font-size: .95rem; margin: .8rem 0 .2rem }
table { border-collapse: collapse; width: 100%; margin: .2rem 0 .8rem } p { margin: .3rem 0 } hr { display: none }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top }
ul { padding-left: 1.2rem; margin: .3rem 0 } nav ol, .breadcrumb { list-style: none; padding: 0 } a { color: #0b57d0 }
.fa-check-circle::before { content: "✓"; color: #18794e } .fa-times::before { content: "✗"; color: #b42318 }
.fa-exclamation-triangle::before { content: "!"; color: #b54708 } .badge { background: #eee; padding: 0 .3rem }
.row { display: flex; gap: 0 2rem; flex-wrap: wrap } .row > .col-lg-10, .row > .col-12 { flex: 1 0 30rem }
.modal, .ge-walkthrough, .card:has(.btn-group), footer, button, .collapse, [data-toggle="collapse"] { display: none }
</style>"""
# What asks for something or acts: elements, then handlers inside others.
ACTIVE = re.compile(
    r"""<(script|style|iframe)\b.*?</\1>|<(link|img)\b[^>]*>|\son\w+="[^"]*\"""", re.DOTALL | re.IGNORECASE
)


def check(tables: Iterable[pa.Table], docs_out: Path) -> dict[str, Any]:
    """Hold the metadata of lines against the suite and write its Data Docs, which open without a network.

    tables: one row a line with COLUMNS: `height` and `width` in px, `ink`, `contrast`, `sharpness` and `along_width` as
    `quality.measure` gives them; null for unlabelled lines: `characters`, `pixels_per_character` (px of width) and
    `script_count`; and what only the whole set shows: `times_read` (int, how many rows have this line id), `page_also_in`
    and `image_also_in` (another split on the far side of a held-out border, null for none). Tables of any size: they
    are checked CHUNK lines at a time.
    docs_out: folder for the pages, begun by `index.html`.
    Returns {"success": bool, "expectations": [{"expectation", "column", "success", "unexpected_percent", "observed"}]}
    of JSON-able values; `observed` is a few of the unexpected values, None where there are none.
    Raises ValueError if a column is missing or there are no rows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _validate(_chunks(tables), docs_out)
    _make_offline(docs_out)
    return {"success": all(one["success"] for one in found), "expectations": found}


def _chunks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of CHUNK rows, the last one shorter."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        if missing := [column for column in COLUMNS if column not in table.column_names]:
            raise ValueError(f"the table lacks {', '.join(missing)}: give every column of {', '.join(COLUMNS)}")
        waiting.append(table.select(COLUMNS))
        rows += table.num_rows
        while rows >= CHUNK:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, CHUNK)
            waiting, rows = [joined.slice(CHUNK)], rows - CHUNK
    if rows:
        yield pa.concat_tables(waiting)


def _validate(chunks: Iterator[pa.Table], docs_out: Path) -> list[dict[str, Any]]:
    # GX is read once and asks then: it shall neither count its use nor draw bars nor greet in our log.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas("lines").add_dataframe_asset("lines")
    whole = asset.add_batch_definition_whole_dataframe("lines")
    suite = context.suites.add(gx.ExpectationSuite("lines", expectations=_suite(gx.expectations)))
    result, sums = None, []
    for chunk in chunks:
        frame = chunk.to_pandas().round(4)  # what nobody would print of a float32
        result = whole.get_batch({"dataframe": frame}).validate(suite, result_format="SUMMARY")
        sums = [_added(*pair) for pair in zip(sums or [{}] * len(result.results), result.results, strict=True)]
    if result is None:
        raise ValueError("there are no lines to check: ingest some first")
    for one, added in zip(result.results, sums, strict=True):
        one.result, one.success = _summary(added), _holds(added, one.expectation_config.kwargs.get("mostly", 1.0))
    met = sum(one.success for one in result.results)
    result.success = met == len(sums)
    result.statistics = {
        "evaluated_expectations": len(sums),
        "successful_expectations": met,
        "unsuccessful_expectations": len(sums) - met,
        "success_percent": 100 * met / len(sums),
    }
    _write_docs(context, result, docs_out)
    return [_plain(one) for one in result.results]


def _suite(expect) -> list:
    def between(column: str, limits: tuple[float, float], mostly: float = 1.0):
        low, high = limits
        return expect.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, mostly=mostly)

    identities = ("line_id", "split", "source", "document_id", "page_id")
    return [
        *(expect.ExpectColumnValuesToNotBeNull(column=column) for column in identities),
        expect.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        between("height", HEIGHTS),
        between("width", WIDTHS),
        between("ink", INK, MOSTLY),
        between("contrast", CONTRAST, MOSTLY),
        between("sharpness", SHARPNESS, MOSTLY),
        expect.ExpectColumnValuesToBeBetween(column="along_width", min_value=0, mostly=ALONG_THE_WIDTH),
        between("characters", CHARACTERS),
        between("pixels_per_character", PIXELS_PER_CHARACTER, MOSTLY),
        between("script_count", (0, 1), MOSTLY),
        between("times_read", (1, 1)),
        expect.ExpectColumnValuesToBeNull(column="page_also_in"),
        expect.ExpectColumnValuesToBeNull(column="image_also_in"),
    ]


def _added(before: dict[str, Any], one) -> dict[str, Any]:
    """The counts of the chunks before and of one more: `lines`, of them with a `value` to be judged, `unexpected`, `examples`."""
    if (one.exception_info or {}).get("raised_exception"):
        raise RuntimeError(f"{one.expectation_config.type}: {one.exception_info['exception_message']}")
    result = one.result
    examples = result.get("partial_unexpected_list") or []
    return {
        "lines": before.get("lines", 0) + result["element_count"],
        "missing": before.get("missing", 0) + result.get("missing_count", 0),
        "has_missing": "missing_count" in result,
        "unexpected": before.get("unexpected", 0) + result["unexpected_count"],
        "examples": [*before.get("examples", []), *examples][:EXAMPLES],
    }


def _share(added: dict[str, Any]) -> float:
    return added["unexpected"] / max(1, added["lines"] - added["missing"])


def _holds(added: dict[str, Any], mostly: float) -> bool:
    return _share(added) <= 1 - mostly + 1e-12


def _summary(added: dict[str, Any]) -> dict[str, Any]:
    """The sums in the form that GX's own results have, so that its pages can show them."""
    values: dict[Any, int] = {}
    for value in added["examples"]:
        values[value] = values.get(value, 0) + 1
    summary = {
        "element_count": added["lines"],
        "unexpected_count": added["unexpected"],
        "unexpected_percent": 100 * _share(added),
        "partial_unexpected_list": added["examples"],
        "partial_unexpected_counts": [{"value": value, "count": count} for value, count in values.items()],
    }
    if added["has_missing"]:
        summary |= {
            "missing_count": added["missing"],
            "missing_percent": 100 * added["missing"] / max(1, added["lines"]),
            "unexpected_percent_total": 100 * added["unexpected"] / max(1, added["lines"]),
            "unexpected_percent_nonmissing": 100 * _share(added),
        }
    return summary


def _write_docs(context, result, docs_out: Path) -> None:
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

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
    run = RunIdentifier(run_name="validate", run_time=datetime.datetime.now(datetime.UTC))
    result.meta |= {"run_id": run, "validation_time": run.run_time, "batch_kwargs": {"data_asset_name": "lines"}}
    suite = ExpectationSuiteIdentifier(name=result.suite_name)
    context.validation_results_store.store_validation_results(
        suite_validation_result=result,
        suite_validation_result_identifier=ValidationResultIdentifier(
            batch_identifier=result.batch_id, expectation_suite_identifier=suite, run_id=run
        ),
        expectation_suite_identifier=suite,
    )
    context.build_data_docs()


def _plain(one) -> dict[str, Any]:
    observed = one.result["partial_unexpected_list"]
    return {
        "expectation": one.expectation_config.type,
        "column": one.expectation_config.kwargs.get("column"),
        "success": bool(one.success),
        "unexpected_percent": float(one.result["unexpected_percent"]),
        "observed": [str(value) for value in observed] if observed else None,
    }


def _make_offline(folder: Path) -> None:
    """Take scripts and whatever is loaded from elsewhere out of the pages; a script drew the index, so it is ours."""
    shutil.rmtree(folder / "static", ignore_errors=True)
    pages = sorted(path for path in folder.rglob("*.html") if path.name != "index.html")
    for page in pages:
        html = ACTIVE.sub("", page.read_text("utf-8"))
        page.write_text(html.replace("</head>", STYLE + "</head>", 1), "utf-8")
    names = [page.relative_to(folder) for page in pages]
    links = "".join(f'<li><a href="{name.as_posix()}">{name.parts[0]}</a></li>' for name in reversed(names))
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Lines</title>{STYLE}</head>'
    (folder / "index.html").write_text(f"{head}<body><h1>Lines</h1><ul>{links}</ul></body></html>", "utf-8")
