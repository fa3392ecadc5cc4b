"""How a model is run over images: the precision that a processor can multiply in."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from hybridhash import _inference, create_hash_model, encode, encode_dataset, fit_hash_layer

HALVES = [torch.bfloat16, torch.float16]
IMAGES = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A linear map that records the dtype of its products."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(48, 8)
        self.dtypes: list[torch.dtype] = []

    def forward(self, images):
        codes: Tensor = self.fc(images.flatten(1))
        self.dtypes.append(codes.dtype)
        return codes


@pytest.fixture
def emulated(monkeypatch):
    """A processor without instructions for half precision."""
    monkeypatch.setattr(_inference, "multiplies_natively", lambda dtype: False)


def run_encode(model, dtype, folder):
    encode(model, [IMAGES], dtype=dtype, progress=False)


def run_encode_dataset(model, dtype, folder):
    encode_dataset(model, IMAGES, folder / "codes", batch_size=3, num_workers=0, dtype=dtype, progress=False)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("run", [run_encode, run_encode_dataset])
@pytest.mark.usefixtures("emulated")
def test_without_instructions_the_model_runs_in_float32_and_says_so(run, dtype, tmp_path):
    model = Net()
    with pytest.warns(UserWarning, match=f"no instructions for {dtype}, so the model runs in float32"):
        run(model, dtype, tmp_path)
    assert set(model.dtypes) == {torch.float32}


@pytest.mark.usefixtures("emulated")
def test_fitting_a_hash_layer_runs_in_float32_as_well():
    dtypes = []
    model = create_hash_model("resnet10t", bits=4)
    model.backbone.conv1[0].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with pytest.warns(UserWarning, match="runs in float32"):
        fit_hash_layer(model, [torch.randn(8, 3, 32, 32)], "lsh", dtype=torch.bfloat16, progress=False)
    assert set(dtypes) == {torch.float32}


@pytest.mark.usefixtures("emulated")
def test_the_warning_comes_once(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # Python's own filter: once for each place
        run_encode(Net(), torch.bfloat16, tmp_path)
        run_encode(Net(), torch.bfloat16, tmp_path)
        run_encode_dataset(Net(), torch.bfloat16, tmp_path)
    assert len([warning for warning in caught if "runs in float32" in str(warning.message)]) == 1


@pytest.mark.usefixtures("emulated")
def test_weights_in_half_precision_stay_what_they_are():
    model = Net().bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(model, [IMAGES], dtype=torch.bfloat16, progress=False)
    assert model.dtypes == [torch.bfloat16]


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({}, HALVES),
        ({"architecture": "arm64", "bf16": False}, HALVES),
        ({"architecture": "x86_64"}, []),
        ({"architecture": "x86_64", "avx512_bf16": False, "avx512_fp16": False}, []),
        ({"architecture": "x86_64", "avx512_bf16": True}, [torch.bfloat16]),
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_fp16": True}, HALVES),
    ],
)
def test_what_a_processor_multiplies_without_emulation(capabilities, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert [dtype for dtype in HALVES if _inference.multiplies_natively(dtype)] == native


def test_a_pytorch_that_does_not_tell_is_taken_at_its_word(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert _inference.multiplies_natively(torch.bfloat16)
