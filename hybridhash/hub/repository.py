"""Save, publish and load trained models: thin over timm's Hub format and huggingface_hub.

What is saved is a timm repository: ``model.safetensors``, ``config.json`` (architecture, arguments, code
length in ``bits``, preprocessing) and a model card, ``README.md``, with the retrieval metrics and what they
mean. ``timm.create_model("hf-hub:user/repo", pretrained=True)`` loads it after ``import hybridhash``;
:func:`load` does the same and says what went wrong if it fails.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import json
import os
import pickle
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

from hybridhash._files import replacing_files
from hybridhash._inference import check_preprocessing
from hybridhash.hub.card import model_card, slug
from hybridhash.hub.errors import CARD, CONFIG, WEIGHTS, damaged, discard_damaged, explained

if TYPE_CHECKING:
    from hybridhash.eval.report import RetrievalReport

__all__ = ["load", "push_to_hub", "save_pretrained"]

# Fields of pretrained_cfg that say where the weights came from, which is not where they go to.
_SOURCE = {"url", "file", "state_dict", "source", "hf_hub_id", "hf_hub_filename", "architecture"}


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    report: RetrievalReport | Mapping[str, Any] | None = None,
    *,
    dataset: str = "",
    training: str = "",
    description: str = "",
    tag: str = "",
    license: str = "apache-2.0",
    preprocessing: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a model to a folder that :func:`load` and timm's ``local-dir:`` load exactly.

    It writes ``model.safetensors``, ``config.json`` and ``README.md``, all or none: if anything fails, the
    files that were there are unchanged.

    Args:
        model: A network made by ``timm.create_model("hybridhash_...")``. Wrappers of DDP and
            ``torch.compile`` are taken off. It is not changed.
        folder: The folder to write to. It is made if it does not exist.
        report: The measured metrics, a :class:`hybridhash.eval.RetrievalReport` or its ``to_dict()``. None
            writes a card that says that nothing was measured.
        dataset: The name of the data set trained and measured on. It is required with a ``report``.
        training: A sentence or more on the training: images, loss, epochs.
        description: The first paragraph of the card.
        tag: The name of these weights, kept in ``pretrained_cfg``. By default it is made of ``dataset``.
        license: The identifier of the licence of the weights on the Hub.
        preprocessing: ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` of the training
            images, where they differ from ``model.pretrained_cfg``.
        overwrite: Whether to replace a model of another architecture, or files that are no saved model.

    Returns:
        The folder.

    Raises:
        TypeError: timm did not make the model.
        ValueError: The arguments of the model do not rebuild it (pruned layers, modules replaced by hand),
            the report has no ``dataset`` or other bits, or a key of ``preprocessing`` is unknown.
        FileExistsError: The folder holds something else, and ``overwrite`` is False.
        OSError: The folder cannot be written. The old files are unchanged.

    Example:
        >>> import hybridhash, tempfile, timm
        >>> small = {"img_size": 32, "embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1)}
        >>> model = timm.create_model("hybridhash_16", **small)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_pretrained(model, folder, dataset="CIFAR-10", training="WML loss, 90 epochs")
        ...     print(sorted(file.name for file in path.iterdir()), load(path).bits)
        ['README.md', 'config.json', 'model.safetensors'] 16
    """
    folder = Path(folder)
    model = _unwrapped(model)
    config = _model_config(model, tag or slug(dataset) or "custom", license, preprocessing)
    about = {"dataset": dataset, "training": training, "description": description, "license": license}
    card = model_card(model, f"local-dir:{folder.name}", report, **about)
    if not overwrite and folder.is_dir():
        ours = {path.name for path in folder.iterdir()} & {CONFIG, WEIGHTS, CARD}
        saved = (folder / CONFIG).read_text(encoding="utf-8") if CONFIG in ours else None
        _check_free(str(folder), ours, saved, model)

    try:
        with replacing_files(folder) as temporary:
            _write_model(model, config, temporary)
            (temporary / CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        message = f"the model was not saved to {folder}, what was there is unchanged: {error}"
        raise OSError(getattr(error, "errno", None), message) from error
    return folder


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    report: RetrievalReport | Mapping[str, Any] | None = None,
    *,
    private: bool = False,
    dataset: str = "",
    training: str = "",
    description: str = "",
    tag: str = "",
    license: str = "apache-2.0",
    preprocessing: Mapping[str, Any] | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add model",
    overwrite: bool = False,
) -> str:
    """Publish a model on the Hugging Face Hub, for ``load("hf-hub:user/repo")`` and timm.

    The files of :func:`save_pretrained` become one commit, so the repository holds all of them or none. A
    model card that is there is replaced, since its numbers belong to the old weights.

    Args:
        model: The model; see :func:`save_pretrained` for it, and for ``report``, ``dataset``, ``training``,
            ``description``, ``tag``, ``license`` and ``preprocessing``.
        repo_id: ``"user/repo"``, or ``"repo"`` for the user who is logged in. It is made if it does not
            exist.
        private: Whether to make the repository private. An existing one keeps its visibility; if it is
            public, nothing is pushed.
        token: A token that may write. By default it is that of ``hf auth login`` or ``HF_TOKEN``.
        revision: The branch to commit to, ``main`` by default.
        create_pr: Whether to open a pull request instead of committing.
        commit_message: The message of the commit.
        overwrite: Whether to commit to a repository that holds another architecture, or no model.

    Returns:
        The URL of the commit or of the pull request.

    Raises:
        TypeError, ValueError: As :func:`save_pretrained`; or ``private`` is True for a public repository.
        FileExistsError: The repository holds something else, and ``overwrite`` is False.
        PermissionError: There is no token, or it may not write.
        FileNotFoundError: The branch does not exist.
        ConnectionError: The Hub cannot be reached or fails.
    """
    model = _unwrapped(model)
    config = _model_config(model, tag or slug(dataset) or "custom", license, preprocessing)
    about = {"dataset": dataset, "training": training, "description": description, "license": license}
    api = HfApi(token=token, library_name="hybridhash")
    if "/" not in repo_id:
        with explained(repo_id):
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    card = model_card(model, f"hf-hub:{repo_id}", report, **about)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_model(model, config, folder)
        (folder / CARD).write_text(card, encoding="utf-8")
        with explained(repo_id, revision):
            api.create_repo(repo_id, private=private, exist_ok=True)
            info = api.model_info(repo_id, revision=revision)
            names = {file.rfilename for file in info.siblings or ()} - {".gitattributes", CARD}
            saved = None
            if CONFIG in names:
                path = hf_hub_download(repo_id, CONFIG, revision=revision, token=token)
                saved = Path(path).read_text(encoding="utf-8")
        if private and not info.private:
            raise ValueError(
                f"{repo_id} is public: make it private in its settings first, or push with private=False"
            )
        if not overwrite and not create_pr:
            _check_free(repo_id, names, saved, model)
        with explained(repo_id, revision):
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
    return str(commit.pr_url or commit.commit_url)


