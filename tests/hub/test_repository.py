"""Saving to a folder and loading from it: exact round trips, all or nothing, errors that say what to do."""

import errno
import functools
import hashlib
import json
import os
import pickle
import re
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import hybridhash
from hybridhash.eval import evaluate
from hybridhash.hub import load, model_files, save_pretrained
from tests._hub_models import FILES, SMALL, Malicious, content, create, images_for


def _assert_same_codes(model, other):
    x = images_for(model)
    with torch.inference_mode():
        assert torch.equal(other.eval()(x), model(x))


# Round trips through a folder.

CHANGES = {
    "as made": ({}, None),
    "other bits": ({"num_classes": 40}, None),
    "classifier reset": ({}, lambda m: m.reset_classifier(24)),
    "pooling reset": ({}, lambda m: m.reset_classifier(24, "catavgmax")),
    "embedding": ({"num_classes": 0}, None),
    "feature map": ({}, lambda m: m.reset_classifier(0, "")),
    "image size": ({"img_size": 64}, None),
    "one channel": ({"in_chans": 1}, None),
    "four channels": ({"in_chans": 4}, None),
    "depths": ({"depths": (2, 1, 1)}, None),
    "widths and heads": ({"embed_dims": (24, 48, 96), "num_heads": (3, 6, 12), "mlp_ratio": 2.0}, None),
    "patches": ({"patch_size": 2}, None),
    "tokens and heads of the interaction": ({"tokens_per_block": 4, "interaction_heads": 4}, None),
    "no bias": ({"qkv_bias": False}, None),
    "the reference's order": ({"legacy_token_order": True, "pad_type": ""}, None),
}


@pytest.mark.parametrize(("kwargs", "change"), CHANGES.values(), ids=CHANGES)
def test_a_saved_model_comes_back_exactly(kwargs, change, tmp_path):
    model = create(**kwargs)
    if change:
        change(model)
        model.eval()
    save_pretrained(model, tmp_path / "model")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    _assert_same_codes(model, by_timm)
    _assert_same_codes(model, load(tmp_path / "model"))
    assert by_timm.bits == model.bits


def test_a_loaded_model_can_be_saved_and_loaded_again(tmp_path):
    model = create(img_size=64)
    save_pretrained(model, tmp_path / "first")
    again = load(str(tmp_path / "first"))
    again.reset_classifier(20)
    save_pretrained(again.eval(), tmp_path / "second")
    _assert_same_codes(again, load(f"local-dir:{tmp_path / 'second'}"))


def test_weights_keep_their_dtype_and_memory_format_does_not_matter(tmp_path):
    model = create().bfloat16().to(memory_format=torch.channels_last)
    strides = {name: p.stride() for name, p in model.named_parameters()}
    save_pretrained(model, tmp_path)
    assert {x.dtype for x in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert {name: p.stride() for name, p in model.named_parameters()} == strides
    again = load(tmp_path, dtype=torch.bfloat16).eval()
    x = images_for(model, torch.bfloat16)
    assert torch.equal(again(x), model.to(memory_format=torch.contiguous_format)(x))


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_wrappers_are_taken_off(wrap, tmp_path):
    model = create()
    save_pretrained(wrap(model), tmp_path)
    _assert_same_codes(model, load(tmp_path))


def test_saving_leaves_the_model_alone(tmp_path):
    model = create().train()
    cfg, before = dict(model.pretrained_cfg), {k: x.clone() for k, x in model.state_dict().items()}
    save_pretrained(model, tmp_path, tag="mine", license="mit", preprocessing={"crop_pct": 1.0})
    assert model.pretrained_cfg == cfg
    assert model.training
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())


def test_loading_adapts_to_arguments(tmp_path):
    save_pretrained(create(), tmp_path)
    with pytest.warns(UserWarning, match="16-bit hash layer"):
        assert load(tmp_path, num_classes=12).bits == 12
    assert load(tmp_path, img_size=64, in_chans=1)(torch.zeros(1, 1, 64, 64)).shape == (1, 16)
    assert load(tmp_path, num_classes=0)(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    maps = load(tmp_path, features_only=True)(torch.zeros(1, 3, 32, 32))
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]


# What is written.


