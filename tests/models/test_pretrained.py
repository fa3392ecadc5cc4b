"""``pretrained=True``: NesT's backbone from the Hub, here one on this machine, for every architecture."""

import inspect
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.nest import Nest

from hybridhash import hub as hub_module
from tests import _hub_server as hub_server
from tests._hub_models import SMALL, Malicious

ARCHITECTURES = timm.list_models("hybridhash*", exclude_filters="hybridhash_nano*")
UNTRAINED = "hash layer is untrained"
NEST = {**SMALL, "depths": (1, 1, 3)}  # the small networks below have one layer less


def source_of(architecture):
    size = re.fullmatch(r"hybridhash_?(small|tiny|)_\d+", architecture)[1] or "base"
    return f"timm/nest_{size}_jx.goog_in1k"


def nest_weights(seed=0):
    torch.manual_seed(seed)
    return Nest(**NEST, pad_type="same").state_dict()


def serialised(state_dict, path):
    save_file(state_dict, path)
    return path.read_bytes()


@pytest.fixture
def nests(hub, tmp_path):
    """The three repositories of NesT weights, with small networks that differ."""
    names = sorted({source_of(architecture) for architecture in ARCHITECTURES})
    return {
        name: hub.add(name, {"model.safetensors": serialised(nest_weights(seed), tmp_path / "nest")})
        for seed, name in enumerate(names)
    }


def create(architecture, cache_dir, **kwargs):
    """A small pretrained network by timm, and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = timm.create_model(
            architecture, pretrained=True, cache_dir=cache_dir, **{**SMALL, **kwargs}
        ).eval()
    return model, [str(warning.message) for warning in caught]


def state_of(architecture, cache_dir, **kwargs):
    """State, code length and warnings of a pretrained network."""
    model, messages = create(architecture, cache_dir, **kwargs)
    return {key: x.float().numpy() for key, x in model.state_dict().items()}, model.bits, messages


def feature_difference(architecture, cache_dir, nest_state):
    """Largest difference of the features from timm's NesT, and its largest feature."""
    model, _ = create(architecture, cache_dir, depths=NEST["depths"])
    nest = Nest(**NEST, pad_type="same").eval()
    nest.load_state_dict({key: torch.from_numpy(x) for key, x in nest_state.items()})
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        ours, theirs = model.forward_features(x), nest.forward_features(x)
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tag_loads_the_nest_of_its_size(architecture, hub, online, nests, tmp_path):
    hub.requests.clear()
    name = f"{architecture}.nest_goog_in1k"
    state, bits, messages = online.call(state_of, name, tmp_path)
    source = source_of(architecture)
    assert {path for _, path in hub.requests} == {f"/{source}/resolve/main/model.safetensors"}
    assert bits == int(architecture.rpartition("_")[2])
    nest = nest_weights(sorted(nests).index(source))
    for ours, theirs in [
        ("patch_embed.proj.weight", "patch_embed.proj.weight"),
        ("levels.2.blocks.1.mlp.fc1.weight", "levels.2.transformer_encoder.1.mlp.fc1.weight"),
        ("levels.1.interaction.local.weight", "levels.1.pool.conv.weight"),
    ]:
        assert (state[ours] == nest[theirs].numpy()).all()
    assert [UNTRAINED in message for message in messages] == [True]


def test_the_tag_is_the_default(online, nests, tmp_path):
    by_default, _, _ = online.call(state_of, "hybridhash_64", tmp_path)
    by_tag, _, _ = online.call(state_of, "hybridhash_64.nest_goog_in1k", tmp_path)
    key = "levels.0.blocks.0.attn.qkv.weight"
    assert (by_default[key] == by_tag[key]).all()


def test_the_features_are_nests(online, nests, tmp_path):
    nest = {
        key: x.numpy() for key, x in nest_weights(sorted(nests).index(source_of("hybridhash_16"))).items()
    }
    difference, scale = online.call(feature_difference, "hybridhash_16", tmp_path, nest)
    assert difference < 1e-4
    assert scale > 0.1


@pytest.mark.parametrize(
    ("kwargs", "key", "shape"),
    [
        ({"num_classes": 24}, "head.fc.weight", (24, 64)),
        ({"num_classes": 24, "global_pool": "catavgmax"}, "head.fc.weight", (24, 128)),
        ({"in_chans": 1}, "patch_embed.proj.weight", (16, 1, 4, 4)),
        ({"in_chans": 4}, "patch_embed.proj.weight", (16, 4, 4, 4)),
        ({"img_size": 64}, "levels.2.pos_embed", (1, 1, 16, 64)),
        ({"depths": (1, 1, 1)}, "norm.weight", (64,)),
        ({"depths": (1, 1, 3)}, "levels.2.blocks.2.norm1.weight", (64,)),
        ({"tokens_per_block": 4}, "levels.1.interaction.global_branch.pos_embed", (1, 64, 32)),
    ],
    ids=str,
)
def test_arguments_change_the_network_while_it_is_pretrained(kwargs, key, shape, online, nests, tmp_path):
    state, bits, messages = online.call(state_of, "hybridhash_16", tmp_path, **kwargs)
    assert state[key].shape == shape
    assert bits == kwargs.get("num_classes", 16)
    assert sum(UNTRAINED in message for message in messages) == 1
    nest = nest_weights(sorted(nests).index(source_of("hybridhash_16")))
    kept = nest["levels.1.transformer_encoder.0.mlp.fc2.weight"].numpy()
    assert (state["levels.1.blocks.0.mlp.fc2.weight"] == kept).all()


