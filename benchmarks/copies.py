"""How many altered photos are found: learned codes beside pHash, dHash and PDQ, at a rate of false pairs.

    python benchmarks/copies.py clothing10_128.npz grocery124_128.npz [--figure copies.png]
    python benchmarks/copies.py cifar10_16k.npz --px 128 --limit 3000 --model my_model
    python benchmarks/copies.py --speed
    python benchmarks/copies.py --photos-per-second

Files are npz files of encoded images (``data``, ``offsets``). Only the photos are used that are held out by
the digest of their names, ``{file}_{row:05d}.jpg``, unless ``--all`` is given; of a file that is enlarged
(``--px``) all are. Each photo is altered in eleven ways with Pillow. The radius is the largest with at most
``--false-pairs`` among the pairs of the originals; recall is the share of the photos whose altered form is
within it of the original. The last column is the micro average precision of all altered photos.

A model is a folder that ``hybridhash.hub.load`` reads, a name of timm, or ``NAME=FILE`` with a state dict in
safetensors; the default is ``hybridhash_nano_*``. The other hashes need ``pip install imagehash pdqhash``.

``--speed`` compares ``find_duplicates`` with the algorithm of imagededup, a BK-tree that is asked for each of
5,000 hashes, and with comparing each pair in a loop: CPU time, one thread. ``--photos-per-second`` compares
the whole way from a JPEG file to its code: decoding, resizing, and the network in PyTorch or ONNX Runtime, or
imagehash's pHash.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import timm
import torch
from common import interleaved, machine, table
from PIL import Image, ImageDraw, ImageEnhance
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import hybridhash
from hybridhash import HashCodes, encode, find_duplicates, unpack_codes
from hybridhash.encoding import image_loader
from hybridhash.eval import evaluate_copies

Photo = Image.Image


def _jpeg(photo: Photo, quality: int = 20) -> Photo:
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def _crop(photo: Photo, share: float, left: float = 0.5, top: float = 0.5) -> Photo:
    """Cut out a part whose sides are ``share`` of the photo's; 0.5 is the centre, 0 left or top."""
    width, height = photo.width * share, photo.height * share
    x, y = (photo.width - width) * left, (photo.height - height) * top
    return photo.crop((round(x), round(y), round(x + width), round(y + height)))


def _bar(photo: Photo) -> Photo:
    """A black bar over the lowest fifth."""
    photo = photo.copy()
    ImageDraw.Draw(photo).rectangle((0, round(0.8 * photo.height), photo.width, photo.height), fill=(0, 0, 0))
    return photo


ALTERATIONS: dict[str, Callable[[Photo], Photo]] = {
    "JPEG 20": _jpeg,
    "half size": lambda photo: photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC),
    "brightness 1.4": lambda photo: ImageEnhance.Brightness(photo).enhance(1.4),
    "grey": lambda photo: photo.convert("L").convert("RGB"),
    "aspect 1.3": lambda photo: photo.resize(
        (round(1.3 * photo.width), photo.height), Image.Resampling.BICUBIC
    ),
    "bar": _bar,
    "crop 90 %": lambda photo: _crop(photo, 0.9),
    "crop 75 %": lambda photo: _crop(photo, 0.75),
    "corner 80 %": lambda photo: _crop(photo, 0.8, 0.0, 0.0),
    "mirror": lambda photo: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turn 5": lambda photo: photo.rotate(5, Image.Resampling.BICUBIC),
}


def is_held_out(name: str) -> bool:
    """Whether a photo is in the fifth that is not trained on: by the digest of its name."""
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0


def read_photos(path: str, px: int | None, everything: bool, limit: int | None) -> list[Photo]:
    """The photos of an npz file of encoded images, enlarged to a square of ``px`` pixels if it is given."""
    file = np.load(path)
    data, offsets = file["data"], file["offsets"]
    photos = []
    for row, (start, stop) in enumerate(pairwise(offsets)):
        if px is None and not everything and not is_held_out(f"{Path(path).stem}_{row:05d}.jpg"):
            continue
        photo = Image.open(io.BytesIO(data[start:stop].tobytes())).convert("RGB")
        photos.append(photo if px is None else photo.resize((px, px), Image.Resampling.BICUBIC))
        if limit is not None and len(photos) == limit:
            break
    return photos


def perceptual_hash(kind: str, bits: int) -> Callable[[list[Photo]], HashCodes]:
    """pHash or dHash of imagehash as codes."""
    import imagehash

    function, side = getattr(imagehash, kind), round(bits**0.5)

    def codes(photos: list[Photo]) -> HashCodes:
        ones = np.stack([function(photo, hash_size=side).hash.ravel() for photo in photos])
        return HashCodes(torch.from_numpy(np.packbits(ones, axis=1)), bits)

    return codes


