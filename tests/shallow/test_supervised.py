"""KSH, SDH and ITQ-CCA against literal transcriptions, and on scanned digits against ITQ without labels."""

import io
import pickle
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cross_decomposition import CCA
from sklearn.datasets import load_digits

from hybridhash.eval import mean_average_precision
from hybridhash.models import fit_hash_head
from hybridhash.shallow import ITQCCA, KSH, SDH
from hybridhash.shallow.itqcca import canonical_directions
from hybridhash.shallow.kernel import GaussianKernel
from hybridhash.shallow.sdh import discrete_codes
from hybridhash.shallow.unsupervised import random_rotation

ESTIMATORS = {
    "ksh": lambda bits=4, **settings: KSH(bits, **{"num_anchors": 12, "iterations": 20, **settings}),
    "sdh": lambda bits=4, **settings: SDH(bits, **{"num_anchors": 12, **settings}),
    "itq-cca": lambda bits=4, **settings: ITQCCA(bits, **settings),
}
each = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(count=60, classes=3, width=6, noise=0.5, seed=0):
    """Features around one center for each class, and class ids."""
    g = seeded(seed)
    labels = torch.arange(count) % classes
    centers = 2 * torch.randn(classes, width, generator=g, dtype=torch.float64)
    return centers[labels] + noise * torch.randn(count, width, generator=g, dtype=torch.float64), labels


def signs(codes):
    return torch.where(codes > 0, 1.0, -1.0).double()


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=seeded())
    x, y = torch.as_tensor(data.data / 16)[order].float(), torch.as_tensor(data.target)[order].long()
    return (x[:200], y[:200]), (x[200:900], y[200:900])


def digits_map(codes_of, digits):
    (query, query_labels), (database, database_labels) = digits
    return float(mean_average_precision(codes_of(query), query_labels, codes_of(database), database_labels))


@pytest.mark.parametrize(
    ("estimator", "bound"),
    [(KSH(8, num_anchors=100, iterations=60), 0.88), (SDH(8, num_anchors=300), 0.90), (ITQCCA(8), 0.72)],
    ids=["ksh", "sdh", "itq-cca"],
)
def test_on_digits_labels_help(estimator, bound, digits):
    train = digits[1]
    without = digits_map(fit_hash_head(train[0], "itq", 8, seeded()), digits)
    found = digits_map(estimator.fit(*train, generator=seeded()).transform, digits)
    assert without + 0.1 < bound < found


# --- KSH


def literal_ksh(kernel, similarity, bits, iterations):
    """The authors' program, with the pairs as a matrix: the columns of A."""
    count = len(kernel)
    left = bits * similarity
    right = kernel.T @ kernel
    projections = []
    for _ in range(bits):
        a = scipy.linalg.eigh(kernel.T @ left @ kernel, right)[1][:, -1]
        a = a * np.sqrt(count / (a @ right @ a))
        b = literal_descent(kernel, left, a, iterations)
        y, z = (np.where(kernel @ p > 0, 1.0, -1.0) for p in (a, b))
        if z @ left @ z > y @ left @ y:
            a, y = b, z
        projections.append(a)
        left = left - np.outer(y, y)
    return np.stack(projections, 1)


def literal_descent(kernel, left, start, iterations):
    def cost(a):
        y = 2 / (1 + np.exp(-kernel @ a)) - 1
        return -y @ left @ y, y

    before = now = start
    costs, delta, beta = [cost(start)[0]] * 2, [0.0, 1.0], 1.0
    for t in range(iterations):
        v = now + (delta[t] - 1) / delta[t + 1] * (now - before)
        at_v, y = cost(v)
        gradient = -kernel.T @ ((left @ y) * (1 - y**2))
        for j in range(51):
            b = 2**j * beta
            z = v - gradient / b
            step = z - v
            if cost(z)[0] <= at_v + gradient @ step + b * step @ step / 2:
                break
        before, now, beta = now, z, b
        costs.append(cost(z)[0])
        delta.append((1 + np.sqrt(1 + 4 * delta[-1] ** 2)) / 2)
        if abs(costs[-1] - costs[-2]) / len(kernel) <= 1e-2:
            break
    return now


