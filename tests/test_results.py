"""The tables of docs/results.md are those that the recorded runs give."""

import json

from tests import ROOT
from tests._benchmark_scripts import load_benchmark


def test_the_tables_are_made_of_the_recorded_runs():
    results = load_benchmark("results")
    lines = [json.loads(line) for line in (ROOT / "benchmarks" / "results.jsonl").read_text().splitlines()]
    page = (ROOT / "docs" / "results.md").read_text()
    for part in results.tables(lines).split("\n\n"):
        assert part in page
    keys = [(line["data"], line["backbone"], line["method"], line["bits"], line["seed"]) for line in lines]
    assert len(keys) == len(set(keys))
    assert {key[:4] for key in keys} <= {key[:4] for key in results.plan(list(results.DATA_SETS), 3)}