def pdq_hash(photos: list[Photo]) -> HashCodes:
    """PDQ, 256 bits, as codes."""
    import pdqhash

    ones = np.stack([pdqhash.compute(np.asarray(photo))[0] for photo in photos])
    return HashCodes(torch.from_numpy(np.packbits(ones.astype(bool), axis=1)), 256)


def load_model(name: str) -> nn.Module:
    """A folder of ``hybridhash.hub``, a name of timm, or ``NAME=FILE``."""
    if Path(name).is_dir():
        return hybridhash.load(name).eval()
    name, _, weights = name.partition("=")
    overlay = {"file": weights} if weights else None
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()


def codes_of(model: nn.Module) -> Callable[[list[Photo]], HashCodes]:
    """Codes of a model, with its own preprocessing."""
    return lambda photos: encode(model, image_loader(model, photos, 64), progress=False)


def measure(
    name: str, codes: Callable[[list[Photo]], HashCodes], photos: list[Photo], rate: float
) -> list[str]:
    """A row of the table."""
    originals = codes(photos)
    altered = {kind: codes([alter(photo) for photo in photos]) for kind, alter in ALTERATIONS.items()}
    # False pairs are those among the originals: each is asked for, and its own row is the right pair.
    rows = torch.arange(len(photos))
    radius = evaluate_copies(originals, originals, rows, false_pairs=[rate], draws=1).radius[0]
    before = unpack_codes(originals.packed, originals.bits)
    recalls = []
    for codes_after in altered.values():
        differ = (unpack_codes(codes_after.packed, originals.bits) != before).sum(1)
        recalls.append((differ <= radius).double().mean().item())
    cells = [name, str(originals.bits), str(radius)]
    cells += [f"{recall:.3f}" for recall in (*recalls, np.mean(recalls))]
    every = HashCodes.cat([HashCodes(part.packed, part.bits) for part in altered.values()])
    report = evaluate_copies(every, originals, rows.repeat(len(ALTERATIONS)), false_pairs=[rate], draws=200)
    low, high = report.average_precision_interval
    return [*cells, f"{report.average_precision:.3f} ({low:.3f} to {high:.3f})"]


