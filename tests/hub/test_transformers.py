"""Saved models open in ``transformers``: AutoModel, a pipeline, Trainer."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hybridhash
from hybridhash.hub import load, save_pretrained
from tests._hub_models import create

MODELS = {
    "as made": lambda: create("hybridhash_tiny_16"),
    "another length": lambda: create("hybridhash_tiny_16", num_classes=24),
    "length reset": lambda: _reset(create(), 40),
    "another size": lambda: create(img_size=64, in_chans=1),
    "hash model": lambda: hybridhash.create_hash_model("test_vit", 24).eval(),
    "a head of its own": lambda: hybridhash.create_hash_model("resnet10t", 24, head="sigmoid").eval(),
}


def _reset(model, bits):
    model.reset_classifier(bits)
    return model.eval()


def _images(model):
    size = (2, *timm.data.resolve_model_data_config(model)["input_size"])
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_logits_of_transformers_are_the_codes_and_its_features_the_embedding(make, tmp_path):
    model = make()
    save_pretrained(model, tmp_path)
    loaded = load(tmp_path).eval()
    images = _images(loaded)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
        codes = AutoModelForImageClassification.from_pretrained(tmp_path).eval()(images).logits
        embedding = AutoModel.from_pretrained(tmp_path).eval()(images).pooler_output
        assert torch.equal(codes, model(images))
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        assert torch.equal(embedding, expected)


def test_a_pipeline_prepares_images_as_the_model_wants_them(tmp_path):
    model = create(img_size=64)
    save_pretrained(model, tmp_path, preprocessing={"mean": (0.2, 0.3, 0.4), "crop_pct": 1.0})
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(load(tmp_path)))
    got = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")(image, pool=True)
    with torch.inference_mode():
        features = model.forward_features(transform(image).unsqueeze(0))
        expected = model.forward_head(features, pre_logits=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


class _Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"pixel_values": torch.full((3, 32, 32), float(index)), "labels": index % 2}


def test_what_the_trainer_saves_is_loaded_here(tmp_path):
    save_pretrained(create(num_classes=24), tmp_path / "first")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "first")
    loss = hybridhash.losses.create_loss("csq", num_classes=2, bits=24)
    arguments = TrainingArguments(
        str(tmp_path / "runs"), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=_Rows(),
        compute_loss_func=lambda output, labels, **_: loss(output.logits, labels),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "second"))
    trained = load(tmp_path / "second").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(trained(images), model.eval()(images).logits)
    assert trained.bits == 24
    assert AutoImageProcessor.from_pretrained(tmp_path / "first").data_config["input_size"] == (3, 32, 32)


def test_an_architecture_that_fixes_its_length_is_saved_with_it(tmp_path):
    name = "fixed_length_hash_16"
    if not timm.is_model(name):

        def entry(pretrained=False, **kwargs):
            kwargs = {"num_classes": 16, **kwargs}
            return hybridhash.models.build_hybridhash(name, pretrained, **kwargs)

        entry.__name__ = name
        timm.models.register_model(entry)
    save_pretrained(create(name, num_classes=24), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["num_classes"] == 24
    assert load(tmp_path).bits == 24