def feature_shapes(cache_dir):
    model, _ = create("hybridhash_16", cache_dir, features_only=True)
    weights = model.state_dict()
    shapes = [tuple(x.shape) for x in model(torch.zeros(1, 3, 32, 32))]
    return shapes, weights["levels_1.interaction.local.weight"].numpy()


def test_features_only_is_pretrained(online, nests, tmp_path):
    shapes, local = online.call(feature_shapes, tmp_path)
    assert shapes == [(1, 16, 8, 8), (1, 32, 4, 4), (1, 64, 2, 2)]
    nest = nest_weights(sorted(nests).index(source_of("hybridhash_16")))
    assert (local == nest["levels.1.pool.conv.weight"].numpy()).all()


def test_embeddings_need_no_trained_hash_layer_and_do_not_warn(online, nests, tmp_path):
    _, bits, messages = online.call(state_of, "hybridhash_16", tmp_path, num_classes=0)
    assert (bits, messages) == (0, [])


def dtypes_of(cache_dir):
    model, _ = create("hybridhash_16", cache_dir, dtype=torch.bfloat16)
    return {str(p.dtype) for p in model.parameters()}, model.patch_embed.proj.weight.float().detach().numpy()


def test_weights_arrive_in_the_dtype_asked_for(online, nests, tmp_path):
    dtypes, weight = online.call(dtypes_of, tmp_path)
    nest = nest_weights(sorted(nests).index(source_of("hybridhash_16")))
    assert dtypes == {"torch.bfloat16"}
    assert (weight == nest["patch_embed.proj.weight"].bfloat16().float().numpy()).all()


def surplus_layers(cache_dir):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("hybridhash")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    create("hybridhash_16", cache_dir)
    logger.removeHandler(handler)
    return records


def test_surplus_layers_are_named_in_the_log(online, nests, tmp_path):
    records = online.call(surplus_layers, tmp_path)
    assert any("levels.2.blocks.2" in record for record in records)