@pytest.mark.parametrize("iterations", [0, 1, 8])
@pytest.mark.parametrize("multi_label", [False, True])
def test_ksh_is_the_authors_program(iterations, multi_label):
    x, labels = clusters(40, noise=1.0)
    if multi_label:
        labels = (torch.rand(40, 4, generator=seeded(1)) < 0.4).long()
        labels[:, 0] |= ~labels.any(1)
    estimator = KSH(3, num_anchors=5, iterations=iterations).fit(x, labels, generator=seeded())
    hot = labels.double() if multi_label else torch.nn.functional.one_hot(labels).double()
    similarity = torch.where(hot @ hot.T > 0, 1.0, -1.0).numpy()
    kernel = estimator.kernel_(x).numpy()
    found = kernel @ estimator.projection_.numpy()
    bases = [np.linalg.svd(kernel, full_matrices=False)[0]]
    if iterations == 0:
        bases.append(kernel)  # the eigenproblem is the same in the coordinates of the paper
    for basis in bases:
        expected = basis @ literal_ksh(basis, similarity, 3, iterations)
        turned = np.sign((found * expected).sum(0))
        np.testing.assert_allclose(found, turned * expected, rtol=1e-5, atol=1e-7)


def test_each_bit_of_ksh_leaves_less_of_the_similarity_and_descent_less_than_the_eigenproblem():
    x, labels = clusters(noise=1.5)
    left = {}
    for iterations in (0, 100):
        estimator = KSH(8, num_anchors=20, iterations=iterations).fit(x, labels, generator=seeded())
        h = signs(estimator.kernel_(x) @ estimator.projection_)
        target = 8 * torch.where(labels[:, None] == labels, 1.0, -1.0).double()
        residuals = [float((target - h[:, :k] @ h[:, :k].T).square().sum()) for k in range(9)]
        assert all(after < before for before, after in pairwise(residuals))
        left[iterations] = residuals[-1]
    assert left[100] <= left[0]


def test_the_kernel_is_the_formula_and_centred():
    x, _ = clusters(10)
    kernel = GaussianKernel(x, 4, None, seeded())
    assert all(bool((x == anchor).all(1).any()) for anchor in kernel.anchors)
    distances = torch.stack([(row - kernel.anchors).square().sum(1) for row in x])
    assert kernel.width**2 == pytest.approx(float(distances.mean()))
    expected = torch.exp(-distances / (2 * distances.mean()))
    torch.testing.assert_close(kernel(x), expected - expected.mean(0))
    assert GaussianKernel(x, 4, 0.7, seeded()).width == 0.7


def test_unlabelled_images_serve_as_anchors_only():
    x, labels = clusters()
    noise = 5 + torch.randn(30, 6, generator=seeded(1), dtype=torch.float64)
    both, unknown = torch.cat([x, noise]), torch.cat([labels, torch.full((30,), -1)])
    for make in ESTIMATORS.values():
        assert bool(make().fit(both, unknown, generator=seeded()).transform(both).isfinite().all())
    alone = ITQCCA(4).fit(x, labels, generator=seeded())
    torch.testing.assert_close(
        ITQCCA(4).fit(both, unknown, generator=seeded()).projection_, alone.projection_
    )


# --- SDH


def sdh_objective(kernel, labels, b, projection, nu=1e-2, ridge=1.0, kernel_ridge=1e-2):
    """With the best classifier of these codes."""
    classifier = torch.linalg.inv(b.T @ b + ridge * torch.eye(b.shape[1])) @ b.T @ labels
    fit = (labels - b @ classifier).square().sum() + ridge * classifier.square().sum()
    kernel_fit = (b - kernel @ projection).square().sum() + kernel_ridge * projection.square().sum()
    return float(fit + nu * kernel_fit)


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_of_sdh_never_increases(seed):
    x, ids = clusters(classes=5, noise=1.0, seed=seed)
    labels = torch.nn.functional.one_hot(ids).double()
    kernel = GaussianKernel(x, 15, None, seeded())(x)
    start = signs(torch.randn(60, 6, generator=seeded(seed)))
    values = []
    for iterations in range(6):
        b, projection = discrete_codes(kernel, labels, start, nu=1e-2, iterations=iterations)
        assert bool((b.abs() == 1).all())
        values.append(sdh_objective(kernel, labels, b, projection))
    assert all(after <= before + 1e-9 for before, after in pairwise(values))
    assert values[-1] < 0.5 * values[0]


