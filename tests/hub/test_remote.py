"""Publishing on a Hub and loading from it, against a Hub on this machine that can be told to misbehave."""

import concurrent.futures
import functools
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

import hybridhash
from hybridhash._downloads import _cache_lock, explained
from hybridhash.hub import load, push_to_hub, save_pretrained
from tests import ROOT
from tests import _hub_server as hub_server
from tests._hub_models import FILES, Malicious, content, create, images_for
from tests._hub_server import TOKEN


def _error_of(function, *args, **kwargs):
    """Return type and text of the error of a call, since not every error can be sent between processes."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return None, ""


def _push(repo_id, report=None, *, token=TOKEN, change=None, architecture="hybridhash_16", **kwargs):
    model = create(architecture, **(change or {}))
    return push_to_hub(model, repo_id, report, token=token, **kwargs)


def _codes_of(source, change, cache_dir, by_timm=False):
    """Return codes of a model from the Hub, and of the model that was pushed."""
    make = functools.partial(timm.create_model, pretrained=True) if by_timm else load
    model, pushed = make(source, cache_dir=cache_dir).eval(), create(**change)
    x = images_for(pushed)
    with torch.inference_mode():
        return model(x).numpy(), pushed(x).numpy()


def _failure_of(source, cache_dir, token=None, **kwargs):
    """Return type and text of the error of ``load``, with a token or without."""
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        return _error_of(load, source, cache_dir=cache_dir, **kwargs)
    finally:
        os.environ.pop("HF_TOKEN", None)


@pytest.fixture
def files(tmp_path):
    """Files of a published model."""
    return content(save_pretrained(create(), tmp_path / "published"))


@pytest.fixture
def repository(hub, files, request):
    """A published model that no other test uses, and its name."""
    name = "someone/" + re.sub(r"[^\w]+", "-", request.node.name)[-80:].strip("-")
    return hub.add(name, files), name


@pytest.mark.parametrize(
    "change",
    [{}, {"num_classes": 24}, {"img_size": 64}, {"in_chans": 1}, {"depths": (2, 1, 1)}],
    ids=lambda change: "-".join(change) or "as-made",
)
def test_a_published_model_comes_back_exactly(change, hub, online, report, tmp_path):
    name = "-".join(["someone/round-trip", *change])
    report = None if "num_classes" in change else report
    url = online.call(_push, name, report, dataset="CIFAR-10", change=change, private=True)
    repository = hub.repositories[name]
    assert url == f"{hub.url}/{name}/commit/{repository.head}"
    assert repository.private
    assert set(repository.files) == FILES
    repository.private = False
    for by_timm in (True, False):
        codes, expected = online.call(_codes_of, f"hf-hub:{name}", change, tmp_path / str(by_timm), by_timm)
        np.testing.assert_array_equal(codes, expected)
    card = ModelCard(repository.files["README.md"].decode())
    assert f'timm.create_model("hf-hub:{name}", pretrained=True)' in card.text


def test_everything_is_pushed_in_one_commit_that_replaces_the_old_numbers(hub, online, report):
    online.call(_push, "someone/again", report, dataset="first")
    repository = hub.repositories["someone/again"]
    commits = len(repository.commits)
    online.call(_push, "someone/again", report, dataset="second", commit_message="Better")
    assert repository.commits[commits:] == ["Better"]
    assert "second" in repository.files["README.md"].decode()


def test_a_name_without_user_is_that_of_whoever_is_logged_in(hub, online):
    online.call(_push, "short-name")
    assert "hf-hub:someone/short-name" in hub.repositories["someone/short-name"].files["README.md"].decode()


def test_a_repository_with_something_else_is_not_overwritten(hub, online, files):
    for name, there, message in [
        ("someone/data", {"train.csv": b"1"}, "someone/data holds no saved model, but train.csv"),
        ("someone/other", files, "someone/other holds a hybridhash_16, not a hybridhash_32"),
        ("someone/broken", {"config.json": b"{"}, "someone/broken holds no saved model, but config.json"),
    ]:
        repository = hub.add(name, there)
        kind, text = online.call(_error_of, _push, name, architecture="hybridhash_32")
        assert kind == "FileExistsError"
        assert message in text
        assert "overwrite=True" in text
        assert repository.files == there
        online.call(_push, name, architecture="hybridhash_32", overwrite=True)
        assert set(repository.files) == FILES | set(there)


def test_a_repository_as_the_website_makes_it_counts_as_empty(hub, online):
    repository = hub.add("someone/new", {".gitattributes": b"", "README.md": b"---\nlicense: mit\n---\n"})
    online.call(_push, "someone/new")
    assert set(repository.files) == FILES | {".gitattributes"}


def test_what_is_to_be_private_is_not_pushed_to_a_public_repository(hub, online):
    repository = hub.add("someone/public")
    kind, text = online.call(_error_of, _push, "someone/public", private=True)
    assert kind == "ValueError"
    assert "someone/public is public" in text
    assert repository.files == {}


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (hub_server.READ_ONLY, "PermissionError", "the Hub refuses .*log in"),
        (hub_server.FAILING_COMMIT, "ConnectionError", "the transfer of .* failed .*try again"),
        (hub_server.DOWN, "ConnectionError", "the transfer of .* failed .*503.*try again"),
    ],
)
def test_a_push_that_fails_names_the_repository_and_changes_nothing(fault, kind, message, online, repository):
    there, name = repository
    before = dict(there.files)
    there.fault = fault
    got, text = online.call(_error_of, _push, name, change={"num_classes": 24})
    assert got == kind
    assert name in text
    assert re.search(message, text)
    assert there.files == before


def test_a_push_without_a_good_token_says_to_log_in(hub, online):
    for token in (None, "hf_wrong"):
        for name in ("someone/secret", "secret"):
            kind, text = online.call(_error_of, _push, name, token=token)
            assert kind == "PermissionError", text
            assert name in text
            assert "hf auth login" in text
    assert "someone/secret" not in hub.repositories


def test_a_push_to_no_such_branch_names_it(online, repository):
    _, name = repository
    kind, text = online.call(_error_of, _push, name, revision="nowhere")
    assert kind == "FileNotFoundError"
    assert f"{name} has no revision 'nowhere'" in text


def test_a_model_that_cannot_be_saved_makes_no_repository(hub, online):
    kind, _ = online.call(_error_of, _push, "someone/never", preprocessing={"crop": 1})
    assert kind == "ValueError"
    assert "someone/never" not in hub.repositories


def test_a_push_without_connection_names_the_repository(unconnected):
    kind, text = unconnected.call(_error_of, _push, "someone/model")
    assert kind == "ConnectionError"
    assert "the transfer of someone/model failed" in text


@pytest.mark.parametrize(("fault", "kind", "message"), hub_server.SAID_OF_FAULTS)
@pytest.mark.parametrize("named", [True, False], ids=["ours", "pushed by timm"])
def test_what_the_hub_does_wrong_is_named_and_once_repaired_forgotten(
    fault, kind, message, named, online, repository, tmp_path
):
    there, name = repository
    if not named:  # timm's own push does not name the file, so that timm looks for a pickle too
        config = json.loads(there.files["config.json"])
        del config["pretrained_cfg"]["hf_hub_filename"]
        there.files["config.json"] = json.dumps(config).encode()
    there.fault = fault
    got, text = online.call(_failure_of, f"hf-hub:{name}", tmp_path / "cache")
    assert got == kind, text
    assert re.search(message.replace("{}", name), text)
    there.fault = None
    codes, expected = online.call(_codes_of, f"hf-hub:{name}", {}, tmp_path / "cache")
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("filename", ["model.safetensors", "config.json"])
def test_a_broken_file_in_the_repository_is_fetched_again_once_it_is_repaired(
    filename, online, repository, tmp_path
):
    there, name = repository
    good = there.files[filename]
    there.files[filename] = b"{" * len(good)
    head = there.head
    got, text = online.call(_failure_of, f"hf-hub:{name}@{head}", tmp_path / "cache")
    assert got == "OSError"
    assert f"the download of {name} was damaged and is deleted from the cache" in text
    there.files[filename] = good
    codes, expected = online.call(_codes_of, f"hf-hub:{name}", {}, tmp_path / "cache")
    np.testing.assert_array_equal(codes, expected)


def test_a_file_damaged_in_the_cache_is_noticed_in_every_revision_that_uses_it(
    hub, online, repository, tmp_path
):
    there, name = repository
    cache = tmp_path / "cache"
    online.call(_codes_of, f"hf-hub:{name}", {}, cache)
    there.files["README.md"] += b"a newer card"
    online.call(_codes_of, f"hf-hub:{name}", {}, cache)
    weights = {path.resolve() for path in cache.rglob("model.safetensors")}
    assert len(weights) == 1
    (blob,) = weights
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    got, text = online.call(_failure_of, f"hf-hub:{name}", cache)
    assert (got, name in text) == ("OSError", True)
    assert not blob.exists()
    codes, expected = online.call(_codes_of, f"hf-hub:{name}", {}, cache)
    np.testing.assert_array_equal(codes, expected)


def test_other_repositories_stay_in_the_cache_when_one_is_damaged(hub, online, files, tmp_path):
    damaged, whole = (
        hub.add("someone/damaged", files, fault=hub_server.FLIPPED),
        hub.add("someone/whole", files),
    )
    online.call(_codes_of, "hf-hub:someone/whole", {}, tmp_path)
    before = {path for path in tmp_path.rglob("*") if "whole" in str(path)}
    assert online.call(_failure_of, "hf-hub:someone/damaged", tmp_path)[0] == "OSError"
    assert {path for path in tmp_path.rglob("*") if "whole" in str(path)} == before
    assert damaged.files == whole.files


def test_what_is_not_there_is_named(hub, online, repository, tmp_path):
    there, name = repository
    for source, kind, message in [
        (
            "hf-hub:someone/nothing",
            "FileNotFoundError",
            "no repository someone/nothing, or a private one: check",
        ),
        (f"hf-hub:{name}@v9", "FileNotFoundError", f"{name} has no revision 'v9'"),
        ("hf-hub:no/such/name", "ValueError", "'hf-hub:no/such/name' names no repository: "),
    ]:
        got, text = online.call(_failure_of, source, tmp_path)
        assert got == kind, text
        assert re.search(message, text)
    del there.files["model.safetensors"]
    got, text = online.call(_failure_of, f"hf-hub:{name}", tmp_path)
    assert got == "FileNotFoundError"
    assert f"{name} lacks a file of a timm model" in text
    there.files.clear()
    got, text = online.call(_failure_of, f"hf-hub:{name}", tmp_path)
    assert got == "FileNotFoundError"
    assert f"{name} lacks a file of a timm model" in text


def test_a_private_repository_opens_with_the_right_token_only(hub, online, files, tmp_path):
    hub.add("someone/private", files, private=True)
    got, text = online.call(_failure_of, "hf-hub:someone/private", tmp_path)
    assert got == "FileNotFoundError"
    assert "someone/private, or a private one" in text
    assert "HF_TOKEN" in text
    got, text = online.call(_failure_of, "hf-hub:someone/private", tmp_path, token="hf_wrong")
    assert got == "PermissionError", text
    assert "the Hub refuses someone/private" in text
    assert online.call(_failure_of, "hf-hub:someone/private", tmp_path, token=TOKEN) == (None, "")


def test_without_a_connection_only_the_cache_is_left(online, offline, unconnected, repository, tmp_path):
    _, name = repository
    empty, filled = tmp_path / "empty", tmp_path / "filled"
    online.call(_codes_of, f"hf-hub:{name}", {}, filled)
    for process, message in [
        (offline, f"{name} is not in the cache and HF_HUB_OFFLINE forbids a download: load it once without"),
        (unconnected, f"the transfer of {name} failed"),
    ]:
        got, text = process.call(_failure_of, f"hf-hub:{name}", empty)
        assert got == "ConnectionError", text
        assert message in text
        codes, expected = process.call(_codes_of, f"hf-hub:{name}", {}, filled)
        np.testing.assert_array_equal(codes, expected)


def test_a_cache_that_cannot_be_written_is_named(online, repository, tmp_path):
    _, name = repository
    (tmp_path / "cache").write_text("a file")
    got, text = online.call(_failure_of, f"hf-hub:{name}", tmp_path / "cache")
    assert got in ("FileExistsError", "NotADirectoryError")
    assert text.startswith(("[Errno 17]", "[Errno 20]"))
    assert f"{name}: " in text


def test_weights_of_another_network_name_the_repository(online, repository, tmp_path):
    there, name = repository
    save_file(create(depths=(1, 1, 3)).state_dict(), tmp_path / "other.safetensors")
    there.files["model.safetensors"] = (tmp_path / "other.safetensors").read_bytes()
    got, text = online.call(_failure_of, f"hf-hub:{name}", tmp_path / "cache")
    assert got == "ValueError"
    assert re.search(rf"{name} could not be loaded: .*unexpected: levels\.2\.blocks\.2", text)


def test_a_pickle_from_the_hub_is_refused_unless_it_holds_tensors_only(online, repository, tmp_path):
    there, name = repository
    config = json.loads(there.files["config.json"])
    del config["pretrained_cfg"]["hf_hub_filename"]
    there.files["config.json"] = json.dumps(config).encode()
    del there.files["model.safetensors"]
    there.files["pytorch_model.bin"] = pickle.dumps(Malicious(), protocol=2)
    got, text = online.call(_failure_of, f"hf-hub:{name}", tmp_path / "cache")
    assert got == "ValueError"
    assert re.search(rf"{name} could not be loaded: .*[Ww]eights.only", text)
    assert not Path("executed").exists()
    torch.save(create().state_dict(), tmp_path / "model.bin")
    there.files["pytorch_model.bin"] = (tmp_path / "model.bin").read_bytes()
    codes, expected = online.call(_codes_of, f"hf-hub:{name}", {}, tmp_path / "cache")
    np.testing.assert_array_equal(codes, expected)


# The backbone of a hash model.

BACKBONE = "timm/test_vit.r160_in1k"


@pytest.fixture
def backbone(hub, tmp_path):
    """The repository of a backbone's weights, and its state dict."""
    state = {**timm.create_model("test_vit").state_dict()}
    save_file(state, tmp_path / "backbone.safetensors")
    return hub.add(BACKBONE, {"model.safetensors": (tmp_path / "backbone.safetensors").read_bytes()}), state


