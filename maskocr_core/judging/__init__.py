"""Numbers in, verdicts out: error counts, intervals clustered by document, the gate and the report."""
