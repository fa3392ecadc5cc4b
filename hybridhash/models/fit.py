"""Codes without training: fit a hash layer to unlabelled images, in one pass."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.utils import skip_init

from hybridhash._checks import check_choice, check_integer
from hybridhash._code_checks import MAX_BITS, check_lengths
from hybridhash._distributed import Ranks
from hybridhash._inference import (
    NO_LOADERS,
    autocast_of,
    check_loader,
    eval_mode,
    image_batches,
    input_device,
    named_batch,
    to_device,
)
from hybridhash.models.fit_contrastive import fit_hash_coder, paired
from hybridhash.models.hash_model import HashModel
from hybridhash.models.heads import (
    BatchNormHead,
    HashCoderHead,
    LinearHead,
    ProjectionHead,
    SpectralHead,
    SphericalHead,
    TanhHead,
)
from hybridhash.models.hybridhash import HybridHash
from hybridhash.shallow.rabitq import Rotation, rabitq_map
from hybridhash.shallow.statistics import FeatureStatistics
from hybridhash.shallow.unsupervised import (
    nested_itq,
    principal_directions,
    random_normal,
    random_rotation,
    spectral_modes,
    spherical_pivots,
)

__all__ = ["fit_hash_head", "fit_hash_layer"]

Method = Literal["itq", "pca", "pca-rr", "lsh", "sh", "sph", "rabitq", "contrastive"]

# Heads whose bits are not the signs of fc alone, or that keep more of a fit than fc.
_NOT_ITS_SIGN = (BatchNormHead, ProjectionHead, SpectralHead, SphericalHead)
_METHODS = get_args(Method)
_DIRECTIONS = ("itq", "pca", "pca-rr")  # one bit per direction, so no more bits than directions
_ANY_COUNT = ("lsh", "rabitq")  # need no more items than bits
# Need rows of features, not only their mean and covariance.
_SAMPLED = ("itq", "sh", "sph", "rabitq", "contrastive")
_SAMPLE_SIZE = 10_000
_CONTRASTIVE_SAMPLE_SIZE = 50_000
_HEAD_NAMES = {
    HashCoderHead: "hashcoder",
    ProjectionHead: "projection",
    SpectralHead: "spectral",
    SphericalHead: "spherical",
    TanhHead: "tanh",
}
# A variance below this share of the squared size of the features is taken for rounding (1e-6 of their size).
_NOISE = 1e-12


def fit_hash_layer(
    model: nn.Module,
    loader: Iterable[Any],
    method: Method = "itq",
    bits: int | None = None,
    generator: torch.Generator | None = None,
    *,
    iterations: int | None = None,
    rotation: Rotation | None = None,
    lengths: Sequence[int] | None = None,
    sample_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> nn.Module:
    """Fit the hash layer of a network to unlabelled images; the backbone stays unchanged.

    Images go through the backbone once. :func:`fit_hash_head` describes the methods and what is kept of the
    features. The result goes into the model like this:

    - ``"itq"``, ``"pca"``, ``"pca-rr"`` and ``"lsh"`` are written into ``model.get_classifier()``. A head
      whose bits are not the signs of that map, such as ``"mlp"`` or ``"batchnorm"``, is replaced by
      ``"tanh"``.
    - ``"sh"``, ``"sph"`` and ``"contrastive"`` replace the head by ``"spectral"``, ``"spherical"`` or
      ``"hashcoder"``. :mod:`hybridhash.hub` refuses to save a ``hybridhash_*`` with these; use
      ``create_hash_model("hybridhash_64", bits)``.
    - ``"rabitq"`` replaces the head by ``"projection"``, which a ``hybridhash_*`` cannot have.

    The model runs in eval mode; afterwards every module returns to its own mode. If anything fails, the model
    is unchanged.

    Under ``torch.distributed`` call it in every process, each with its own part of the images. Every process
    gets the layer fitted to all images.

    Args:
        model: A ``hybridhash_*`` or the result of :func:`hybridhash.create_hash_model`, also inside DDP or
            ``torch.compile``. It is changed in place.
        loader: Yields batches as for :func:`hybridhash.encode`; labels and indices are ignored.
            :func:`hybridhash.encoding.image_loader` makes one of a data set.
        method: One of the methods of :func:`fit_hash_head`.
        bits: The code length; None keeps that of the model.
        generator: The source of all random numbers.
        iterations: See :func:`fit_hash_head`.
        rotation: That of ``"rabitq"``, see :func:`fit_hash_head`.
        lengths: Code lengths at which the first bits are to be good, see :func:`fit_hash_head`. They are kept
            in ``model.lengths``.
        sample_size: See :func:`fit_hash_head`.
        device: The device of the images, see :func:`hybridhash.encode`.
        dtype: bfloat16 or float16 runs the backbone under autocast, see :func:`hybridhash.encode`.
        progress: Show a progress bar on stderr.

    Returns:
        ``model``.

    Raises:
        TypeError: The model is of another kind, or the loader is a tensor, a path or a data set.
        ValueError: ``bits`` is missing for a model without hash layer, the backbone does not pool, the loader
            yields nothing, the method is ``"rabitq"`` and the model a ``hybridhash_*``, or
            :func:`fit_hash_head` raises.

    Example:
        >>> from hybridhash import create_hash_model, encode
        >>> model = create_hash_model("resnet10t", bits=16)
        >>> images = torch.randn(40, 3, 32, 32)
        >>> model = fit_hash_layer(model, images.split(20), "itq", progress=False)
        >>> encode(model, [images], progress=False)
        HashCodes(size=40, bits=16, bytes=80, labels=None, ids=None)
    """
    network = unwrap_model(model)
    if not isinstance(network, (HashModel, HybridHash)):
        raise TypeError(
            "model must be a hash model, a hybridhash_* or one of create_hash_model(backbone, bits), got "
            f"{type(network).__name__}; for features of other models use fit_hash_head"
        )
    if isinstance(loader, NO_LOADERS):
        check_loader(loader)
    if bits is None:
        bits = network.bits
        if bits == 0:
            raise ValueError("model has num_classes=0, which means no hash layer: give bits")
    if method == "rabitq" and isinstance(network, HybridHash):
        raise ValueError(
            "method 'rabitq' needs a head without tanh, which a hybridhash_* has not: build the model with "
            "create_hash_model('hybridhash_64', bits)"
        )
    device = input_device(network, device)
    autocast = autocast_of(network, device, dtype)

    def embeddings() -> Iterator[Tensor]:
        for number, images in image_batches(loader, f"fit {method}", progress):
            with torch.no_grad(), autocast, named_batch(network, images, f"batch {number}"):
                features = network.forward_features(to_device(images, device))
                features = network.forward_head(features, pre_logits=True)
            yield features

    with eval_mode(network):
        head = fit_hash_head(
            embeddings(),
            method,
            bits,
            generator,
            iterations=iterations,
            rotation=rotation,
            lengths=lengths,
            sample_size=sample_size,
        )
    if isinstance(network, HashModel):
        _install(network, head)
    else:
        _install_in_hybridhash(network, head)
    network.lengths = None if lengths is None else check_lengths(lengths)
    return model


def fit_hash_head(
    features: Tensor | Iterable[Tensor],
    method: Method = "itq",
    bits: int = 64,
    generator: torch.Generator | None = None,
    *,
    iterations: int | None = None,
    rotation: Rotation | None = None,
    lengths: Sequence[int] | None = None,
    sample_size: int | None = None,
    views: Tensor | Iterable[Tensor] | None = None,
) -> LinearHead | HashCoderHead:
    """Fit a hash head to features without labels.

    Let m and C be the mean and the covariance of all features, and P the ``bits`` eigenvectors of C with the
    largest eigenvalues. The codes are:

    - ``"pca"``: ``P^T (x - m)`` (Wang et al., CVPR 2010);
    - ``"pca-rr"``: ``R^T P^T (x - m)`` with a random rotation R;
    - ``"itq"``: the same with the rotation of :func:`itq_rotation` (Gong and Lazebnik, CVPR 2011);
    - ``"lsh"``: ``W (x - m)``, W of N(0, 1) (Charikar, STOC 2002);
    - ``"sh"``: ``sin(pi / 2 + omega (P_d · (x - m) - a_d))``, omega and d of :func:`spectral_modes` on the
      box of the projected features (Weiss et al., NIPS 2008);
    - ``"sph"``: inside or outside the spheres of :func:`spherical_pivots` (Heo et al., CVPR 2012);
    - ``"rabitq"``: ``R^T P^T (x - m)``, unscaled and without tanh, with the rotation of :func:`rabitq_map`
      (Gao and Long, SIGMOD 2024). Keep the factors of these codes, and real-valued queries estimate inner
      products and distances of the features: of their projection P, if there are fewer bits than directions.
      With ``norms=head.norms(x)`` in :meth:`hybridhash.HashCodes.from_codes`, distances also count what lies
      outside of P. Under a random rotation all bits are alike, so the first bits of a code are as good as
      any, but less good than those of a head of so many bits; see ``lengths`` and
      :meth:`hybridhash.HashCodes.truncate`.
    - ``"contrastive"``: a network of two layers, trained by :class:`hybridhash.losses.ContrastiveLoss` on the
      signs of its codes. The positive of an item is where a walk of three steps ends that goes to one of the
      ten nearest neighbours by cosine in each; or, with ``views``, the item's other view.

    The other linear maps are scaled by one positive number so that their outputs have mean square 1. Scaling
    does not change the bits and keeps tanh out of saturation.

    Features are read once, in float64. Kept are their mean; except for ``"lsh"`` and ``"sph"`` their
    ``(D, D)`` covariance; and for ``"itq"``, ``"sh"``, ``"sph"``, ``"rabitq"`` and ``"contrastive"`` a
    uniform sample of ``sample_size`` rows (all rows if there are fewer), to which rotation, box, spheres and
    network are fitted. For ``torch.distributed`` see :func:`fit_hash_layer`.

    Args:
        features: Real-valued ``(N, D)``, or an iterable of such batches.
        method: One of the methods above.
        bits: The code length. ``"itq"``, ``"pca"`` and ``"pca-rr"`` give at most as many bits as there are
            directions in which the features vary; the others up to 4,096.
        generator: The source of all random numbers.
        iterations: Most rounds of ``"itq"`` and ``"sph"``, by default 50 and 200; steps of 256 items of
            ``"contrastive"``, by default 400.
        rotation: For ``"rabitq"``: ``"random"``, ``"itq"``, or ``"auto"`` (None means it), which takes the
            one that finds more neighbours of held-out features.
        lengths: For ``"itq"`` and ``"rabitq"``: code lengths at which the codes, cut to their first bits, are
            to be good; ascending to ``bits``. The first bits are then those of a head of the shortest length.
            For what follows and what it costs see :func:`nested_itq` and :func:`rabitq_map`.
        sample_size: Rows of the sample, more than ``bits`` (for ``"rabitq"`` any number); by default 10,000,
            and 50,000 for ``"contrastive"``.
        views: For ``"contrastive"``, another view of each item: the features of the same items in the same
            order, and in the same batches, from images that were augmented otherwise. None takes neighbours.

    Returns:
        A head from ``(B, D)`` to codes ``(B, bits)``, float32 on the CPU, of :mod:`hybridhash.models.heads`:
        ``SpectralHead`` for ``"sh"``, ``SphericalHead`` for ``"sph"``, ``HashCoderHead`` for
        ``"contrastive"`` (in evaluation mode, with unbounded codes), ``ProjectionHead`` for ``"rabitq"``
        (whose codes have the units of the features), else ``TanhHead``. Codes of the others are in [-1, 1],
        and their linear map is in ``fc``.

    Raises:
        TypeError: A batch of features is not a floating-point tensor, or a number is not an integer.
        ValueError: The method is unknown; ``bits`` is below 1 or above 4,096 or what the method gives;
            ``iterations`` is negative; the features are empty, constant, not finite, of different widths,
            or (except for ``"lsh"`` and ``"rabitq"``) no more than the bits; ``rotation`` is unknown, or
            given to another method; ``lengths`` do not ascend to ``bits``, are given to another method, or
            leave the last bits no direction; or ``views`` are of other shapes than the features, or given to
            another method.

    Example:
        >>> features = torch.randn(200, 32)
        >>> head = fit_hash_head(features, "itq", bits=16)
        >>> head(features).shape
        torch.Size([200, 16])
    """
    if sample_size is None:
        sample_size = _CONTRASTIVE_SAMPLE_SIZE if method == "contrastive" else _SAMPLE_SIZE
    _check_settings(method, bits, iterations, rotation, sample_size)
    if lengths is not None:
        lengths = check_lengths(lengths, bits)
        if method not in ("itq", "rabitq"):
            raise ValueError(f"lengths are for 'itq' and 'rabitq', but the method is {method!r}")
    if views is not None and method != "contrastive":
        raise ValueError(f"views are for method 'contrastive', and {method!r} takes none: leave them out")
    given = {"iterations": iterations, "rotation": rotation, "lengths": lengths}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not isinstance(features, Iterable):
        raise TypeError(f"features must be a tensor (N, D), or an iterable of such, got {features!r}")
    batches = [features] if isinstance(features, Tensor) else features
    if views is not None:
        batches = paired(features, views)
        settings["pairs"] = True
    with Ranks() as ranks:
        parts = ranks.collect(lambda: _collect(batches, method, bits, generator, sample_size))
        statistics = parts[0]
        for part in parts[1:]:
            statistics.merge(part)
        _check_statistics(statistics, method, bits)
        # Only the first process draws: the others' generators may be in another state.
        return ranks.first(lambda: _fit(statistics, method, bits, generator, **settings))


def _check_settings(
    method: str, bits: int, iterations: int | None, rotation: str | None, sample_size: int
) -> None:
    if not isinstance(method, str) or method not in _METHODS:
        near = difflib.get_close_matches(str(method), _METHODS, n=1) or _METHODS
        raise ValueError(f"no method is called {method!r}: did you mean {', '.join(near)}?")
    check_integer("bits", bits, 1, MAX_BITS)
    if iterations is not None:
        check_integer("iterations", iterations, 0)
    if rotation is not None:
        check_choice("rotation", rotation, get_args(Rotation))
        if method != "rabitq":
            raise ValueError(f"rotation is a setting of 'rabitq', but the method is {method!r}: leave it out")
    check_integer("sample_size", sample_size, 0)
    if method in _SAMPLED and method not in _ANY_COUNT and sample_size <= bits:
        raise ValueError(f"sample_size must be more than the {bits} bits, got {sample_size}")


def _collect(
    batches: Iterable[Tensor], method: str, bits: int, generator: torch.Generator | None, sample_size: int
) -> FeatureStatistics:
    statistics = FeatureStatistics(
        covariance=method not in ("lsh", "sph", "contrastive"),
        sample_size=sample_size if method in _SAMPLED else 0,
        generator=generator,
    )
    for features in batches:
        statistics.update(features)
        width = len(statistics.mean)
        if method in _DIRECTIONS and statistics.count and bits > width:
            raise ValueError(_too_many_bits(method, width, "the width of the features", bits))
    return statistics.cpu()


def _check_statistics(statistics: FeatureStatistics, method: str, bits: int) -> None:
    if statistics.count == 0:
        raise ValueError("there are no features: give at least one item")
    if method not in _ANY_COUNT and statistics.count <= bits:
        raise ValueError(
            f"method {method!r} needs more items than bits, got {statistics.count} for {bits} bits: give "
            "more items or fewer bits; only 'lsh' and 'rabitq' work with fewer items"
        )
    if statistics.total_variance <= _NOISE * float(statistics.mean.square().sum()):
        raise ValueError(
            f"the features of all {statistics.count} items are the same, so no code can tell them apart: "
            "check the images or embeddings, and that the network before the head has its weights"
        )


def _too_many_bits(method: str, limit: int, reason: str, bits: int) -> str:
    return (
        f"method {method!r} gives at most {limit} bits here, {reason}, got bits={bits}: methods that "
        "give more are 'lsh', 'sh', 'sph', 'rabitq' and 'contrastive'"
    )


def _fit(
    statistics: FeatureStatistics,
    method: str,
    bits: int,
    generator: torch.Generator | None,
    **settings: Any,
) -> LinearHead | HashCoderHead:
    if method == "contrastive":
        return fit_hash_coder(statistics.sample, bits, generator, **settings)
    mean = statistics.mean
    width = len(mean)
    if method == "lsh":
        weight = random_normal(bits, width, generator=generator)
        return _linear(weight, mean, statistics.total_variance)
    if method == "sph":
        return _spherical(statistics, bits, generator, **settings)
    directions, variances = principal_directions(statistics.covariance, min(bits, width))
    floor = _NOISE * float(variances[0] + mean.square().max())
    rank = int((variances > floor).sum())
    if method == "sh":
        return _spectral(statistics, directions[:, :rank], bits)
    if method == "rabitq":
        return _projection(statistics, directions[:, :rank], bits, generator, **settings)
    if rank < bits:
        raise ValueError(_too_many_bits(method, rank, "the directions in which the features vary", bits))
    if method == "itq":
        projected = (statistics.sample.double() - mean) @ directions
        matrix = nested_itq(projected, generator=generator, **{"lengths": (bits,), **settings})
        variances = variances @ matrix.square()  # of the outputs
        directions = directions @ matrix
    elif method == "pca-rr":
        directions = directions @ random_rotation(bits, generator)
    return _linear(directions.T, mean, float(variances.mean()))


def _linear(weight: Tensor, mean: Tensor, variance: float) -> LinearHead:
    """Return ``weight (x - mean)``, scaled by the root of the average ``variance`` of its outputs."""
    weight = weight / math.sqrt(variance)
    return _filled(TanhHead, weight, -(weight @ mean))


def _spectral(statistics: FeatureStatistics, directions: Tensor, bits: int) -> LinearHead:
    projected = (statistics.sample.double() - statistics.mean) @ directions
    low = projected.amin(0)
    dimension, omega = spectral_modes(low, projected.amax(0), bits)
    weight = omega[:, None] * directions[:, dimension].T
    return _filled(SpectralHead, weight, math.pi / 2 - omega * low[dimension] - weight @ statistics.mean)


def _spherical(
    statistics: FeatureStatistics, bits: int, generator: torch.Generator | None, **settings: Any
) -> LinearHead:
    scale = statistics.total_variance**-0.5
    features = (statistics.sample.double() - statistics.mean) * scale
    pivots, radii = spherical_pivots(features, bits, generator=generator, **settings)
    head = _filled(SphericalHead, 2 * pivots, radii.square() - pivots.square().sum(1))
    head.load_state_dict({"mean": statistics.mean, "scale": torch.tensor(scale)}, strict=False)
    return head


def _projection(
    statistics: FeatureStatistics,
    directions: Tensor,
    bits: int,
    generator: torch.Generator | None,
    **settings: Any,
) -> LinearHead:
    rank, lengths = directions.shape[1], settings.get("lengths", (bits,))
    if len(lengths) > 1 and rank <= lengths[-2]:
        raise ValueError(
            f"the features vary in {rank} directions, none of which is left for the bits after the first "
            f"{lengths[-2]}: leave out lengths of {rank} and more but the last, got {lengths}"
        )
    centred = statistics.sample.double() - statistics.mean
    weight = rabitq_map(centred, directions, bits, generator=generator, **settings).T
    head = _filled(ProjectionHead, weight, -(weight @ statistics.mean))
    head.load_state_dict({"center": statistics.mean}, strict=False)
    return head


def _filled(kind: type[LinearHead], weight: Tensor, bias: Tensor) -> LinearHead:
    # Without initialisation, which would draw random numbers.
    head: LinearHead = skip_init(kind, weight.shape[1], weight.shape[0])  # type: ignore[no-untyped-call]
    head.fc.load_state_dict({"weight": weight, "bias": bias})
    return head


@torch.no_grad()
def _install(model: HashModel, head: LinearHead | HashCoderHead) -> None:
    linear = isinstance(head, TanhHead)
    is_sign_of_fc = isinstance(model.head, LinearHead) and not isinstance(model.head, _NOT_ITS_SIGN)
    keeps_head = linear and is_sign_of_fc
    if not keeps_head:
        model.head_name = _HEAD_NAMES[type(head)]
        hidden = {"hidden": head.hidden.out_features} if isinstance(head, HashCoderHead) else {}
        model.head_args = hidden
        if hasattr(model, "model_args"):  # the arguments that it is saved with
            model.model_args |= {"head": model.head_name, "head_args": dict(hidden)}
    if not keeps_head or head.bits != model.bits:
        model.reset_classifier(head.bits)
    if linear:
        model.get_classifier().load_state_dict(head.fc.state_dict())
    else:
        model.head.load_state_dict(head.state_dict())


@torch.no_grad()
def _install_in_hybridhash(model: HybridHash, head: LinearHead | HashCoderHead) -> None:
    linear = isinstance(head, TanhHead)
    if not linear or head.bits != model.bits or not isinstance(model.get_classifier(), nn.Linear):
        model.reset_classifier(head.bits)
    fc = model.head.fc
    if linear:
        fc.load_state_dict(head.fc.state_dict())
    else:
        model.head.fc = head.to(fc.weight).train(model.head.training)