def test_the_config_describes_these_weights_and_not_their_source(tmp_path):
    model = create("hybridhash_tiny_32", img_size=64, in_chans=1)
    model.reset_classifier(24)
    save_pretrained(model, tmp_path, dataset="CIFAR-10", license="mit", preprocessing={"mean": (0.5,)})
    config = json.loads((tmp_path / "config.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert (config["architecture"], config["num_classes"], config["bits"]) == ("hybridhash_tiny_32", 24, 24)
    assert config["model_args"]["img_size"] in (64, [64, 64])
    assert config["model_args"]["depths"] == [1, 1, 2]
    cfg = config["pretrained_cfg"]
    assert (cfg["tag"], cfg["license"], cfg["num_classes"]) == ("cifar_10", "mit", 24)
    assert (cfg["input_size"], cfg["mean"], cfg["crop_pct"]) == ([1, 64, 64], [0.5], 0.875)
    assert not {"hf_hub_id", "url", "file", "source"} & cfg.keys()
    assert load(tmp_path).pretrained_cfg["tag"] == "cifar_10"


def test_the_tag_is_the_one_given_or_that_of_the_dataset(tmp_path):
    save_pretrained(create(), tmp_path, tag="wml", dataset="CIFAR-10")
    assert load(tmp_path).pretrained_cfg["tag"] == "wml"
    save_pretrained(create(), tmp_path)
    assert load(tmp_path).pretrained_cfg["tag"] == "custom"


def test_the_card_carries_every_metric_with_its_definition(report, tmp_path):
    save_pretrained(
        create(), tmp_path, report, dataset="CIFAR-10", training="WML loss | 90 epochs", license="cc-by-4.0"
    )
    card = ModelCard.load(tmp_path / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == report.metrics
    expected = {
        "scoring": "hamming",
        "top_k": 20,
        "ties": "expected",
        "denominator": "relevant",
        "empty": "zero",
        "exclude_self": False,
        "radius": 2,
        "queries": 5,
        "database": 30,
    }
    assert all(result.metric_args == expected for result in results.values())
    assert (results["map"].dataset_name, results["map"].dataset_type) == ("CIFAR-10", "cifar_10")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "timm")
    assert report.to_markdown() in card.text
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() in card.text
    for line in (
        "**16 bits**",
        "| training | WML loss \\| 90 epochs |",
        "| licence | cc-by-4.0 |",
        "3 x 32 x 32",
    ):
        assert line in card.text


def cut_report(bits, ties="expected"):
    generator = torch.Generator().manual_seed(0)
    query, database = (torch.randn(n, bits, generator=generator) for n in (5, 30))
    return evaluate(query, torch.arange(5) % 3, database, torch.arange(30) % 3, ties=ties)


def test_the_card_lists_the_map_of_codes_cut_to_their_first_bits(tmp_path):
    shorter = {8: cut_report(8), 4: cut_report(4).to_dict()}
    save_pretrained(create(), tmp_path, cut_report(16), shorter=shorter, dataset="CIFAR-10")
    text = (tmp_path / "README.md").read_text()
    values = [cut_report(bits)["map"] for bits in (4, 8, 16)]
    rows = [f"| {bits} | {value:.4f} |" for bits, value in zip((4, 8, 16), values, strict=True)]
    assert "\n".join(["| bits | mAP |", "|---|---|", *rows]) in text
    assert "codes[:, :4]" in text
    assert load(tmp_path).lengths == (4, 8, 16)


@pytest.mark.parametrize(
    ("report", "shorter", "message"),
    [
        (None, {8: cut_report(8)}, "give their report too"),
        (cut_report(16), {16: cut_report(16)}, "fewer bits than the model, 16, got 16"),
        (cut_report(16), {8: cut_report(4)}, "of 4-bit codes, expected 8"),
        (cut_report(16), {8: cut_report(8, "best")}, "ties='best', that of 16 bits 'expected'"),
    ],
)
def test_shorter_codes_are_measured_like_the_whole_ones(report, shorter, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pretrained(create(), tmp_path, report, shorter=shorter, dataset="CIFAR-10")


def test_a_report_may_come_as_the_dictionary_it_was_stored_as(report, tmp_path):
    stored = json.loads(json.dumps(report.to_dict()))
    save_pretrained(create(), tmp_path / "a", stored, dataset="CIFAR-10")
    save_pretrained(create(), tmp_path / "b" / "a", report, dataset="CIFAR-10")
    assert (tmp_path / "a" / "README.md").read_text() == (tmp_path / "b" / "a" / "README.md").read_text()


def test_undefined_metrics_are_left_out_of_the_index(tmp_path):
    query, database = torch.randn(2, 16), torch.randn(4, 16)
    empty = evaluate(query, torch.tensor([7, 7]), database, torch.zeros(4, dtype=torch.long), empty="skip")
    save_pretrained(create(), tmp_path, empty, dataset="none relevant")
    index = [result.metric_type for result in ModelCard.load(tmp_path / "README.md").data.eval_results or []]
    assert "map" not in index


def test_without_a_report_the_card_says_so(tmp_path):
    save_pretrained(create(), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert "No retrieval metric was reported" in card.text


@pytest.mark.parametrize("bits", [16, 0])
def test_the_usage_snippet_of_the_card_runs(bits, tmp_path, monkeypatch):
    save_pretrained(create(num_classes=bits), tmp_path / "my model")
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "my model" / "README.md").read_text()
    if bits == 0:
        assert 'timm.create_model("local-dir:my model", pretrained=True)' in text
        return
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in snippet.splitlines() if line]) == 5
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    namespace = {"image": image}
    exec(snippet, namespace)
    assert namespace["packed"].shape == (1, 2)


# What is refused.


def test_models_that_their_arguments_do_not_rebuild_are_refused(tmp_path):
    pruned = create()
    pruned.prune_intermediate_layers([0, 1])
    with pytest.raises(ValueError, match=r"pruned or replaced are head\.interaction"):
        save_pretrained(pruned, tmp_path / "model")
    normed = create(norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5))
    with pytest.raises(ValueError, match=r"norm_layer=.* cannot be written"):
        save_pretrained(normed, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: torch.nn.Linear(2, 2), id="a layer"),
        pytest.param(lambda: timm.create_model("test_vit"), id="not a hash model"),
        pytest.param(lambda: hybridhash.models.HybridHash(**SMALL), id="not made by timm"),
        pytest.param(lambda: create(features_only=True), id="a feature extractor"),
    ],
)
def test_only_hash_models_of_timm_are_saved(model, tmp_path):
    with pytest.raises(TypeError, match=r"hash model made by timm\.create_model"):
        save_pretrained(model(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reports_that_do_not_belong_to_the_model_are_refused(report, tmp_path):
    with pytest.raises(ValueError, match="dataset="):
        save_pretrained(create(), tmp_path, report)
    with pytest.raises(ValueError, match="16-bit codes, expected 24"):
        save_pretrained(create(num_classes=24), tmp_path, report, dataset="CIFAR-10")
    with pytest.raises(ValueError, match="not a retrieval report"):
        save_pretrained(create(), tmp_path, {"map": 0.9}, dataset="CIFAR-10")
    with pytest.raises(ValueError, match=r"unknown keys \['crop'\]"):
        save_pretrained(create(), tmp_path, preprocessing={"crop": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_model_or_other_files_is_not_overwritten(tmp_path):
    save_pretrained(create("hybridhash_16"), tmp_path / "model")
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a hybridhash_16, not a hybridhash_32.*overwrite=True"):
        save_pretrained(create("hybridhash_32"), tmp_path / "model")
    assert content(tmp_path) == before
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds no saved model, but README\.md"):
        save_pretrained(create(), tmp_path / "project")
    assert content(tmp_path / "project") == {"README.md": b"mine"}


def test_the_same_architecture_or_overwrite_replaces_and_leaves_other_files(tmp_path):
    save_pretrained(create(), tmp_path)
    (tmp_path / "log.txt").write_text("kept")
    newer = create(num_classes=24)
    save_pretrained(newer, tmp_path)
    _assert_same_codes(newer, load(tmp_path))
    other = create("hybridhash_32")
    save_pretrained(other, tmp_path, overwrite=True)
    _assert_same_codes(other, load(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"log.txt"}


# All or nothing.


def _write_half(model, folder, **_):
    (Path(folder) / "model.safetensors").write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def _refuse(*_args, **_kwargs):
    raise PermissionError(errno.EACCES, "Permission denied")


def _fail_at_the_second_file():
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    return failing


FAILURES = {
    "writing": (model_files, "save_for_hf", _write_half),
    "making files": (tempfile, "mkdtemp", _refuse),
    "moving in": (os, "replace", _fail_at_the_second_file),
}


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_save_changes_nothing(failure, existing, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    if existing:
        save_pretrained(create(), folder)
    before = content(tmp_path)
    owner, name, function = FAILURES[failure]
    monkeypatch.setattr(owner, name, function() if function is _fail_at_the_second_file else function)
    with pytest.raises(OSError, match=f"not saved to {re.escape(str(folder))}, .*unchanged"):
        save_pretrained(create(num_classes=24), folder)
    assert content(tmp_path) == before
    assert folder.exists() == existing
    assert not existing or {path.name for path in folder.iterdir()} == FILES


def _save_with_file_size_limit(folder, limit):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save_pretrained(create(num_classes=24), folder)
    except OSError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_disk_that_takes_no_more_bytes_keeps_the_old_files(online, tmp_path):
    save_pretrained(create(), tmp_path)
    before = content(tmp_path)
    message = online.call(_save_with_file_size_limit, tmp_path, 10_000)
    assert "unchanged" in message
    assert content(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="not saved"):
        save_pretrained(create(), tmp_path / "model")
    tmp_path.chmod(0o755)


def test_a_file_in_place_of_the_folder_is_left_alone(tmp_path):
    path = tmp_path / "model"
    path.write_text("a file")
    with pytest.raises(OSError, match="not saved"):
        save_pretrained(create(), path)
    assert path.read_text() == "a file"


# Loading what cannot be loaded, from a folder.


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", b"x" * 1000, "could not be loaded: .*header"),
        ("model.safetensors", pickle.dumps({"norm.weight": 1}), "could not be loaded: .*header"),
        ("model.safetensors", b"", "could not be loaded: .*header"),
        ("pytorch_model.bin", pickle.dumps(Malicious(), 2), "could not be loaded: .*[Ww]eights.?only"),
        ("config.json", b"{", "could not be loaded"),
        ("config.json", b"{}", "could not be loaded: config.json has no 'architecture'"),
    ],
    ids=["noise", "a pickle by the wrong name", "empty", "a malicious pickle", "no JSON", "no architecture"],
)
def test_files_that_are_no_checkpoint_are_named_and_never_executed(
    name, data, message, tmp_path, monkeypatch
):
    folder = save_pretrained(create(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_of_tensors_is_loaded(tmp_path):
    model = create()
    folder = save_pretrained(model, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    _assert_same_codes(model, load(folder))


@pytest.fixture
def old_timm(monkeypatch):
    """timm before 1.0.26, which unpickles what it finds in a folder."""

    def load_state_dict(checkpoint_path, weights_only=False):
        raise AssertionError("only its signature is looked at")

    def unpickle(path, weights_only=False):
        (file,) = {*path.glob("model.safetensors"), *path.glob("pytorch_model.bin")}
        return pickle.loads(file.read_bytes()) if file.suffix == ".safetensors" else torch.load(file)

    monkeypatch.setattr("timm.models.load_state_dict", load_state_dict)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_path", unpickle)


@pytest.mark.parametrize("overlay", [None, {"crop_pct": 0.5}])
def test_a_folder_loads_with_an_old_timm(overlay, old_timm, tmp_path):
    model = create(num_classes=24)
    folder = save_pretrained(model, tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    loaded = load(folder, pretrained_cfg_overlay=overlay)
    _assert_same_codes(model, loaded)
    assert loaded.pretrained_cfg["crop_pct"] == (0.5 if overlay else model.pretrained_cfg["crop_pct"])
    _assert_same_codes(model, load(save_pretrained(loaded, tmp_path / "again")))


def test_an_old_timm_is_not_given_a_pickle_that_would_run_code(old_timm, tmp_path, monkeypatch):
    folder = save_pretrained(create(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(), 2))
    with pytest.raises(ValueError, match=r"[Ww]eights.?only"):
        load(folder)
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    folder = save_pretrained(create(), tmp_path)
    save_file(create(depths=(1, 1, 3)).state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"could not be loaded: .*unexpected: levels\.2\.blocks\.2"):
        load(folder)
    save_file({"conv1.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"could not be loaded: .*neither HybridHash nor.*conv1\.weight"):
        load(folder)


def test_folders_without_a_model_and_unknown_names_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="'hf-hub:someone/model'"):
        load("someone/model")
    with pytest.raises(ValueError, match="no model is called 'hybridhash_46': did you mean hybridhash_64"):
        load("hybridhash_46")
    with pytest.raises(
        ValueError, match=r"unknown tag in 'hybridhash_64\.in22k'.*hybridhash_64\.nest_goog_in1k"
    ):
        load("hybridhash_64.in22k")


def test_unknown_arguments_are_errors(tmp_path):
    folder = save_pretrained(create(), tmp_path)
    with pytest.raises(TypeError, match="num_bits"):
        load(folder, num_bits=24)
    with pytest.raises(ValueError, match=r"could not be loaded: img_size must be a multiple of 16"):
        load(folder, img_size=33)


def test_a_classifier_is_no_hash_model(tmp_path):
    model = timm.create_model("test_vit")
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(ValueError, match=r"is a test_vit, which has no hash layer: load it with timm"):
        load(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    save_pretrained(create(), tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or was replaced.*config.json"):
        load(tmp_path)
    config = tmp_path / "config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "weights_sha256"}
    config.write_text(json.dumps(kept))
    load(tmp_path)  # as models that were saved before


@pytest.mark.parametrize("args", [3, {"depths": 1}, {"unknown": 1}])
def test_damaged_arguments_in_the_config_are_named(args, tmp_path):
    save_pretrained(create(), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_args": args}))
    with pytest.raises(ValueError, match="could not be loaded"):
        load(tmp_path)
