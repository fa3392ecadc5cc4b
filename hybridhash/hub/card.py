"""Model cards: what a published model is, how to use it, and how well it retrieves."""

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
_DEFINITION = (
    "scoring",
    "top_k",
    "ties",
    "denominator",
    "empty",
    "exclude_self",
    "radius",
    "queries",
    "database",
)
_CARD = """\
# {name}

{introduction}

| | |
|---|---|
| architecture | {architecture} |
| code length | {code_length} |
| input | {input_size} |
| parameters | {parameters} |
| dataset | {dataset} |
| training | {training} |
| licence | {license} |
| SHA-256 of the weights | `{sha256}` |

## Use

{usage}

## Retrieval metrics

{metrics}"""
_INTRODUCTION = (
    "A deep hashing model for image retrieval: it turns an image into a code of **{bits} bits**, and "
    "images with a common label into codes at a small Hamming distance."
)
_INTRODUCTION_OF_EMBEDDING = (
    "The embedding of a deep hashing network for image retrieval, without its hash layer."
)
_USAGE = """\
```python
import timm
import hybridhash  # registers the models

model = timm.create_model("{source}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
packed = hybridhash.pack_codes(model(transform(image).unsqueeze(0)))  # of a PIL image: uint8 (1, {size})
```

Codes are compared by Hamming distance (`hybridhash.hamming_topk`): the fewer bits differ, the more alike the
images. `num_classes=0` gives the embedding before the hash layer. `hybridhash.hub.load("{source}")` loads
the model too, and says what to do if that fails."""
_INTRODUCTION_FROM_EMBEDDINGS = (
    "A hash head for ready embeddings of width {width}: it turns an embedding into a code of **{bits} "
    "bits**, and near embeddings into codes at a small Hamming distance."
)
_USAGE_FROM_EMBEDDINGS = """\
```python
import timm
import hybridhash  # registers the models

model = timm.create_model("{source}", pretrained=True).eval()
packed = hybridhash.pack_codes(model(embeddings))  # float32 (B, {width}) to uint8 (B, {size})
```

Give it embeddings of the network that it was fitted to, prepared in the same way. Codes are compared by
Hamming distance (`hybridhash.hamming_topk`), or with real-valued queries (`hybridhash.asymmetric_topk`)."""
_USAGE_OF_EMBEDDING = '`timm.create_model("{source}", pretrained=True)` after `import hybridhash`.'
_METRICS = "Measured on {dataset}. The numbers hold for exactly this definition:\n\n{table}"
_SHORTER = """

Codes may be cut to their first bits, `codes[:, :{shortest}]` for instance. mAP of each length, by the same
definition:

{table}
"""
_NO_METRICS = "No retrieval metric was reported with these weights."


def model_card(
    model: Any,
    source: str,
    input_size: tuple[int, int, int],
    report: RetrievalReport | Mapping[str, Any] | None = None,
    *,
    shorter: Mapping[int, RetrievalReport | Mapping[str, Any]] | None = None,
    dataset: str = "",
    training: str = "",
    description: str = "",
    license: str = "apache-2.0",
) -> str:
    """Return the text of a model card, with the metrics in words and as the Hub's model index.

    Args:
        model: A hash model that timm made.
        source: What loads it: ``"hf-hub:user/repo"`` or ``"local-dir:folder"``.
        input_size: Channels, height and width of the images.
        report: The measured metrics or their ``to_dict()``; None if there are none.
        shorter: Reports of codes cut to their first bits, by their number; see :class:`NestedLoss`.
        dataset: Name of the dataset that the model was trained and measured on. Required with a ``report``.
        training: How the model was trained.
        description: First paragraph of the card.
        license: Identifier of the licence on the Hub.

    Returns:
        Markdown below a YAML block.

    Raises:
        ValueError: The report is not one, comes without ``dataset``, or is of other bits than the model;
            shorter codes without a report, of other settings or bits, or not shorter.
    """
    bits = model.num_classes
    report = _checked_report(report, dataset, bits)
    name = source.rpartition(":")[2].rpartition("/")[2]
    introduction, usage = _words(model)
    width = input_size[0]
    metrics = _NO_METRICS
    if report is not None:
        metrics = _METRICS.format(dataset=dataset, table=report.to_markdown())
    if shorter:
        metrics = metrics.rstrip() + _shorter_codes(shorter, report, dataset, bits)
    text = _CARD.format(
        name=name,
        introduction=f"{description.strip()}\n\n{introduction.format(bits=bits, width=width)}".strip(),
        architecture=_architecture(model),
        code_length=f"{bits} bits" if bits else "none (embedding)",
        input_size=" x ".join(map(str, input_size)),
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        dataset=_cell(dataset or "not stated"),
        training=_cell(training or "not stated"),
        license=_cell(license),
        sha256=weights_sha256(model),
        usage=usage.format(source=source, size=math.ceil(bits / 8), width=width),
        metrics=metrics,
    )
    index = ModelCardData(
        library_name="timm",
        license=license,
        pipeline_tag=_TASK,
        tags=["timm", "hybridhash", "image-retrieval", "deep-hashing"],
        model_name=name,
        eval_results=None if report is None else _eval_results(report, dataset),
    )
    return str(ModelCard(f"---\n{index.to_yaml()}\n---\n\n{text.strip()}\n"))