def load(source: str | Path, *, cache_dir: str | Path | None = None, **kwargs: Any) -> nn.Module:
    """Load a model as ``timm.create_model(source, pretrained=True, ...)`` does, with readable errors.

    Weights from the Hub are compared with the SHA-256 that the Hub gives for them. Damaged files are deleted
    from the cache, so that the next call fetches them again.

    Args:
        source: ``"hf-hub:user/repo"``, with ``@revision`` if wanted; a folder of :func:`save_pretrained`; or
            the name of a registered model, with or without tag, for its backbone.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
        kwargs: Arguments of ``timm.create_model`` that change the model: ``num_classes``, ``img_size``,
            ``in_chans``, ``device``, ``dtype`` and so on.

    Returns:
        The model, in training mode as from ``timm.create_model``; call ``eval()`` before you use it by hand.

    Raises:
        FileNotFoundError: The repository, revision or folder does not exist, or has no model.
        PermissionError: The repository is private or gated, and no token opens it.
        ConnectionError: The Hub cannot be reached or fails, or ``HF_HUB_OFFLINE`` forbids to ask it for
            something that is not in the cache.
        OSError: The download is damaged, or the cache cannot be written.
        ValueError: The name or tag is unknown, or the file is no checkpoint, of another architecture, or does
            not fit the arguments.
        TypeError: An argument is unknown.

    Example:
        >>> import hybridhash
        >>> load("hybridhash_64.imagenet")
        Traceback (most recent call last):
        ...
        ValueError: unknown tag in 'hybridhash_64.imagenet': there is hybridhash_64.nest_goog_in1k
    """
    name, repository, revision = _parse_source(source)
    if kwargs.get("pretrained_cfg") or kwargs.get("pretrained_cfg_overlay"):
        repository = None  # the weights may come from elsewhere
    label = repository or str(source)
    try:
        with explained(repository, revision, cache_dir):
            if name.startswith("local-dir:"):
                kwargs = _for_old_timm(Path(name.removeprefix("local-dir:")), kwargs)
            model: Any = timm.create_model(name, pretrained=True, cache_dir=cache_dir, **kwargs)
    except (SafetensorError, pickle.UnpicklingError, EOFError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise  # out of memory, and the like
        if isinstance(error, HFValidationError):
            raise ValueError(f"{source!r} names no repository: {error}") from error
        unreadable = isinstance(error, (SafetensorError, json.JSONDecodeError))
        if repository and discard_damaged(repository, revision, cache_dir, all_files=unreadable):
            raise damaged(repository) from error
        reason = f"config.json has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{label} could not be loaded: {reason}") from error
    if repository and discard_damaged(repository, revision, cache_dir):
        raise damaged(repository)
    if not hasattr(model, "bits") and not kwargs.get("features_only"):
        raise ValueError(
            f"{label} is a {model.pretrained_cfg['architecture']}, which has no hash layer: "
            "load it with timm.create_model"
        )
    return cast(nn.Module, model)