def test_the_first_round_of_sdh_is_the_literal_one():
    x, ids = clusters(classes=4, noise=1.0)
    labels = torch.nn.functional.one_hot(ids).double()
    kernel = GaussianKernel(x, 15, None, seeded())(x)
    start = signs(torch.randn(60, 5, generator=seeded()))
    w = torch.linalg.inv(start.T @ start + torch.eye(5)) @ start.T @ labels
    p = torch.linalg.inv(kernel.T @ kernel + 0.01 * torch.eye(15)) @ kernel.T @ start
    f = kernel @ p

    def objective(b, i):
        return float((labels[i] - w.T @ b).square().sum() + 0.05 * (b - f[i]).square().sum())

    expected = []
    for i in range(60):
        b = signs(f[i])
        for _ in range(10):
            for k in range(5):
                other = torch.arange(5) != k
                z = w[k] @ labels[i] + 0.05 * f[i, k] - b[other] @ w[other] @ w[k]
                b[k] = 1.0 if z > 0 else -1.0
        expected.append(b if objective(b, i) < objective(start[i], i) else start[i])
    found, projection = discrete_codes(kernel, labels, start, nu=0.05, iterations=1)
    assert torch.equal(found, torch.stack(expected))
    refit = torch.linalg.inv(kernel.T @ kernel + 0.01 * torch.eye(15)) @ kernel.T @ found
    torch.testing.assert_close(projection, refit)


# --- ITQ-CCA


@pytest.mark.parametrize("classes", [3, 9])
def test_canonical_directions_solve_the_generalised_eigenproblem(classes):
    x, ids = clusters(classes=classes, noise=1.0)
    y = torch.nn.functional.one_hot(ids).double()
    directions, correlations = canonical_directions(x, y, 0.01)
    joint = np.cov(torch.cat([x, y], 1).numpy().T) + 0.01 * np.eye(6 + classes)
    cross, across = joint[:6, 6:], joint[6:, 6:]
    own = joint[:6, :6]
    values, vectors = scipy.linalg.eigh(cross @ np.linalg.inv(across) @ cross.T, own)
    kept = min(6, classes)
    assert directions.shape == (6, kept)
    np.testing.assert_allclose(correlations**2, values[::-1][:kept], atol=1e-12)
    for k in range(min(kept, classes - 1)):
        expected, found = vectors[:, -1 - k], directions[:, k].numpy()
        np.testing.assert_allclose(found, expected * np.sign(found @ own @ expected), atol=1e-8)


def test_canonical_correlations_are_those_of_scikit_learn():
    x, _ = clusters(80, noise=1.0)
    y = (x[:, :3] + torch.randn(80, 3, generator=seeded(4)) > 0).double()
    cca = CCA(2, max_iter=5000, tol=1e-12).fit(x.numpy(), y.numpy())
    left, right = cca.transform(x.numpy(), y.numpy())
    expected = [np.corrcoef(left[:, k], right[:, k])[0, 1] for k in range(2)]
    np.testing.assert_allclose(canonical_directions(x, y, 1e-12)[1][:2], expected, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 6])
def test_itq_cca_weighs_directions_by_correlation_and_rotates(bits):
    x, ids = clusters(noise=1.0)
    estimator = ITQCCA(bits, iterations=0).fit(x, ids, generator=seeded(3))
    directions, correlations = canonical_directions(x, torch.nn.functional.one_hot(ids).double(), 1e-4)
    weighted = torch.zeros(6, bits, dtype=torch.float64)
    weighted[:, :3] = (directions * correlations)[:, :bits]
    expected = (x - x.mean(0)) @ weighted @ random_rotation(bits, seeded(3))
    torch.testing.assert_close(estimator.transform(x), expected.float())

    def loss(iterations):
        fitted = ITQCCA(bits, iterations=iterations).fit(x, ids, generator=seeded(3))
        codes = (x - fitted.mean_) @ fitted.projection_
        return float((signs(codes) - codes).square().sum())

    assert all(after <= before + 1e-9 for before, after in pairwise(map(loss, range(5))))
    assert torch.linalg.matrix_rank(estimator.projection_, rtol=1e-8) == 2


# --- all of them


@each
def test_transform_gives_codes_on_the_callers_terms(make):
    x, labels = clusters()
    before = x.clone()
    estimator = make()
    codes = estimator.fit_transform(x, labels, generator=seeded())
    assert codes.shape == (60, 4)
    assert codes.dtype == torch.float32
    assert torch.equal(x, before)
    assert torch.equal(codes, estimator.transform(x))
    torch.testing.assert_close(estimator.transform(x[:7]), codes[:7])
    assert estimator.transform(x.half()).dtype == torch.float32