def _words(model: Any) -> tuple[str, str]:
    """Return introduction and usage for what a model takes and gives."""
    if not model.num_classes:
        return _INTRODUCTION_OF_EMBEDDING, _USAGE_OF_EMBEDDING
    if model.model_args.get("backbone") == "embedding_input":
        return _INTRODUCTION_FROM_EMBEDDINGS, _USAGE_FROM_EMBEDDINGS
    return _INTRODUCTION, _USAGE


def _checked_report(
    report: RetrievalReport | Mapping[str, Any] | None, dataset: str, bits: int
) -> RetrievalReport | None:
    """Return the report of a model of so many bits; raise ValueError if it cannot be that."""
    if report is None:
        return None
    if isinstance(report, Mapping):
        from hybridhash.eval.report import RetrievalReport

        report = RetrievalReport.from_dict(report)
    if not dataset:
        raise ValueError("a report needs the name of what was measured: dataset='CIFAR-10', for instance")
    if report.bits not in (None, bits):
        raise ValueError(f"the report is of {report.bits}-bit codes, expected {bits}: measure this model")
    return report


def _shorter_codes(
    shorter: Mapping[int, RetrievalReport | Mapping[str, Any]],
    report: RetrievalReport | None,
    dataset: str,
    bits: int,
) -> str:
    """Return a table of mAP by length, whose last row is that of all bits."""
    if report is None:
        raise ValueError("shorter codes are compared with those of all bits: give their report too")
    if max(shorter) >= bits:
        raise ValueError(f"shorter codes must have fewer bits than the model, {bits}, got {max(shorter)}")
    definition = {key: report.to_dict()[key] for key in _DEFINITION}
    rows = []
    for length, given in sorted(shorter.items()):
        checked = _checked_report(given, dataset, length)
        assert checked is not None
        for key, value in definition.items():
            if checked.to_dict()[key] != value:
                raise ValueError(
                    f"the report of {length} bits has {key}={checked.to_dict()[key]!r}, that of {bits} bits "
                    f"{value!r}: measure all lengths alike"
                )
        rows.append((length, checked))
    lines = [f"| {length} | {each['map']:.4f} |" for length, each in [*rows, (bits, report)]]
    return _SHORTER.format(shortest=rows[0][0], table="\n".join(["| bits | mAP |", "|---|---|", *lines]))


def slug(text: str) -> str:
    """Return lower-case letters and digits with underscores between: ``"cifar_10"`` for ``"CIFAR-10"``."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _eval_results(report: RetrievalReport, dataset: str) -> list[EvalResult]:
    """Return the metrics as entries of the Hub's model index, each with its definition."""
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


def _architecture(model: Any) -> str:
    architecture = model.pretrained_cfg["architecture"]
    if architecture == "hash_model":
        return f"`{architecture}` on `{model.model_args['backbone']}`"
    return f"`{architecture}`"


def _cell(text: str) -> str:
    """Return text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
