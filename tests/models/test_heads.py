"""Hash heads: the formulas of their papers, and what must hold of every one."""

import copy
import json

import pytest
import torch
from torch import nn

from hybridhash import create_hash_model, hub, pack_codes
from hybridhash.models import create_head, heads, list_heads

WIDTH, BITS = 10, 6
BATCH_MODE = {
    "batchnorm",
    "bihalf",
    "hashcoder",
    "two_level",
}  # another result in training than in evaluation


def make(name, **kwargs):
    torch.manual_seed(0)
    return create_head(name, WIDTH, BITS, **kwargs)


def embeddings(rows=7, seed=1):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list_heads())
def test_codes_have_the_shape_and_every_parameter_a_gradient(name):
    head = make(name)
    codes = head(embeddings())
    assert codes.shape == (7, BITS)
    (codes * torch.randn(7, BITS, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert [key for key, p in head.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters())


@pytest.mark.parametrize("name", list_heads())
def test_state_dict_copies_and_pooled_dtypes(name):
    head, other = make(name).eval(), create_head(name, WIDTH, BITS).eval()
    other.load_state_dict(head.state_dict())
    x = embeddings()
    torch.testing.assert_close(other(x), head(x))
    torch.testing.assert_close(copy.deepcopy(head)(x), head(x))
    assert head.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(other(x).isfinite().all())


@pytest.mark.parametrize("name", list_heads())
def test_a_head_compiles_and_exports_in_evaluation(name):
    head, x = make(name).eval(), embeddings()
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(head, (x,), dynamic_shapes=({0: batch},))
    other = embeddings(rows=3, seed=4)
    torch.testing.assert_close(program.module()(other), head(other))


@pytest.mark.parametrize("name", list_heads())
def test_a_head_compiles_in_training(name):
    head = make(name, **({"drop_rate": 0.0} if name == "two_level" else {}))
    plain, x = copy.deepcopy(head), embeddings()
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    compiled(x).square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", sorted(set(list_heads()) - BATCH_MODE))
def test_training_and_evaluation_give_the_same_codes(name):
    head, x = make(name), embeddings()
    torch.testing.assert_close(head.train()(x), head.eval()(x))


@pytest.mark.parametrize("name", list_heads())
def test_sizes_below_one_and_unknown_arguments_raise(name):
    for bits in (0, 4097):
        with pytest.raises(ValueError, match=f"bits must be 1 to 4096, got {bits}"):
            create_head(name, WIDTH, bits)
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        create_head(name, 0, BITS)
    with pytest.raises(TypeError, match="takes no argument 'epsilom', only"):
        create_head(name, WIDTH, BITS, epsilom=1)


def test_linear_is_a_former_name_of_tanh():
    with pytest.deprecated_call(match="'linear' is now called 'tanh'"):
        head = create_head("linear", WIDTH, BITS)
    assert type(head) is heads.TanhHead
    with pytest.deprecated_call(match="'linear' is now called 'tanh'"):
        model = create_hash_model("resnet10t", BITS, head="linear")
    assert model.head_name == model.model_args["head"] == "tanh"
    assert "linear" not in list_heads()


@pytest.mark.filterwarnings("error")
def test_a_model_saved_with_the_former_name_loads_without_a_word(tmp_path):
    model = create_hash_model("resnet10t", BITS).eval()
    hub.save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"]["head"] == "tanh"
    config["model_args"]["head"] = "linear"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = hub.load(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert loaded.head_name == "tanh"


def test_an_unknown_head_names_the_nearest():
    with pytest.raises(ValueError, match="no head is called 'tahn'; nearest: tanh"):
        create_head("tahn", WIDTH, BITS)


@pytest.mark.parametrize("name", ["sign", "greedy"])
def test_signs_are_exact_however_large_or_small_the_output(name):
    x = embeddings(rows=1000) * torch.logspace(-6, 6, 1000)[:, None]
    assert make(name)(x).abs().unique().tolist() == [1.0]


def test_tanh_is_that_of_unbounded():
    head, unbounded = make("tanh"), make("unbounded")
    torch.testing.assert_close(head(embeddings()), torch.tanh(unbounded(embeddings())))


@pytest.mark.parametrize(
    ("schedule", "calls", "expected"),
    [
        ("iterations", 0, 1.0),
        ("iterations", 199, 1.0),
        ("iterations", 200, 2.0**0.5),
        ("iterations", 650, 4.0**0.5),
        ("epochs", 19, 1.0),
        ("epochs", 20, 2.0**0.5),
        ("epochs", 60, 2.0),
    ],
)
def test_continuation_follows_its_published_schedule(schedule, calls, expected):
    head = make("continuation", schedule=schedule)
    for _ in range(calls):
        head.step()
    assert head.scale.item() == pytest.approx(expected)
    x = embeddings()
    torch.testing.assert_close(head(x), torch.tanh(expected * head.fc(x)))
    resumed = make("continuation", schedule=schedule)
    resumed.load_state_dict(head.state_dict())
    assert torch.equal(resumed.scale, head.scale)


def test_continuation_refuses_another_schedule():
    with pytest.raises(ValueError, match="'iterations', 'epochs', got 'steps'"):
        make("continuation", schedule="steps")


def gradient_of(head, z):
    """What a head whose map is the identity passes back for the upstream gradients 1, 2, 3 ..."""
    head.fc = nn.Identity()
    z = z.clone().requires_grad_()
    codes = head(z)
    upstream = torch.arange(1.0, z.numel() + 1).view_as(z)
    return codes.detach(), torch.autograd.grad(codes, z, upstream)[0], upstream


def test_sign_passes_the_gradient_inside_the_unit_interval_only():
    z = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 2.0, 0.9]])
    codes, gradient, upstream = gradient_of(make("sign"), z)
    assert codes.tolist() == [[-1, -1, -1, 1, 1, 1]]
    torch.testing.assert_close(gradient, upstream * (z.abs() <= 1))