def _parse_source(source: str | Path) -> tuple[str, str | None, str | None]:
    """Return timm's name of a source, and the repository and revision that it is downloaded from."""
    text = os.fspath(source)
    if isinstance(source, str) and timm.is_model(text.partition(".")[0]):
        try:
            cfg = timm.get_pretrained_cfg(text)
        except RuntimeError as error:
            known = ", ".join(timm.list_pretrained(f"{text.partition('.')[0]}.*"))
            raise ValueError(f"unknown tag in {text!r}: there is {known}") from error
        repository, revision = _split_revision(cfg.hf_hub_id) if cfg.hf_hub_id else (None, None)
        return text, repository, revision
    if isinstance(source, Path) or os.path.isdir(text):
        return f"local-dir:{text}", None, None
    scheme, _, rest = text.partition(":")
    if scheme in ("hf-hub", "hf_hub"):
        return (text, *_split_revision(rest))
    if scheme == "local-dir":
        return text, None, None
    if "/" in text:
        raise FileNotFoundError(f"no folder {text!r}; a repository of the Hub is 'hf-hub:{text}'")
    near = difflib.get_close_matches(text, timm.list_models("hybridhash*"), n=3) or ["hybridhash_64"]
    raise ValueError(
        f"no model is called {text!r}: did you mean {', '.join(near)}, or 'hf-hub:user/repo' or a folder?"
    )


def _for_old_timm(folder: Path, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments with which timm before 1.0.26 loads a folder as later versions do.

    It would unpickle whatever is there: safetensors, which fails, and code, which runs.
    """
    if inspect.signature(timm.models.load_state_dict).parameters["weights_only"].default:
        return kwargs
    if (folder / WEIGHTS).exists():
        overlay = {
            "source": "",
            "file": str(folder / WEIGHTS),
            **(kwargs.get("pretrained_cfg_overlay") or {}),
        }
        return {**kwargs, "pretrained_cfg_overlay": overlay}
    for suffix in ("pth", "pth.tar", "bin"):
        for path in folder.glob(f"*.{suffix}"):
            torch.load(path, map_location="meta", weights_only=True)
    return kwargs


def _split_revision(hub_id: str) -> tuple[str, str | None]:
    repository, _, revision = hub_id.partition("@")
    return repository, revision or None


def _unwrapped(model: nn.Module) -> Any:
    """Take off wrappers; the result is untyped, because timm's builder adds attributes."""
    model = unwrap_model(model)
    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "model_args"):
        raise TypeError(
            f"model must be a hash model made by timm.create_model, got {type(model).__name__}: "
            'build it with timm.create_model("hybridhash_...") and load its state dict'
        )
    return model


