"""The files of a saved model: the weights, and a config.json from which timm rebuilds the network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import timm
from timm.layers import to_2tuple
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

from hybridhash._code_checks import check_lengths
from hybridhash._distributed import Ranks, whole
from hybridhash._downloads import CONFIG, WEIGHTS
from hybridhash._fingerprint import file_sha256
from hybridhash._inference import PREPROCESSING, check_preprocessing

__all__ = [
    "CARD",
    "DIGEST",
    "in_one_process",
    "input_size",
    "model_config",
    "unwrapped_model",
    "write_model",
]

CARD = "README.md"
DIGEST = "weights_sha256"  # the key of config.json with the digest of the weights
T = TypeVar("T")
# Keys of pretrained_cfg that say where weights came from, which is not where they go.
_SOURCE = {"url", "file", "state_dict", "source", "hf_hub_id", "hf_hub_filename", "architecture"}


def unwrapped_model(model: nn.Module) -> Any:
    """Return a model of timm without its wrappers, untyped because timm's builder adds attributes to it.

    A model that ``fully_shard`` has split comes back as a copy with whole weights, on the CPU.

    Raises:
        TypeError: timm did not make the model.
        ValueError: A split model is not what its arguments build.
    """
    network: Any = unwrap_model(model)
    if not hasattr(network, "pretrained_cfg") or not hasattr(network, "model_args"):
        raise TypeError(
            f"model must be a hash model made by timm.create_model, got {type(network).__name__}: "
            'build it with timm.create_model("hybridhash_...") and load its state dict'
        )
    if not _is_sharded(network):
        return network
    args = model_config(network, "", "", None)["model_args"]
    copied = _rebuild(network.pretrained_cfg["architecture"], network.num_classes, args)
    weights = {name: whole(tensor).cpu() for name, tensor in network.state_dict().items()}
    copied.load_state_dict(weights, assign=True)
    copied.pretrained_cfg = network.pretrained_cfg
    return copied


def in_one_process(model: nn.Module, step: Callable[[], T]) -> T:
    """Run a step and return its result; for a sharded model, which all processes hold, in the first only."""
    if not _is_sharded(model):
        return step()
    with Ranks() as ranks:
        return ranks.first(step)


def _is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def model_config(
    model: Any,
    tag: str,
    license: str,
    preprocessing: Mapping[str, Any] | None,
    shorter: Collection[int] = (),
) -> dict[str, Any]:
    """Describe a model as it is now, in the arguments that timm's ``save_for_hf`` takes.

    The key ``lengths`` holds ``model.lengths``; where it is None, the lengths ``shorter`` that were measured.

    Raises:
        ValueError: The arguments do not rebuild the model, or ``preprocessing`` has an unknown key or an
            ``input_size`` that the model does not take, or ``lengths`` that do not ascend to its bits.
    """
    check_preprocessing(preprocessing, (*PREPROCESSING, "input_size"))
    architecture = model.pretrained_cfg["architecture"]
    args = dict(model.model_args)
    shape: dict[str, Any] = {"input_size": input_size(model, preprocessing)}
    if architecture != "hash_model":  # whose pooling is the backbone's
        args["global_pool"] = model.head.pool_type
        side = args["img_size"] // model.feature_info[-1]["reduction"]
        shape["pool_size"] = (side, side)
    _check_writable(args)
    rebuilt = _rebuild(architecture, model.num_classes, args)
    if rebuilt.num_classes != model.num_classes:
        # An architecture with a length of its own. The others take that of the configuration: transformers
        # opens no model that has it among the arguments.
        args["num_classes"] = model.num_classes
        rebuilt = _rebuild(architecture, model.num_classes, args)
    _check_same_weights(model, rebuilt)
    known = {key: value for key, value in model.pretrained_cfg.items() if value is not None}
    pretrained_cfg = {
        **{key: value for key, value in known.items() if key not in _SOURCE},
        **(preprocessing or {}),
        "tag": tag,
        "license": license,
        "num_classes": model.num_classes,
        **shape,
        # Named, or timm would report a Hub that is down as a missing pickle.
        "hf_hub_filename": WEIGHTS,
    }
    about: dict[str, Any] = {"pretrained_cfg": pretrained_cfg, "bits": model.num_classes}
    if getattr(model, "lengths", None):
        about["lengths"] = check_lengths(model.lengths, model.num_classes)
    elif shorter:
        about["lengths"] = (*sorted(shorter), model.num_classes)  # the card checks these
    return {"model_config": about, "model_args": args}


def input_size(model: Any, preprocessing: Mapping[str, Any] | None) -> tuple[int, int, int]:
    """Return channels, height and width of the images: those in ``preprocessing``, else those of the model.

    Raises:
        ValueError: The model cannot take images of that shape.
    """
    cfg = model.pretrained_cfg
    sides = model.model_args.get("img_size", cfg["input_size"][-2:])
    height, width = to_2tuple(sides)
    own = (model.in_chans, height, width)
    if not preprocessing or "input_size" not in preprocessing:
        return own
    given = tuple(preprocessing["input_size"])
    fits = given == own if cfg.get("fixed_input_size") else len(given) == 3 and given[0] == own[0]
    if not fits:
        raise ValueError(
            f"input_size={given} is not what the model takes: its channels, height and width are {own}"
        )
    return given


def write_model(model: Any, config: Mapping[str, Any], card: str, folder: Path) -> None:
    """Write the three files of a model to a folder.

    Args:
        model: The model; it is not changed.
        config: What :func:`model_config` returned for it.
        card: Text of the model card.
        folder: A folder that exists.
    """
    if not all(tensor.is_contiguous() for tensor in model.state_dict().values()):
        model = copy.deepcopy(model)  # channels-last weights, which safetensors refuses
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.contiguous()
    save_for_hf(model, str(folder), safe_serialization=True, **copy.deepcopy(dict(config)))
    path = folder / CONFIG
    written = json.loads(path.read_text(encoding="utf-8"))
    # timm adds what create_model was called with, which need not be what rebuilds the network.
    written["model_args"] = config["model_args"]
    for key in ("mean", "std"):  # one number for all channels of an embedding, which timm repeats
        if len(config["model_config"]["pretrained_cfg"].get(key, ())) == 1:
            written["pretrained_cfg"][key] = config["model_config"]["pretrained_cfg"][key]
    if model.in_chans not in (1, 3):
        # timm before 1.0.31 takes every first convolution for one of 3 channels and leaves this one random.
        written["pretrained_cfg"]["first_conv"] = None
    written[DIGEST] = file_sha256(folder / WEIGHTS)
    path.write_text(json.dumps(written, indent=2), encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def _check_writable(args: Mapping[str, Any]) -> None:
    """Raise ValueError unless all arguments can be written as JSON."""
    for key, value in args.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f"{key}={value!r} cannot be written to {CONFIG}: save state_dict() with safetensors, or "
                "register an architecture of your own that sets it (timm.models.register_model)"
            ) from None


def _rebuild(architecture: str, bits: int, args: Mapping[str, Any]) -> Any:
    """Return the network that timm builds from a saved configuration, without weights."""
    overlay = {"num_classes": bits}
    return timm.create_model(architecture, pretrained_cfg_overlay=overlay, device="meta", **args)


def _check_same_weights(model: nn.Module, rebuilt: nn.Module) -> None:
    """Raise ValueError unless a rebuilt network takes the weights of the model."""
    differing = _shapes(model).items() ^ _shapes(rebuilt).items()
    modules = sorted({name.rpartition(".")[0] for name, _ in differing})
    if modules:
        raise ValueError(
            f"the model is not what its arguments build, so its weights could not be loaded again: pruned or "
            f"replaced are {', '.join(modules[:8])}; save its state_dict() with safetensors"
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by its name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