def _hash_model(cache_dir, name="test_vit"):
    return hybridhash.create_hash_model(name, 16, pretrained=True, cache_dir=cache_dir)


def _norm_of_hash_model(cache_dir):
    return _hash_model(cache_dir).backbone.norm.weight.detach().numpy()


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        *hub_server.SAID_OF_FAULTS,
        ("header", "OSError", "the download of {} was damaged and is deleted.*load it again"),
    ],
)
def test_failures_at_the_backbone_name_its_repository_and_are_forgotten(
    fault, kind, message, online, backbone, tmp_path
):
    repository, state = backbone
    good = repository.files["model.safetensors"]
    if fault == "header":
        repository.files["model.safetensors"] = b"{" * 100
    else:
        repository.fault = fault
    got, text = online.call(_error_of, _hash_model, tmp_path / "cache")
    assert got == kind, text
    assert re.search(message.replace("{}", BACKBONE), text)
    repository.files["model.safetensors"] = good
    repository.fault = None
    weight = online.call(_norm_of_hash_model, tmp_path / "cache")
    np.testing.assert_array_equal(weight, state["norm.weight"].numpy())


def test_a_backbone_that_is_not_there_is_named(hub, online, offline, tmp_path):
    hub.repositories.pop(BACKBONE, None)
    got, text = online.call(_error_of, _hash_model, tmp_path)
    assert got == "FileNotFoundError"
    assert f"no repository {BACKBONE}, or a private one" in text
    for name in ("test_vit", f"hf-hub:{BACKBONE}"):
        got, text = offline.call(_error_of, _hash_model, tmp_path, name)
        assert got == "ConnectionError"
        assert f"{BACKBONE} is not in the cache and HF_HUB_OFFLINE forbids" in text