def test_the_warning_comes_once_per_process(nests, hub, tmp_path):
    code = (
        "import timm, hybridhash\n"
        f"small = {SMALL}\n"
        "for name in ('hybridhash_16', 'hybridhash_tiny_32', 'hybridhash_16'):\n"
        "    timm.create_model(name, pretrained=True, **small)\n"
        "print('done')"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment.pop("PYTHONWARNINGS", None)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert result.stdout == "done\n", result.stderr
    assert result.stderr.count(UNTRAINED) == 1
    assert "train the model" in result.stderr


# What does not fit.


def said(function, *args, **kwargs):
    """Type and text of the error of a call; for another process, since not every error can be sent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return None, ""


def load(architecture, cache_dir, **kwargs):
    return hub_module.load(architecture, cache_dir=cache_dir, **{**SMALL, **kwargs})


def test_unknown_tags_and_arguments_are_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(in22k\) for hybridhash_64"):
        timm.create_model("hybridhash_64.in22k", pretrained=True, cache_dir=tmp_path)
    with pytest.raises(TypeError, match="num_bits"):
        timm.create_model("hybridhash_64", num_bits=24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop("norm.weight"), "missing: norm.weight"),
        (lambda sd: sd.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda sd: sd.update({"norm.bias": torch.zeros(3)}), r"wrong shape: norm.bias \(3,\) instead of"),
        (lambda sd: (sd.clear(), sd.update(x=torch.zeros(1))), "neither HybridHash nor timm's NesT.* x$"),
    ],
    ids=["missing", "unexpected", "wrong shape", "another architecture"],
)
def test_weights_from_the_hub_are_checked_strictly(change, message, online, nests, tmp_path):
    state = dict(nest_weights())
    change(state)
    source = source_of("hybridhash_16")
    nests[source].files["model.safetensors"] = serialised(state, tmp_path / "changed")
    for function, kind in ((create, "ValueError"), (load, "ValueError")):
        got, text = online.call(said, function, "hybridhash_16", tmp_path / "cache")
        assert got == kind
        assert re.search(message, text)
    assert f"{source} could not be loaded" in text


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [row for row in hub_server.SAID_OF_FAULTS if row[0] not in (hub_server.WEIGHTS_DOWN, hub_server.GATED)],
)
def test_failures_of_the_hub_name_its_repository_and_are_forgotten(
    fault, kind, message, online, nests, tmp_path
):
    source = source_of("hybridhash_16")
    nests[source].fault = fault
    got, text = online.call(said, load, "hybridhash_16", tmp_path)
    assert got == kind, text
    assert re.search(message.format(re.escape(source)), text)
    nests[source].fault = None
    for function in (load, create):
        assert online.call(said, function, "hybridhash_16", tmp_path) == (None, "")


@pytest.mark.parametrize(
    ("fault", "kinds", "message"),
    [
        (
            hub_server.DOWN,
            {"LocalEntryNotFoundError"},
            "cannot find the requested files in the local cache|disk cache",
        ),
        (hub_server.CUT, {"RemoteProtocolError", "ChunkedEncodingError"}, "closed|broken|complete"),
        (hub_server.SHORT, {"OSError"}, "Consistency check failed: .*model.safetensors"),
        (hub_server.GATED, {"GatedRepoError"}, "nest_base_jx"),
    ],
)
def test_timm_alone_reports_the_real_cause_and_forgets_it(fault, kinds, message, online, nests, tmp_path):
    source = source_of("hybridhash_16")
    nests[source].fault = fault
    got, text = online.call(said, create, "hybridhash_16", tmp_path)
    assert got in kinds, text
    assert re.search(message, text)
    assert "pytorch_model.bin" not in text
    nests[source].fault = None
    assert online.call(said, create, "hybridhash_16", tmp_path) == (None, "")


def test_a_repository_that_is_gone_is_named(hub, online, nests, tmp_path):
    source = source_of("hybridhash_16")
    del hub.repositories[source]
    got, text = online.call(said, create, "hybridhash_16", tmp_path)
    assert got == "RepositoryNotFoundError"
    assert source in text
    got, text = online.call(said, load, "hybridhash_16", tmp_path)
    assert got == "FileNotFoundError"
    assert f"no repository {source}, or a private one" in text


def test_without_a_connection_the_cache_serves(online, offline, unconnected, nests, tmp_path):
    source = source_of("hybridhash_16")
    online.call(state_of, "hybridhash_16", tmp_path / "filled")
    for process, message in [
        (offline, f"{source} is not in the cache and HF_HUB_OFFLINE forbids a download"),
        (unconnected, f"the transfer of {source} failed"),
    ]:
        assert process.call(said, create, "hybridhash_16", tmp_path / "filled") == (None, "")
        assert process.call(said, load, "hybridhash_16", tmp_path / "filled") == (None, "")
        got, text = process.call(said, load, "hybridhash_16", tmp_path / "empty")
        assert got == "ConnectionError"
        assert message in text
        got, text = process.call(said, create, "hybridhash_16", tmp_path / "empty")
        assert got == "LocalEntryNotFoundError"
        assert "pytorch_model.bin" not in text


# A file instead of the Hub.


def with_file(path, **kwargs):
    return timm.create_model(
        "hybridhash_16", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **{**SMALL, **kwargs}
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_nest_weights_takes_the_place_of_the_hub(suffix, tmp_path):
    path, nest = tmp_path / f"nest{suffix}", nest_weights()
    save_file(nest, path) if suffix == ".safetensors" else torch.save(nest, path)
    with pytest.warns(UserWarning, match=UNTRAINED):
        model = with_file(path)
    assert torch.equal(model.norm.weight, nest["norm.weight"])
    assert torch.equal(model.levels[0].pos_embed, nest["levels.0.pos_embed"])


def test_the_length_stays_that_of_the_name_when_timms_script_drops_the_classifier(tmp_path):
    path = tmp_path / "nest.safetensors"
    save_file(nest_weights(), path)
    overlay = {"file": str(path), "num_classes": -1}  # as train.py --pretrained-path gives it
    with pytest.warns(UserWarning, match=UNTRAINED):
        model = timm.create_model("hybridhash_16", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    assert model.bits == 16


@pytest.mark.skipif(
    not inspect.signature(timm.models.load_state_dict).parameters["weights_only"].default,
    reason="timm before 1.0.26 runs the code in a pickle that is given as a file",
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": nest_weights(), "extra": Malicious()}, tmp_path / "nest.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        with_file(tmp_path / "nest.pth")
    assert not Path("executed").exists()


def test_a_file_of_another_network_is_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"neither HybridHash nor .*conv1\.weight"):
        with_file(tmp_path / "other.safetensors")


def test_a_file_that_is_not_there_is_no_failure_of_the_hub(tmp_path):
    overlay = {"file": str(tmp_path / "nothing.safetensors")}
    with pytest.raises(FileNotFoundError) as raised:
        hub_module.load("hybridhash_16", pretrained_cfg_overlay=overlay, **SMALL)
    assert "nest_base" not in str(raised.value)