def test_greedy_passes_the_gradient_everywhere():
    z = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 2.0, 0.9]])
    codes, gradient, upstream = gradient_of(make("greedy"), z)
    assert codes.tolist() == [[-1, -1, -1, 1, 1, 1]]
    torch.testing.assert_close(gradient, upstream)


def test_signs_of_infinite_outputs_are_signs():
    z = torch.tensor([[torch.inf, -torch.inf, 0.5, -0.5, 0.0, 3.0]])
    codes, gradient, upstream = gradient_of(make("greedy"), z)
    assert codes.tolist() == [[1, -1, 1, -1, -1, 1]]
    torch.testing.assert_close(gradient, upstream * z.isfinite())


@pytest.mark.parametrize("rows", [1, 6, 7])
def test_bi_half_splits_each_bit_in_halves_and_pulls(rows):
    z = embeddings(rows)[:, :BITS]
    codes, gradient, upstream = gradient_of(make("bihalf", gamma=3.0), z)
    for k in range(BITS):
        largest = set(z[:, k].argsort(descending=True)[: (rows + 1) // 2].tolist())
        assert {i for i in range(rows) if codes[i, k] == 1} == largest
    torch.testing.assert_close(gradient, upstream + 3.0 * (z - codes) / z.numel())


def test_bi_half_is_the_identity_in_evaluation():
    head = make("bihalf").eval()
    torch.testing.assert_close(head(embeddings()), head.fc(embeddings()))


def test_divide_and_encode_equals_its_slices():
    head, x = make("divide", slice_size=4, epsilon=0.1), 5 * embeddings(40)
    features = head.features(x)
    expected = torch.zeros(40, BITS)
    for i in range(40):
        for k in range(BITS):
            part = features[i, 4 * k : 4 * k + 4]
            s = torch.sigmoid(part @ head.fc.weight[k, :, 0] + head.fc.bias[k])
            expected[i, k] = 2 * (0 if s < 0.4 else 1 if s > 0.6 else s) - 1
    torch.testing.assert_close(head(x), expected)
    assert bool((head(x).abs() == 1).any())
    assert bool((head(x).abs() < 0.2).any())


@pytest.mark.parametrize("epsilon", [0.0, 0.6])
def test_divide_and_encode_refuses_a_threshold_outside(epsilon):
    with pytest.raises(ValueError, match="epsilon must be in"):
        make("divide", epsilon=epsilon)


def test_batchnorm_head_is_a_map_without_bias_then_norm():
    head, x = make("batchnorm"), embeddings(50)
    assert head.fc.bias is None
    z = x @ head.fc.weight.T
    expected = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), expected)


def test_every_shorter_length_keeps_the_weightiest_bits():
    head, x = make("weighted").eval(), embeddings()
    weights = torch.tensor([0.5, -3.0, 1.0, 0.1, 2.0, -0.2])
    head.set_weights(weights)
    full = head(x)
    for bits in range(1, BITS + 1):
        short = head.truncated(bits)
        kept = weights.abs().argsort(descending=True)[:bits]
        assert short.bits == bits
        assert torch.equal(pack_codes(short(x)), pack_codes(full[:, kept]))
        assert torch.equal(short.weights, weights[kept])
    for bits in (0, BITS + 1):
        with pytest.raises(ValueError, match=f"bits must be 1 to {BITS}"):
            head.truncated(bits)
    with pytest.raises(ValueError, match=r"weights must be \(6,\), got \(5,\)"):
        head.set_weights(weights[:5])


def test_two_levels_stand_side_by_side():
    head, x = make("two_level").eval(), embeddings()
    deeper = torch.relu(x @ head.deeper.weight.T + head.deeper.bias)
    z = torch.cat([x, deeper], 1) @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head(x), 2 * torch.sigmoid(z) - 1)


def test_mlp_is_tanh_after_each_map():
    head, x = make("mlp", hidden=(5, 4)), embeddings()
    maps = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in maps] == [5, 4, BITS]
    for layer in maps:
        x = torch.tanh(x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(head(embeddings()), x)


def test_every_public_head_is_in_the_registry():
    classes = {name for name in heads.__all__ if name.endswith("Head")}
    assert {type(make(name)).__name__ for name in list_heads()} == classes


def test_a_hash_coder_is_two_maps_with_batch_normalisation():
    head, x = make("hashcoder", hidden=5), embeddings(rows=64)

    def normalised(z):
        return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()

    hidden = torch.relu(normalised(x @ head.hidden.weight.T + head.hidden.bias))
    torch.testing.assert_close(head(x), normalised(hidden @ head.fc.weight.T), atol=1e-5, rtol=1e-4)