def _save_hash_model(cache_dir, name, folder):
    model = _hash_model(cache_dir, name).eval()
    save_pretrained(model, folder)
    return model(torch.ones(1, 3, 96, 96)).detach().numpy()


def _codes_of_folder(folder):
    return load(folder).eval()(torch.ones(1, 3, 96, 96)).detach().numpy()


@pytest.mark.parametrize("scheme", ["hf-hub", "local-dir"])
def test_a_saved_hash_model_needs_neither_the_repository_nor_the_folder_of_its_backbone(
    scheme, hub, online, offline, tmp_path
):
    model = timm.create_model("test_vit", img_size=96, embed_dim=32, num_heads=1)
    timm.models.save_for_hf(model, tmp_path / "backbone", safe_serialization=True)
    files = content(tmp_path / "backbone")
    hub.add("someone/backbone", files)
    name = "hf-hub:someone/backbone" if scheme == "hf-hub" else f"local-dir:{tmp_path / 'backbone'}"
    codes = online.call(_save_hash_model, tmp_path / "cache", name, tmp_path / "model")
    (tmp_path / "backbone").rename(tmp_path / "elsewhere")
    config = (tmp_path / "model" / "config.json").read_text()
    assert json.loads(config)["model_args"]["backbone"] == "test_vit"
    assert str(tmp_path) not in config
    assert "someone" not in config
    np.testing.assert_array_equal(offline.call(_codes_of_folder, tmp_path / "model"), codes)