def _model_config(
    model: Any, tag: str, license: str, preprocessing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return arguments of timm's ``save_for_hf`` that describe the model as it is now."""
    check_preprocessing(preprocessing)
    args = {**model.model_args, "num_classes": model.num_classes}
    architecture = model.pretrained_cfg["architecture"]
    shape: dict[str, Any] = {}
    if architecture != "hash_model":  # whose shape is the backbone's
        args["global_pool"] = model.head.pool_type
        side = args["img_size"] // model.feature_info[-1]["reduction"]
        shape["input_size"] = (args["in_chans"], args["img_size"], args["img_size"])
        shape["pool_size"] = (side, side)
    _check_rebuilds(model, architecture, args)
    source = {k: v for k, v in model.pretrained_cfg.items() if k not in _SOURCE and v is not None}
    pretrained_cfg = {
        **source,
        **(preprocessing or {}),
        "tag": tag,
        "license": license,
        "num_classes": model.num_classes,
        **shape,
        # Named, or timm would report a Hub that is down as a missing pickle.
        "hf_hub_filename": WEIGHTS,
    }
    return {
        "model_config": {"pretrained_cfg": pretrained_cfg, "bits": model.num_classes},
        "model_args": args,
    }


def _check_rebuilds(model: Any, architecture: str, args: Mapping[str, Any]) -> None:
    """Raise unless the saved weights fit a network that is built from the saved arguments."""
    for key, value in args.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f"{key}={value!r} cannot be written to {CONFIG}: save state_dict() with safetensors, or "
                "register an architecture of your own that sets it (timm.models.register_model)"
            ) from None
    twin = timm.create_model(architecture, pretrained=False, device="meta", **args)
    shapes = [{k: tuple(x.shape) for k, x in m.state_dict().items()} for m in (model, twin)]
    differing = sorted({k.rpartition(".")[0] for k, _ in shapes[0].items() ^ shapes[1].items()})
    if differing:
        raise ValueError(
            f"the model is not what its arguments build, so its weights could not be loaded again: pruned or "
            f"replaced are {', '.join(differing[:8])}; save its state_dict() with safetensors"
        )


def _check_free(where: str, names: Collection[str], config: str | None, model: Any) -> None:
    """Raise if a folder or repository holds anything but an earlier version of the same model."""
    architecture = model.pretrained_cfg["architecture"]
    try:
        stored = json.loads(config)["architecture"] if config is not None else None
    except (ValueError, KeyError, TypeError):
        stored = None
    if names and stored != architecture:
        content = f"no saved model, but {', '.join(sorted(names)[:5])}"
        if stored:
            content = f"a {stored}, not a {architecture}"
        raise FileExistsError(
            f"{where} holds {content}: choose another place, or replace it with overwrite=True"
        )


def _write_model(model: Any, config: Mapping[str, Any], folder: Path) -> None:
    if not all(x.is_contiguous() for x in model.state_dict().values()):
        model = copy.deepcopy(model)  # channels-last weights, which safetensors refuses
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.contiguous()
    save_for_hf(model, str(folder), safe_serialization=True, **copy.deepcopy(dict(config)))
    if model.in_chans not in (1, 3):
        # timm before 1.0.31 takes every first convolution for one of 3 channels and leaves this one random.
        path = folder / CONFIG
        written = json.loads(path.read_text(encoding="utf-8"))
        written["pretrained_cfg"]["first_conv"] = None
        path.write_text(json.dumps(written, indent=2), encoding="utf-8")