@each
def test_the_same_generator_gives_the_same_codes(make):
    x, labels = clusters(noise=1.5)
    first, again, other = (make().fit_transform(x, labels, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    reused = make()
    reused.fit(x[:30], labels[:30], generator=seeded(1))
    assert torch.equal(reused.fit_transform(x, labels, generator=seeded()), first)


@each
def test_class_ids_and_multi_hot_rows_teach_the_same(make):
    x, labels = clusters()
    rows = torch.nn.functional.one_hot(labels)
    spread = labels * 1000 + 7  # ids need not be dense
    codes = make().fit_transform(x, labels, generator=seeded())
    for others in (rows, rows.bool(), spread):
        torch.testing.assert_close(make().fit_transform(x, others, generator=seeded()), codes)


@each
def test_codes_of_multi_label_images_follow_shared_labels(make):
    g = seeded(5)
    labels = (torch.rand(120, 4, generator=g) < 0.35).long()
    mixing = torch.randn(4, 8, generator=g, dtype=torch.float64)
    x = labels.double() @ mixing + 0.1 * torch.randn(120, 8, generator=g, dtype=torch.float64)
    codes = make(8).fit_transform(x, labels, generator=seeded())
    chance = mean_average_precision(torch.randn(120, 8, generator=g), labels, codes, labels)
    assert mean_average_precision(codes, labels, codes, labels) > chance + 0.1


@each
def test_fitted_estimators_are_pickled_and_saved(make):
    x, labels = clusters()
    estimator = make().fit(x, labels, generator=seeded())
    file = io.BytesIO()
    torch.save(estimator, file)
    file.seek(0)
    for copy in (pickle.loads(pickle.dumps(estimator)), torch.load(file, weights_only=False)):
        assert torch.equal(copy.transform(x), estimator.transform(x))


@each
def test_bad_input_is_refused(make):
    x, labels = clusters()
    with pytest.raises(RuntimeError, match="is not fitted: call fit"):
        make().transform(x)
    with pytest.raises(ValueError, match="labels has 59 rows, expected 60"):
        make().fit(x, labels[:59])
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity in 1 rows"):
        make().fit(torch.where(torch.arange(60)[:, None] == 3, torch.nan, x), labels)
    with pytest.raises(ValueError, match="all 60 rows of features are the same"):
        make().fit(torch.ones(60, 6), labels)
    with pytest.raises(ValueError, match="all labelled rows have the same labels"):
        make().fit(x, torch.zeros(60, dtype=torch.long))
    with pytest.raises(ValueError, match="needs more labelled rows than bits, got 4 for 4 bits"):
        make().fit(x, torch.where(torch.arange(60) < 4, labels, -1))
    with pytest.raises(ValueError, match="bits must be 1 to 4096, got 0"):
        make(0).fit(x, labels)
    with pytest.raises(ValueError, match="iterations must be >= 0, got -1"):
        make(iterations=-1).fit(x, labels)
    fitted = make().fit(x, labels)
    with pytest.raises(ValueError, match="features are 5 wide, those of fit were 6"):
        fitted.transform(x[:, :5])


def test_settings_out_of_range_are_refused():
    x, labels = clusters()
    for estimator in (KSH, SDH):
        with pytest.raises(ValueError, match="num_anchors must be 1 to 60, got 61: they are drawn"):
            estimator(4, num_anchors=61).fit(x, labels)
        with pytest.raises(ValueError, match=r"width must be a positive number, got 0\.0"):
            estimator(4, num_anchors=5, width=0.0).fit(x, labels)
    with pytest.raises(ValueError, match=r"the kernel is constant: width 1000000000000\.0 is too large"):
        KSH(4, num_anchors=5, width=1e12).fit(x, labels)
    with pytest.raises(ValueError, match=r"ITQCCA gives at most 6 bits, .* KSH and SDH have no such limit"):
        ITQCCA(7).fit(x, labels)
    with pytest.raises(ValueError, match="regularization must be a positive number, got 0"):
        ITQCCA(4, regularization=0).fit(x, labels)
    with pytest.raises(ValueError, match="regularization 1e-300 is too small"):
        ITQCCA(4, regularization=1e-300).fit(x[:, :1].expand(60, 6), labels)
    for setting in ("classifier_ridge", "nu", "kernel_ridge"):
        with pytest.raises(ValueError, match=f"{setting} must be a positive number, got -1"):
            SDH(4, num_anchors=5, **{setting: -1}).fit(x, labels)
    shared = torch.nn.functional.one_hot(labels)
    shared[:, 0] = 1
    with pytest.raises(ValueError, match="all labelled rows share a label"):
        KSH(4, num_anchors=5).fit(x, shared)