def _failure_in_a_cache_of_others(source, cache_dir):
    """The error where files of the cache may not be deleted."""

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    unlink = Path.unlink
    Path.unlink = refuse
    try:
        return _failure_of(source, cache_dir)
    finally:
        Path.unlink = unlink


def test_a_damaged_file_that_cannot_be_deleted_is_named(online, repository, tmp_path):
    _, name = repository
    cache = tmp_path / "cache"
    online.call(_codes_of, f"hf-hub:{name}", {}, cache)
    (blob,) = {path.resolve() for path in cache.rglob("model.safetensors")}
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    for _ in range(2):
        got, text = online.call(_failure_in_a_cache_of_others, f"hf-hub:{name}", cache)
        assert got == "PermissionError"
        assert f"the download of {name} is damaged and cannot be deleted" in text
        assert f"have {blob} deleted" in text
        assert "another cache_dir" in text


def test_a_damaged_file_stays_while_another_process_loads_it(online, repository, tmp_path):
    # Else the other compares what a third has fetched meanwhile, not what it has loaded itself.
    _, name = repository
    cache = tmp_path / "cache"
    online.call(_codes_of, f"hf-hub:{name}", {}, cache)
    (blob,) = {path.resolve() for path in cache.rglob("model.safetensors")}
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with _cache_lock(name, cache, shared=True):  # as any process does while it loads
        failure = online.start(_failure_of, f"hf-hub:{name}", cache)
        with pytest.raises(concurrent.futures.TimeoutError):
            failure.result(timeout=1)
        assert blob.exists()
    assert failure.result(timeout=120)[0] == "OSError"
    assert not blob.exists()


