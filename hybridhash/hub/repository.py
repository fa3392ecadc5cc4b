"""Save, publish and load trained models, in timm's format for the Hugging Face Hub.

A saved model is a timm repository: ``model.safetensors``, ``config.json`` (architecture, arguments, code
length in ``bits``, preprocessing) and ``README.md``, a model card with the retrieval metrics and their
definition. ``timm.create_model("hf-hub:user/repo", pretrained=True)`` loads it after ``import hybridhash``.
:func:`load` does the same, with errors that say what to do.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from safetensors import SafetensorError
from torch import nn

from hybridhash._downloads import CONFIG, WEIGHTS, explained, hub_source, loading
from hybridhash._files import replacing_files
from hybridhash._fingerprint import file_sha256
from hybridhash.hub.card import model_card, slug
from hybridhash.hub.model_files import (
    CARD,
    DIGEST,
    in_one_process,
    input_size,
    model_config,
    unwrapped_model,
    write_model,
)

if TYPE_CHECKING:
    from hybridhash.eval.report import RetrievalReport

__all__ = ["load", "push_to_hub", "save_pretrained"]


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    report: RetrievalReport | Mapping[str, Any] | None = None,
    *,
    shorter: Mapping[int, RetrievalReport | Mapping[str, Any]] | None = None,
    dataset: str = "",
    training: str = "",
    description: str = "",
    tag: str = "",
    license: str = "apache-2.0",
    preprocessing: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a model to a folder from which :func:`load` and timm's ``local-dir:`` restore it exactly.

    The files ``model.safetensors``, ``config.json`` and ``README.md`` are written all or none: if anything
    fails, the files that were there stay as they were.

    Args:
        model: A hash model that timm made, such as ``timm.create_model("hybridhash_64")``. Wrappers of DDP
            and ``torch.compile`` are removed. A model that ``fully_shard`` has split is gathered: call this
            in every process, the first one writes. The model is not changed.
        folder: Where the files go. It is made if it does not exist.
        report: The measured metrics: a :class:`hybridhash.eval.RetrievalReport` or its ``to_dict()``. With
            None the card says that nothing was measured.
        shorter: Reports of the codes cut to their first bits, by their number, of a model trained with
            :class:`hybridhash.losses.NestedLoss`: the card lists the mAP of each length. ``config.json``
            keeps the lengths (those in ``model.lengths``, if it has some), and a loaded model has them in
            ``model.lengths``.
        dataset: Name of the dataset that the model was trained and measured on. Required with a ``report``.
        training: How the model was trained, in a sentence or more: images, loss, epochs.
        description: First paragraph of the card.
        tag: Name of these weights, kept in ``pretrained_cfg``. By default it is derived from ``dataset``.
        license: Licence of the weights, by its identifier on the Hub.
        preprocessing: The ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` that the model
            was trained with, where they differ from ``model.pretrained_cfg``. Also ``input_size`` (channels,
            height, width) for a model that takes any size.
        overwrite: Whether to replace a model of another architecture, or files that are no saved model.

    Returns:
        The folder.

    Raises:
        TypeError: timm did not make the model.
        ValueError: The arguments of the model do not rebuild it (pruned layers, modules replaced by hand),
            the report comes without ``dataset`` or is of other bits, or ``preprocessing`` has an unknown key.
        FileExistsError: The folder holds something else, and ``overwrite`` is False.
        OSError: The folder cannot be written; the old files are unchanged.

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
    network = unwrapped_model(model)
    config = model_config(network, tag or slug(dataset) or "custom", license, preprocessing, shorter or ())
    texts = {"dataset": dataset, "training": training, "description": description, "license": license}
    size = input_size(network, preprocessing)
    card = model_card(network, f"local-dir:{folder.name}", size, report, shorter=shorter, **texts)
    in_one_process(model, lambda: _write(network, config, card, folder, overwrite))
    return folder


def _write(model: Any, config: Mapping[str, Any], card: str, folder: Path, overwrite: bool) -> None:
    """Write a model to a folder, all files or none; arguments and errors as in :func:`save_pretrained`."""
    if not overwrite and folder.is_dir():
        names = {path.name for path in folder.iterdir()} & {CONFIG, WEIGHTS, CARD}
        saved = (folder / CONFIG).read_text(encoding="utf-8") if CONFIG in names else None
        _check_same_model(str(folder), names, saved, model)
    try:
        with replacing_files(folder) as temporary:
            write_model(model, config, card, temporary)
    except (OSError, SafetensorError) as error:
        message = f"the model was not saved to {folder}, what was there is unchanged: {error}"
        raise OSError(getattr(error, "errno", None), message) from error


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    report: RetrievalReport | Mapping[str, Any] | None = None,
    *,
    shorter: Mapping[int, RetrievalReport | Mapping[str, Any]] | None = None,
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

    The files of :func:`save_pretrained` become one commit, so the repository holds all of them or none. An
    existing model card is replaced, since its numbers belong to the old weights.

    Args:
        model: As in :func:`save_pretrained`.
        repo_id: ``"user/repo"``, or ``"repo"`` for the user who is logged in. The repository is made if it
            does not exist.
        report: As in :func:`save_pretrained`.
        shorter: As in :func:`save_pretrained`.
        private: Whether to make the repository private. An existing one keeps its visibility; if it is
            public, nothing is pushed.
        dataset: As in :func:`save_pretrained`.
        training: As in :func:`save_pretrained`.
        description: As in :func:`save_pretrained`.
        tag: As in :func:`save_pretrained`.
        license: As in :func:`save_pretrained`.
        preprocessing: As in :func:`save_pretrained`.
        token: A token that may write. By default that of ``hf auth login`` or ``HF_TOKEN``.
        revision: The branch to commit to, by default ``main``.
        create_pr: Whether to open a pull request instead of committing.
        commit_message: Message of the commit.
        overwrite: Whether to commit to a repository that holds another architecture, or files but no model.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        TypeError, ValueError: As in :func:`save_pretrained`; also ``private`` for a public repository.
        FileExistsError: The repository holds something else, and ``overwrite`` is False.
        PermissionError: There is no token, or it may not write.
        FileNotFoundError: There is no such branch.
        ConnectionError: The Hub cannot be reached or fails.
    """
    network = unwrapped_model(model)
    config = model_config(network, tag or slug(dataset) or "custom", license, preprocessing, shorter or ())
    texts = {"dataset": dataset, "training": training, "description": description, "license": license}
    api = HfApi(token=token, library_name="hybridhash")

    def push() -> str:
        name = repo_id
        if "/" not in name:
            with explained(name):
                name = f"{api.whoami()['name']}/{name}"
        size = input_size(network, preprocessing)
        card = model_card(network, f"hf-hub:{name}", size, report, shorter=shorter, **texts)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_model(network, config, card, folder)
            names, saved = _open_repository(api, name, revision, private)
            if not overwrite and not create_pr:
                _check_same_model(name, names, saved, network)
            with explained(name, revision):
                commit = api.create_commit(
                    name,
                    [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())],
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                )
        return str(commit.pr_url or commit.commit_url)

    return in_one_process(model, push)