def draw(rows: list[list[str]], path: str) -> None:
    """Draw the recall of each way for each alteration."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    recalls = np.array([row[3 : 3 + len(ALTERATIONS)] for row in rows], dtype=float)
    order = (-recalls).mean(0).argsort()  # from what all find to what few find
    names = np.array(list(ALTERATIONS))[order]
    styles = {"hybridhash": ("C0", "-"), "phash": ("C1", "--"), "dhash": ("C2", ":"), "PDQ": ("C3", "-.")}
    for row, values in zip(rows, recalls[:, order], strict=True):
        colour, line = next(style for name, style in styles.items() if row[0].startswith(name))
        marker = {"256": "o", "128": "^", "64": "s"}[row[1]]
        label = row[0] if row[0].endswith(row[1]) else f"{row[0]}, {row[1]} bits"
        axes.plot(names, values, line, color=colour, marker=marker, label=label, alpha=0.8)
    axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel("recall")
    axes.grid(alpha=0.3)
    axes.tick_params("x", rotation=30)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------------- speed


def photos_per_second(count: int = 96) -> str:
    """Photos a second of one thread from JPEG files of three sizes to codes."""
    import imagehash
    import onnxruntime

    from hybridhash.data import read_image
    from hybridhash.export import export_onnx

    torch.set_num_threads(1)
    model = timm.create_model("hybridhash_nano_256", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    random = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, f"{folder}/nano.onnx", input="float")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(f"{folder}/nano.onnx", options, ["CPUExecutionProvider"])
        input_name = session.get_inputs()[0].name
        for width, height in ((320, 240), (1024, 768), (4000, 3000)):
            number = count if width < 4000 else count // 8
            files = [f"{folder}/{row}.jpg" for row in range(number)]
            for file in files:
                small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                photo = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
                photo.save(file, quality=90)

            def batch(files: list[str] = files) -> torch.Tensor:
                return torch.stack([transform(read_image(file)) for file in files])

            def by_torch(batch: Callable[[], torch.Tensor] = batch) -> torch.Tensor:
                with torch.inference_mode():
                    return model(batch())

            def by_onnx(batch: Callable[[], torch.Tensor] = batch) -> object:
                return session.run(None, {input_name: batch().numpy()})

            def by_phash(files: list[str] = files) -> object:
                return [imagehash.phash(Image.open(file)) for file in files]

            seconds = interleaved(
                {"PyTorch": by_torch, "ONNX Runtime": by_onnx, "pHash": by_phash}, 5, clock=time.process_time
            )
            rates = {name: number / value for name, value in seconds.items()}
            cells = [f"{rate:.0f} ({rate / rates['pHash']:.2f}x)" for rate in rates.values()]
            rows.append([f"{width} x {height}", *cells])
    return table(["JPEG of", "PyTorch", "ONNX Runtime", "imagehash pHash"], rows)


def bk_tree_pairs(hashes: list[int], radius: int) -> set[tuple[int, int]]:
    """The algorithm of imagededup: build a BK-tree and search it for each hash."""
    children: list[dict[int, int]] = [{} for _ in hashes]
    for row in range(1, len(hashes)):
        node = 0
        while True:
            distance = (hashes[row] ^ hashes[node]).bit_count()
            if distance not in children[node]:
                children[node][distance] = row
                break
            node = children[node][distance]
    pairs = set()
    for row, value in enumerate(hashes):
        stack = [0]
        while stack:
            node = stack.pop()
            distance = (value ^ hashes[node]).bit_count()
            if distance <= radius and node != row:
                pairs.add((min(row, node), max(row, node)))
            for edge, child in children[node].items():
                if distance - radius <= edge <= distance + radius:
                    stack.append(child)
    return pairs


def brute_force_pairs(hashes: list[int], radius: int) -> set[tuple[int, int]]:
    """Compare each pair in a loop."""
    return {
        (one, two)
        for one, value in enumerate(hashes)
        for two in range(one + 1, len(hashes))
        if (value ^ hashes[two]).bit_count() <= radius
    }


def compare_speed(size: int = 5000, radius: int = 10) -> str:
    """CPU seconds of three ways to the same pairs, and of 100,000 codes."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    packed = random.integers(0, 256, (size, 8), dtype=np.uint8)
    packed[: size // 10] = packed[size // 10 : 2 * (size // 10)]
    packed[: size // 10, 0] ^= random.integers(0, 256, size // 10, dtype=np.uint8)
    hashes = [int.from_bytes(row.tobytes(), "big") for row in packed]
    codes = HashCodes(torch.from_numpy(packed), 64)
    rows, seconds = [], {}
    found = {}
    for name, call in (
        ("find_duplicates", lambda: find_duplicates(codes, radius=radius)),
        ("BK-tree", lambda: bk_tree_pairs(hashes, radius)),
        ("all pairs in a loop", lambda: brute_force_pairs(hashes, radius)),
    ):
        start = time.process_time()
        result = call()
        seconds[name] = time.process_time() - start
        if name == "find_duplicates":
            result = {(int(pair.first), int(pair.second)) for pair in result.pairs}
        found[name] = result
    for name, value in seconds.items():
        same = "yes" if found[name] == found["all pairs in a loop"] else "no"
        ratio = f"{value / seconds['find_duplicates']:.0f}x"
        rows.append([f"{name}, {size:,} codes", f"{value:.2f}", ratio, f"{len(found[name]):,}", same])
    many = random.integers(0, 256, (100_000, 8), dtype=np.uint8)
    many[:10_000] = many[10_000:20_000]
    start = time.process_time()
    result = find_duplicates(HashCodes(torch.from_numpy(many), 64), false_pairs=1e-9 * 30)
    rows.append(
        ["find_duplicates, 100,000 codes, radius estimated", f"{time.process_time() - start:.2f}", "", "", ""]
    )
    print(result)
    return table(["case", "CPU s", "ratio", "pairs", "same pairs"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="npz files of encoded images, which are put together")
    parser.add_argument("--model", action="append", help="folder, name, or NAME=FILE")
    parser.add_argument("--px", type=int, help="enlarge all photos to squares of this side")
    parser.add_argument("--all", action="store_true", help="take photos that are not held out, too")
    parser.add_argument("--limit", type=int, help="photos of a file at most")
    parser.add_argument("--false-pairs", type=float, default=1e-5)
    parser.add_argument("--figure", help="image file to draw the recalls into")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--photos-per-second", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(machine(), "\n")
    if options.speed:
        print(compare_speed())
        return
    if options.photos_per_second:
        print(photos_per_second())
        return
    photos = [
        photo for file in options.files for photo in read_photos(file, options.px, options.all, options.limit)
    ]
    print(f"{len(photos):,} photos, {len(photos) * (len(photos) - 1) // 2:,} pairs\n")
    models = options.model or [f"hybridhash_nano_{bits}" for bits in (256, 128, 64)]
    ways = {name.partition("=")[0]: codes_of(load_model(name)) for name in models}
    for kind in ("phash", "dhash"):
        for bits in (256, 64):
            ways[f"{kind} {bits}"] = perceptual_hash(kind, bits)
    ways["PDQ 256"] = pdq_hash
    rows = [measure(name, codes, photos, options.false_pairs) for name, codes in ways.items()]
    print(table(["codes", "bits", "radius", *ALTERATIONS, "mean", "micro AP"], rows))
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