def test_a_file_that_vanishes_while_it_is_read_is_told_from_a_failing_transfer():
    error = FileNotFoundError("No such file or directory: blobs/0123")  # that of safetensors has no errno
    message = r"someone/model was deleted from the cache.*load it again"
    with pytest.raises(FileNotFoundError, match=message), explained("someone/model"):
        raise error


def _run_python_blocks(text, folder):
    """Run the blocks of a document one after the other, in ``folder`` and logged in."""
    before = Path.cwd()
    os.chdir(folder)
    os.environ["HF_TOKEN"] = TOKEN
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randn(n, 16, generator=generator) for n in (4, 20)]
    query, database = (hybridhash.HashCodes.from_codes(c, labels=torch.arange(len(c)) % 2) for c in codes)
    namespace = {"model": create(), "query": query, "database": database}
    try:
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(block, namespace)
    finally:
        os.chdir(before)
        del os.environ["HF_TOKEN"]
    return namespace["model"].bits


def test_the_code_of_the_manual_runs(hub, online, tmp_path):
    text = (ROOT / "docs" / "publishing.md").read_text()
    assert online.call(_run_python_blocks, text, tmp_path) == 16
    assert hub.repositories["someone/my-hashes"].private
    assert set(hub.repositories["someone/my-hashes"].files) == FILES
