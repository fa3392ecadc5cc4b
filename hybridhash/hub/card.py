"""The model card: what a published model is, how well it retrieves, and how to use it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hybridhash._fingerprint import weights_sha256

if TYPE_CHECKING:
    from hybridhash.eval.report import RetrievalReport

__all__ = ["model_card", "slug"]

_TASK = "image-feature-extraction"  # the Hub's name of the task
_DEFINITION = ("top_k", "ties", "denominator", "empty", "exclude_self", "radius", "queries", "database")
_CARD = """\
---
{metadata}
---

# {name}

{description}

{summary}

{table}

## Use

{usage}

## Retrieval metrics

{metrics}
"""
_SUMMARY = (
    "A deep hashing model for image retrieval. It turns an image into a code of **{bits} bits**, and images "
    "with a common label into codes at a small Hamming distance."
)
_EMBEDDING_SUMMARY = "The embedding of a deep hashing network for image retrieval, without its hash layer."
_USAGE = """\
```python
import timm
import hybridhash  # registers the models

model = timm.create_model("{source}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
packed = hybridhash.pack_codes(model(transform(image).unsqueeze(0)))  # of a PIL image: uint8 (1, {width})
```

Codes are compared by Hamming distance (`hybridhash.hamming_topk`): the fewer bits differ, the more alike the
images are. `num_classes=0` gives the embedding before the hash layer. `hybridhash.hub.load("{source}")` loads
the model too, and its errors say what to do."""
_EMBEDDING_USAGE = '`timm.create_model("{source}", pretrained=True)` after `import hybridhash`.'
_METRICS = "Measured on {dataset}. The numbers hold for exactly this definition:\n\n{report}"
_NO_METRICS = "No retrieval metric was reported with these weights."


def model_card(
    model: Any,
    source: str,
    report: RetrievalReport | Mapping[str, Any] | None = None,
    *,
    dataset: str = "",
    training: str = "",
    description: str = "",
    license: str = "apache-2.0",
) -> str:
    """Write the text of a model card, with the metrics as a table and as the Hub's model index.

    Args:
        model: A network of ``timm.create_model("hybridhash_...")``.
        source: The name that loads it: ``"hf-hub:user/repo"`` or ``"local-dir:folder"``.
        report: The measured metrics, or their ``to_dict()``. None if nothing was measured.
        dataset: The name of the data set trained and measured on. It is required with a ``report``.
        training: A sentence on how the model was trained.
        description: The first paragraph.
        license: The identifier of the licence on the Hub.

    Returns:
        Markdown below a YAML block.

    Raises:
        ValueError: The report has no ``dataset`` or other bits than the model, or is no report.
    """
    if isinstance(report, Mapping):
        from hybridhash.eval.report import RetrievalReport

        report = RetrievalReport.from_dict(report)
    if report is not None and not dataset:
        raise ValueError("a report needs the name of what was measured: dataset='CIFAR-10', for instance")
    bits = model.num_classes
    if report is not None and report.bits not in (None, bits):
        raise ValueError(
            f"the report is of {report.bits}-bit codes, the model has {bits}: measure this model"
        )
    name = source.rpartition(":")[2].rpartition("/")[2]
    metadata = ModelCardData(
        library_name="timm",
        license=license,
        pipeline_tag=_TASK,
        tags=["timm", "hybridhash", "image-retrieval", "deep-hashing"],
        model_name=name,
        eval_results=_eval_results(report, dataset) if report is not None else None,
    )
    metrics = _NO_METRICS
    if report is not None:
        metrics = _METRICS.format(dataset=dataset, report=report.to_markdown())
    text = _CARD.format(
        metadata=metadata.to_yaml(),
        name=name,
        description=description.strip(),
        summary=(_SUMMARY if bits else _EMBEDDING_SUMMARY).format(bits=bits),
        table=_table(_properties(model, dataset, training, license)),
        usage=(_USAGE if bits else _EMBEDDING_USAGE).format(source=source, width=math.ceil(bits / 8)),
        metrics=metrics,
    )
    return str(ModelCard(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"))  # no gaps where a part is empty


def _properties(model: Any, dataset: str, training: str, license: str) -> dict[str, str]:
    """Return the rows of the card's table."""
    architecture = f"`{model.pretrained_cfg['architecture']}`"
    if architecture == "`hash_model`":
        architecture += f" on `{model.model_args['backbone']}`"
    bits = model.num_classes
    return {
        "architecture": architecture,
        "code length": f"{bits} bits" if bits else "none (embedding)",
        "input": _input_size(model),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "dataset": dataset or "not stated",
        "training": training or "not stated",
        "licence": license,
        "SHA-256 of the weights": f"`{weights_sha256(model)}`",
    }


def slug(text: str) -> str:
    """Return lower-case letters and digits with underscores between: ``"cifar_10"`` for ``"CIFAR-10"``."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _eval_results(report: RetrievalReport, dataset: str) -> list[EvalResult]:
    values = report.to_dict()
    definition = {key: values[key] for key in _DEFINITION}
    return [
        EvalResult(
            task_type=_TASK,
            task_name="Image retrieval",
            dataset_type=slug(dataset),
            dataset_name=dataset,
            metric_type=name,
            metric_name=name,
            metric_value=value,
            metric_args=definition,
        )
        for name, value in values["metrics"].items()
        if value is not None
    ]


def _input_size(model: Any) -> str:
    size = model.model_args.get("img_size", model.pretrained_cfg["input_size"][-2:])
    height, width = (size, size) if isinstance(size, int) else size
    return f"{model.in_chans} x {height} x {width}"


def _table(rows: Mapping[str, str]) -> str:
    cells = [
        f"| {key} | {' '.join(value.split()).replace('|', chr(92) + '|')} |" for key, value in rows.items()
    ]
    return "\n".join(["| | |", "|---|---|", *cells])