def _open_repository(
    api: HfApi, repo_id: str, revision: str | None, private: bool
) -> tuple[set[str], str | None]:
    """Make a repository unless it exists; return the names of its files and the text of its config.

    A model card and git's own file do not count: a new repository may have them.

    Raises:
        ValueError: ``private`` for a repository that is public.
        OSError: As in :func:`push_to_hub`.
    """
    saved = None
    with explained(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
        names = {file.rfilename for file in info.siblings or ()} - {".gitattributes", CARD}
        if CONFIG in names:
            path = hf_hub_download(repo_id, CONFIG, revision=revision, token=api.token)
            saved = Path(path).read_text(encoding="utf-8")
    if private and not info.private:
        raise ValueError(
            f"{repo_id} is public: make it private in its settings first, or push with private=False"
        )
    return names, saved


def load(source: str | Path, *, cache_dir: str | Path | None = None, **kwargs: Any) -> nn.Module:
    """Load a model as ``timm.create_model(source, pretrained=True)`` does, with errors that say what to do.

    Weights from the Hub are compared with the SHA-256 that the Hub gave for them. Damaged files are deleted
    from the cache, so that the next call fetches them again. Weights in a folder are compared with the
    SHA-256 in its ``config.json``, if :func:`save_pretrained` wrote one.

    Args:
        source: One of ``"hf-hub:user/repo"``, with ``@revision`` if wanted; a folder of
            :func:`save_pretrained`; the name of a registered model, with or without tag, for its backbone.
        cache_dir: The Hub's cache, by default that of ``HF_HOME``.
        kwargs: Arguments of ``timm.create_model`` that change the model, such as ``num_classes``,
            ``img_size``, ``in_chans``, ``device`` and ``dtype``.

    Returns:
        The model, in training mode as from ``timm.create_model``; call ``eval()`` before encoding. Its
        ``lengths`` are the code lengths that it was saved with, to which codes may be cut.

    Raises:
        FileNotFoundError: There is no such repository, revision or folder, or no model in it.
        PermissionError: The repository is private or gated, and there is no token that opens it.
        ConnectionError: The Hub cannot be reached or fails, or ``HF_HUB_OFFLINE`` forbids to ask it for
            something that is not in the cache.
        OSError: The download is damaged, or the cache cannot be written.
        ValueError: The name or the tag is unknown, or the file is not a checkpoint, is of another
            architecture, or does not fit the arguments.
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
    given = dict(kwargs)
    folder = Path(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None
    try:
        with loading(str(source), repository, revision, cache_dir):
            if folder is not None:
                kwargs = _for_old_timm(folder, kwargs)
            model: Any = timm.create_model(name, pretrained=True, cache_dir=cache_dir, **kwargs)
            if folder is not None:
                _check_weights(folder)
            lengths = _saved_lengths(name, repository, revision, cache_dir)
    except (AttributeError, TypeError) as error:
        if given or ":" not in name:
            raise  # an argument that the model does not take
        raise ValueError(f"{source} could not be loaded, its {CONFIG} is damaged: {error}") from error
    if not hasattr(model, "bits") and not kwargs.get("features_only"):
        raise ValueError(
            f"{repository or source} is a {model.pretrained_cfg['architecture']}, which has no hash layer: "
            "load it with timm.create_model"
        )
    if lengths and lengths[-1] == getattr(model, "bits", None):
        model.lengths = lengths
    return cast(nn.Module, model)


def _check_weights(folder: Path) -> None:
    """Raise ValueError if the weights in a folder are not those that its config.json was written with."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not (config.is_file() and weights.is_file()):
        return
    written = json.loads(config.read_text(encoding="utf-8"))
    expected = written.get(DIGEST)
    # transformers writes new weights beside the old config.json, to which it adds its version.
    if expected is None or "transformers_version" in written:
        return
    if file_sha256(weights) != expected:
        raise ValueError(
            f"{weights} is damaged or was replaced: its SHA-256 is not the one in {CONFIG}, "
            f"{expected}; save the model again, or remove {DIGEST!r} from {CONFIG} if the change is yours"
        )


def _saved_lengths(
    name: str, repository: str | None, revision: str | None, cache_dir: str | Path | None
) -> tuple[int, ...]:
    """Return the code lengths in the config of a model that timm has just loaded, () if there are none."""
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        path = Path(place) / CONFIG
    elif kind in ("hf-hub", "hf_hub") and repository is not None:
        path = Path(hf_hub_download(repository, CONFIG, revision=revision, cache_dir=cache_dir))
    else:
        return ()
    return tuple(json.loads(path.read_text(encoding="utf-8")).get("lengths", ()))


def _parse_source(source: str | Path) -> tuple[str, str | None, str | None]:
    """Return timm's name of a source, and the repository and revision that it is downloaded from."""
    text = os.fspath(source)
    if isinstance(source, str) and timm.is_model(text.partition(".")[0]):
        return (text, *hub_source(text))
    if isinstance(source, Path) or os.path.isdir(text):
        return f"local-dir:{text}", None, None
    if text.partition(":")[0] in ("hf-hub", "hf_hub", "local-dir"):
        return (text, *hub_source(text))
    if "/" in text:
        raise FileNotFoundError(f"no folder {text!r}; a repository of the Hub is 'hf-hub:{text}'")
    similar = difflib.get_close_matches(text, timm.list_models("hybridhash*"), n=3) or ["hybridhash_64"]
    raise ValueError(
        f"no model is called {text!r}: did you mean {', '.join(similar)}, or 'hf-hub:user/repo' or a folder?"
    )


def _for_old_timm(folder: Path, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which timm before 1.0.26 loads a folder as later versions do.

    By itself it would unpickle any file: that of safetensors fails, and code in a pickle runs.
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


def _check_same_model(where: str, names: Collection[str], config: str | None, model: Any) -> None:
    """Raise FileExistsError for a place that holds anything but an earlier version of the same model.

    Args:
        where: What the error calls the place.
        names: Names of the files there.
        config: Text of its ``config.json``, or None if it has none.
        model: The model to write.
    """
    architecture = model.pretrained_cfg["architecture"]
    try:
        saved = json.loads(config)["architecture"] if config is not None else None
    except (ValueError, KeyError, TypeError):
        saved = None
    if not names or saved == architecture:
        return
    content = f"no saved model, but {', '.join(sorted(names)[:5])}"
    if saved:
        content = f"a {saved}, not a {architecture}"
    raise FileExistsError(f"{where} holds {content}: choose another place, or replace it with overwrite=True")
