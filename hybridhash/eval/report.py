"""Everything at once: all metrics of a retrieval experiment, with the definition beside the numbers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from hybridhash._checks import check_choice, check_integer
from hybridhash._files import replacing
from hybridhash._fingerprint import json_sha256
from hybridhash._tables import aligned
from hybridhash.eval.statistics import CodeStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RetrievalReport"]

_FORMAT = "hybridhash.retrieval-report/1"
_TIES = {
    "expected": "exact mean over all orders of equal distances",
    "stable": "equal distances in database order",
    "best": "the best order of equal distances",
    "worst": "the worst order of equal distances",
    "none": "a given ranking, without ties",
}
_SCORINGS = {
    "hamming": "ranked by Hamming distance",
    "asymmetric": "ranked by real-valued queries against the signs of the database",
    "none": "a given ranking",
}
_DIVISORS = {
    "hits": "the relevant items among the first {:,}",
    "relevant": "min({:,}, all relevant items)",
}
_COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "hit_rate": "hit rate",
    "ndcg": "NDCG",
    "acg": "ACG",
}


@dataclass(frozen=True)
class RetrievalReport:
    """Metrics of a retrieval experiment; see :func:`hybridhash.eval.evaluate`, which makes it.

    Attributes:
        queries: The number of queries.
        unlabelled_queries: How many of them have no label.
        database: The number of database items.
        bits: The code length; None if a ranking was evaluated.
        top_k: The cut of mAP and MRR; None is the whole database.
        radius: The Hamming radius; None if a ranking or real-valued queries were evaluated.
        ties: The tie rule, or ``none`` if a ranking was evaluated.
        denominator: What average precision is divided by.
        empty: What queries without a relevant item count.
        exclude_self: Whether queries were left out of their own rankings.
        metrics: ``map``, ``map_best``, ``map_worst`` (over the orders of ties, for ``ties="expected"``),
            ``mrr``, ``precision_within_radius``, ``recall_within_radius``; for each k ``precision@k``,
            ``recall@k``, ``hit_rate@k``, ``ndcg@k``; and for multi-hot labels ``weighted_map`` and ``acg@k``.
            Without a radius there are none by radius, here and in ``curves``.
        curves: Lists of equal length: ``rank``, ``precision_at_rank``, ``recall_at_rank``; and ``radius``,
            ``precision_by_radius``, ``recall_by_radius``, ``precision_within_radius`` (the same as
            ``precision_by_radius``), ``relevant_by_distance``, ``irrelevant_by_distance`` (pairs, over all
            queries). Like the metrics they are means over the queries by the rule ``empty``; at a radius
            this is also about queries with nothing within it.
        codes: How the bits of the database codes are used; None if a ranking was evaluated.
        scoring: What ranked the database: ``hamming``, ``asymmetric`` (real-valued queries), or ``none`` if a
            ranking was evaluated.
        metric: ``dot`` or ``euclidean`` for ``asymmetric``, else None.
        factors: Whether the factors of the database codes were used in its scores.
    """

    queries: int
    unlabelled_queries: int
    database: int
    bits: int | None
    top_k: int | None
    radius: int | None
    ties: str
    denominator: str
    empty: str
    exclude_self: bool
    metrics: dict[str, float]
    curves: dict[str, list[float]]
    codes: CodeStatistics | None = None
    scoring: str = "hamming"
    metric: str | None = None
    factors: bool = False

    def __getitem__(self, metric: str) -> float:
        """Return the value of a metric, as ``report["map"]``."""
        if metric not in self.metrics:
            raise KeyError(f"no metric {metric!r} in this report; it has {', '.join(self.metrics)}")
        return self.metrics[metric]

    @property
    def ks(self) -> list[int]:
        """The cuts of precision, recall, hit rate, NDCG and ACG."""
        return [int(name.split("@")[1]) for name in self.metrics if name.startswith("precision@")]

    def __str__(self) -> str:
        """Return the numbers as tables for the terminal, below their definition."""
        summary = [[name, _number(value), note] for name, value, note in self._summary()]
        blocks = [self._definition(), aligned(summary)]
        if self.ks:
            blocks.append(aligned(self._by_k()))
        if self.codes is not None:
            blocks.append(f"Database codes: {self._code_line()}")
        return "\n\n".join(block for block in blocks if block)

    def to_markdown(self) -> str:
        """Return the numbers as markdown tables, below their definition."""
        summary = [["metric", "value", "note"]]
        summary += [[name, _number(value), note] for name, value, note in self._summary()]
        blocks = [self._definition().replace("\n", "  \n"), _markdown(summary), _markdown(self._by_k())]
        if self.codes is not None:
            blocks.append(f"Database codes: {self._code_line()}")
        return "\n\n".join(block for block in blocks if block) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain Python values; a number that is not defined is None."""
        values = {"format": _FORMAT, **asdict(self)}
        values["metrics"] = {name: _or_none(value) for name, value in self.metrics.items()}
        values["curves"] = {name: [_or_none(value) for value in curve] for name, curve in self.curves.items()}
        if self.codes is not None:
            values["codes"]["ones"] = list(self.codes.ones)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RetrievalReport:
        """Make a report of what :meth:`to_dict` returned.

        Raises:
            ValueError: ``values`` are not those of a report, lack a field, or hold something else in one.
        """
        if not isinstance(values, Mapping) or values.get("format") != _FORMAT:
            got = values.get("format") if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"not a retrieval report: format is {got!r}, expected {_FORMAT!r}")
        if "scoring" not in values:  # a report of an earlier version
            scoring = "none" if values.get("bits") is None else "hamming"
            values = {**values, "scoring": scoring, "metric": None, "factors": False}
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise ValueError(f"the retrieval report lacks {', '.join(missing)}: was it cut off?")
        known = {field.name: values[field.name] for field in fields(cls)}
        try:
            for name in ("queries", "unlabelled_queries", "database"):
                check_integer(name, known[name], 0)
            for name in ("bits", "top_k", "radius"):
                if known[name] is not None:
                    check_integer(name, known[name], 0)
            check_choice("ties", known["ties"], tuple(_TIES))
            check_choice("denominator", known["denominator"], tuple(_DIVISORS))
            check_choice("empty", known["empty"], ("zero", "skip"))
            check_choice("exclude_self", known["exclude_self"], (True, False))
            check_choice("scoring", known["scoring"], tuple(_SCORINGS))
            check_choice("metric", known["metric"], (None, "dot", "euclidean"))
            check_choice("factors", known["factors"], (True, False))
            known["metrics"] = {
                name: _or_nan(name, value) for name, value in _mapping("metrics", known["metrics"]).items()
            }
            known["curves"] = {
                name: [_or_nan(name, value) for value in _sequence(name, curve)]
                for name, curve in _mapping("curves", known["curves"]).items()
            }
            if known["codes"] is not None:
                known["codes"] = _code_statistics(_mapping("codes", known["codes"]))
            report = cls(**known)
            str(report)  # the metrics that a report of these settings has
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"the retrieval report is damaged: {reason}") from error
        return report

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, in one step: a failure leaves what was there before.

        The entry ``sha256`` is a digest of all others.

        Raises:
            OSError: The folder does not exist or cannot be written to.
        """
        values = self.to_dict()
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump({**values, "sha256": json_sha256(values)}, file, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> RetrievalReport:
        """Read a report that :meth:`to_json` wrote.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not JSON, not a report, or not what its digest says.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            report = cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path} is not a retrieval report: {error}") from error
        digest = values.pop("sha256", None)
        if digest is not None and digest != json_sha256(values):
            raise ValueError(
                f"{path} is damaged (it is not what its SHA-256 says): write it again, or delete the entry "
                "sha256 if you have changed it on purpose"
            )
        return report

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the curves of the report; with ``path``, also save the figure there (png, pdf, svg).

        Raises:
            ImportError: matplotlib is not installed (``pip install hybridhash[plot]``).
        """
        from hybridhash.eval.plots import plot_report

        figure = plot_report(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def _definition(self) -> str:
        """Say in words what was computed."""
        size = f"{self.bits} bits, " if self.bits is not None else ""
        excluded = ", each left out of its own ranking" if self.exclude_self else ""
        divisor = "all relevant items"
        if self.top_k is not None:
            divisor = _DIVISORS[self.denominator].format(self.top_k)
        counted = "count 0" if self.empty == "zero" else "are left out"
        metric = "" if self.metric is None else f", metric={self.metric!r}"
        factors = " and its factors" if self.factors else ""
        # Equal scores are tied as equal distances are.
        ties = _TIES[self.ties].replace("distances", "distances" if self.metric is None else "scores")
        return (
            f"Retrieval: {size}{self.queries:,} queries ({self.unlabelled_queries:,} without a label"
            f"{excluded}), {self.database:,} database items\n"
            f"scoring={self.scoring!r}{metric} ({_SCORINGS[self.scoring]}{factors})\n"
            f"top_k={self.top_k}, ties={self.ties!r} ({ties})\n"
            f"denominator={self.denominator!r} (AP is divided by {divisor}), "
            f"empty={self.empty!r} (queries without a relevant item {counted})"
        )

    def _summary(self) -> list[tuple[str, float, str]]:
        cut = "" if self.top_k is None else f"@{self.top_k}"
        rows = [(f"mAP{cut}", self.metrics["map"], "")]
        if "map_best" in self.metrics and not math.isnan(self.metrics["map"]):
            low, high = (_number(self.metrics[name]) for name in ("map_worst", "map_best"))
            rows[0] = (f"mAP{cut}", self.metrics["map"], f"{low} to {high} over the orders of ties")
        if "weighted_map" in self.metrics:
            rows.append((f"weighted mAP{cut}", self.metrics["weighted_map"], "shared labels instead of hits"))
        rows.append((f"MRR{cut}", self.metrics["mrr"], ""))
        if self.radius is not None:
            rows.append((f"P@H<={self.radius}", self.metrics["precision_within_radius"], "within the radius"))
            rows.append((f"R@H<={self.radius}", self.metrics["recall_within_radius"], "within the radius"))
        return rows

    def _by_k(self) -> list[list[str]]:
        if not self.ks:
            return []
        shown = {key: title for key, title in _COLUMNS.items() if f"{key}@{self.ks[0]}" in self.metrics}
        rows = [["k", *shown.values()]]
        rows += [[str(k), *(_number(self.metrics[f"{key}@{k}"]) for key in shown)] for k in self.ks]
        return rows

    def _code_line(self) -> str:
        codes = self.codes
        assert codes is not None
        return (
            f"{codes.distinct:,} distinct of {codes.items:,}, "
            f"the most frequent {codes.largest_bucket:,} times; "
            f"share of ones per bit {min(codes.ones):.2f} to {max(codes.ones):.2f}; "
            f"correlation of bits {codes.mean_correlation:.2f} mean, {codes.max_correlation:.2f} max; "
            f"{codes.constant_bits} constant bits"
        )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, NoneType)):
        raise TypeError(f"{name} must be a number or None, got {value!r}")
    return math.nan if value is None else value


def _mapping(name: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a dict, got {values!r}")
    return values


def _sequence(name: str, values: object) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list of numbers, got {values!r}")
    return list(values)


def _code_statistics(values: Mapping[str, Any]) -> CodeStatistics:
    """Inverse of ``asdict``; raises KeyError, TypeError or ValueError."""
    numbers = {
        field.name: _or_nan(field.name, values[field.name])
        for field in fields(CodeStatistics)
        if field.name != "ones"
    }
    ones = [_or_nan("ones", value) for value in _sequence("ones", values["ones"])]
    for name in ("items", "distinct", "largest_bucket", "constant_bits"):
        check_integer(name, values[name], 0)
    return CodeStatistics(**{**numbers, "ones": tuple(ones)})  # type: ignore[arg-type]


def _markdown(rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "|".join(["---", *["---:"] * (len(rows[0]) - 1)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
