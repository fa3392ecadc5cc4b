"""Train a small network that finds copies of photos, without labels, on one CPU core.

    python examples/train_copies.py PHOTOS [PHOTOS ...] --out copies

PHOTOS are folders of images, read recursively. Each photo is seen twice in a batch: as it is or altered
little, and altered strongly (cropped, shifted, turned, mirrored, re-coloured, compressed, covered). The codes
of the two views attract each other, those of other photos repel (NT-Xent), at 64, 128 and 256 bits at once,
so that the first 64 bits are a good code by themselves. A fifth of the photos is held out by the digest of
its name and never trained on.

The run writes a checkpoint every few minutes; the same command goes on where it stopped, with the same
result as without the stop. In the end `model.safetensors` in the output folder holds the averaged weights in
half precision, with the batch norm of the hash layer folded into its linear map.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridhash.models.hybridhash import HybridHash

SOURCE = 128  # pixels per side of the photos that views are made from
SIZE = 64  # pixels per side of a view
LENGTHS = (64, 128, 256)
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MEAN, STD = 0.5, 0.25


# ------------------------------------------------------------------------------------------------- photos


def find_photos(folders: list[str]) -> list[Path]:
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*"))]
    return [file for file in files if file.suffix.lower() in ENDINGS]


def is_held_out(file: Path) -> bool:
    """Whether a photo is in the fifth that is not trained on: by the digest of its name."""
    return hashlib.sha256(file.name.encode()).digest()[0] % 5 == 0


def read_photo(file: Path, size: int = SOURCE) -> Tensor:
    """uint8 (3, size, size): the whole photo squashed to a square."""
    with Image.open(file) as image:
        image.draft("RGB", (2 * size, 2 * size))
        squashed = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(squashed)).permute(2, 0, 1)


def draw_picture(generator: np.random.Generator) -> Tensor:
    """uint8 (3, SOURCE, SOURCE): a picture that nobody has rights in: clouds, dead leaves, stripes, text."""
    kind = generator.integers(4)
    colours = generator.integers(0, 256, (64, 3))
    if kind == 0:  # noise with a spectrum of 1 / f^a, as natural images have
        frequency = np.hypot(np.fft.fftfreq(SOURCE)[:, None], np.fft.rfftfreq(SOURCE)[None, :])
        frequency[0, 0] = 1.0
        spectrum = np.fft.rfft2(generator.normal(size=(3, SOURCE, SOURCE)))
        clouds = np.fft.irfft2(spectrum / frequency ** generator.uniform(1.0, 2.2), s=(SOURCE, SOURCE))
        mixed = np.einsum("ij,jyx->yxi", generator.normal(size=(3, 3)), clouds)
        pixels = 128 + 60 * (mixed - mixed.mean()) / mixed.std()
        return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
    image = Image.new("RGB", (SOURCE, SOURCE), tuple(colours[0]))
    draw = ImageDraw.Draw(image)
    if kind == 1:  # dead leaves: shapes of all sizes that cover each other
        for colour in colours[1 : generator.integers(8, 64)]:
            radius = SOURCE * 0.03 * generator.pareto(1.5) + 4
            x, y = generator.uniform(0, SOURCE, 2)
            box = (x - radius, y - radius, x + radius, y + radius * generator.uniform(0.3, 1))
            (draw.ellipse if generator.random() < 0.5 else draw.rectangle)(
                (box[0], min(box[1], box[3]), box[2], max(box[1], box[3])), fill=tuple(colour)
            )
    elif kind == 2:  # lines and stripes
        for colour in colours[1 : generator.integers(4, 20)]:
            ends = generator.uniform(-20, SOURCE + 20, 4)
            draw.line(tuple(ends), fill=tuple(colour), width=int(generator.integers(1, 25)))
    else:  # a page of text
        letters = "".join(chr(c) for c in generator.integers(65, 122, 600))
        for line in range(0, SOURCE, int(generator.integers(9, 18))):
            start, length = generator.integers(0, 500), generator.integers(4, 24)
            draw.text((generator.integers(0, 20), line), letters[start : start + length], tuple(colours[1]))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# -------------------------------------------------------------------------------------------------- views


class Draws:
    """Random numbers of a batch, one a row, from one generator, so that a resumed run draws the same."""

    def __init__(self, rows: int, generator: torch.Generator):
        self.rows, self.generator = rows, generator

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.rows, generator=self.generator)

    def chance(self, share: float) -> Tensor:
        return torch.rand(self.rows, generator=self.generator) < share


def place(
    images: Tensor,
    centre_x: Tensor,
    centre_y: Tensor,
    width: Tensor,
    height: Tensor,
    angle: Tensor,
    mirror: Tensor,
    fill: Tensor,
) -> Tensor:
    """Cut a turned window out of each image, in units of its half side; outside of it is ``fill``."""
    sign = 1 - 2 * mirror.float()
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack([
        torch.stack([sign * width * cos, -height * sin, centre_x], 1),
        torch.stack([sign * width * sin, height * cos, centre_y], 1),
    ], 1)  # fmt: skip
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    level = fill[:, :, None, None]
    return F.grid_sample(images - level, grid, align_corners=False) + level


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """JPEG's loss: quantised 8 x 8 cosine transforms, colours at half the resolution."""
    luminance = torch.tensor(_LUMINANCE, dtype=torch.float32).view(8, 8)
    size = images.shape[-1]
    k = torch.arange(8.0)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None, None, None, None]
    table = (luminance * scale).clamp(1, 255)
    to_ycc = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
    ycc = torch.einsum("ij,njyx->niyx", to_ycc, images * 255) - torch.tensor([128.0, 0, 0])[:, None, None]

    def quantised(planes: Tensor) -> Tensor:
        blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
        coefficients = basis @ blocks @ basis.T
        blocks = basis.T @ ((coefficients / table).round() * table) @ basis
        return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    chroma = F.interpolate(quantised(F.avg_pool2d(ycc[:, 1:], 2)), size=(size, size))
    ycc = torch.cat([quantised(ycc[:, :1]) + 128, chroma], 1)
    rgb = torch.einsum("ij,njyx->niyx", torch.linalg.inv(to_ycc), ycc) / 255
    return rgb.clamp(0, 1)


_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def recolour(images: Tensor, draws: Draws, share: float, grey: float) -> Tensor:
    """Change brightness, contrast, saturation, tint and gamma of some images each, make some grey."""
    one = torch.ones(draws.rows)

    def some(low: float, high: float) -> Tensor:
        return torch.where(draws.chance(share), draws.uniform(low, high), one)[:, None, None, None]

    images = images * some(0.55, 1.6)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * some(0.5, 1.5) + mean
    luminance = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    plain = (images * luminance).sum(1, keepdim=True)
    saturation = torch.where(draws.chance(grey)[:, None, None, None], 0.0, some(0.3, 1.7))
    images = (images - plain) * saturation + plain
    tint = torch.cat([some(0.8, 1.2) for _ in range(3)], 1)
    return (images * tint).clamp(0, 1) ** some(0.7, 1.4)


def cover(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Lay a bar, a patch of another photo, or lines like text over some of the images."""
    n, _, height, width = images.shape
    y, x = torch.arange(height) / height, torch.arange(width) / width
    # A rectangle: a bar along a side, or a patch anywhere of up to two fifths of the width.
    bar = draws.chance(0.6)
    patch_width, patch_height = draws.uniform(0.1, 0.4), draws.uniform(0.1, 0.4)
    thickness = draws.uniform(0.05, 0.3)
    across = draws.chance(0.7)
    left = draws.uniform(0, 1) * (1 - patch_width)
    top = draws.uniform(0, 1) * (1 - patch_height)
    at_end = draws.chance(0.6).float()
    inner = draws.uniform(0, 1)
    start = torch.where(draws.chance(0.8), at_end, inner) * (1 - thickness)
    left = torch.where(bar, torch.where(across, 0.0, start), left)
    right = torch.where(bar, torch.where(across, 1.0, start + thickness), left + patch_width)
    top = torch.where(bar, torch.where(across, start, 0.0), top)
    bottom = torch.where(bar, torch.where(across, start + thickness, 1.0), top + patch_height)
    inside = ((y >= top[:, None]) & (y < bottom[:, None]))[:, :, None]
    inside = inside & ((x >= left[:, None]) & (x < right[:, None]))[:, None, :]
    inside &= draws.chance(share)[:, None, None]
    colour = torch.rand(n, 3, 1, 1, generator=draws.generator).expand(images.shape)
    other = images.roll(1, 0)
    extreme = (colour > 0.5).float()
    kind = draws.uniform(0, 1)[:, None, None, None]
    filling = torch.where(kind < 0.3, other, torch.where(kind < 0.7, extreme, colour))
    # Lines of letters: rows and columns that are switched on at random within the rectangle.
    rows = torch.rand(n, height // 2, 1, generator=draws.generator) < 0.6
    letters = rows & (torch.rand(n, height // 2, width // 2, generator=draws.generator) < 0.6)
    letters = letters.repeat_interleave(2, 1).repeat_interleave(2, 2)
    text = draws.chance(0.35)[:, None, None]
    return torch.where((inside & (letters | ~text))[:, None], filling, images)


def blur_and_compress(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Blur some images, shrink and enlarge some, add noise to some, and compress some as JPEG."""
    images = images.clone()
    for kernel in (3, 5):
        rows = draws.chance(share / 3).nonzero()[:, 0]
        images[rows] = F.avg_pool2d(images[rows], kernel, 1, kernel // 2, count_include_pad=False)
    rows = draws.chance(share / 3).nonzero()[:, 0]
    images[rows] = F.interpolate(F.avg_pool2d(images[rows], 2), size=images.shape[2:], mode="bilinear")
    rows = draws.chance(share / 2).nonzero()[:, 0]
    level = draws.uniform(0.01, 0.08)[rows, None, None, None]
    noise = torch.randn(images[rows].shape, generator=draws.generator)
    images[rows] = (images[rows] + level * noise).clamp(0, 1)
    quality = draws.uniform(15, 80)
    rows = draws.chance(share).nonzero()[:, 0]
    images[rows] = compress(images[rows], quality[rows])
    return images


def strong_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Alter photos (N, 3, SOURCE, SOURCE) in [0, 1] as those who copy do, all kinds mixed; at SIZE pixels."""
    draws = Draws(len(images), generator)
    n = len(images)
    zero, one = torch.zeros(n), torch.ones(n)
    # A third of the views each is cropped anywhere, cropped and turned, or left whole or bordered.
    cropped = draws.chance(0.65)
    side = torch.where(draws.chance(0.5), draws.uniform(0.5, 1.0), draws.uniform(0.7, 1.0))
    aspect = torch.where(draws.chance(0.5), torch.exp(draws.uniform(-0.25, 0.25)), one)
    width = torch.where(cropped, (side * aspect.sqrt()).clamp(max=1), one)
    height = torch.where(cropped, (side / aspect.sqrt()).clamp(max=1), one)
    centre_x, centre_y = draws.uniform(-1, 1) * (1 - width), draws.uniform(-1, 1) * (1 - height)
    central = draws.chance(0.3)
    centre_x, centre_y = torch.where(central, zero, centre_x), torch.where(central, zero, centre_y)
    bordered = ~cropped & draws.chance(0.4)  # the photo within a frame or within another photo
    width = torch.where(bordered, draws.uniform(1.0, 1.6), width)
    height = torch.where(bordered, draws.uniform(1.0, 1.6), height)
    centre_x = torch.where(bordered, draws.uniform(-1, 1) * (width - 1), centre_x)
    centre_y = torch.where(bordered, draws.uniform(-1, 1) * (height - 1), centre_y)
    shifted = ~cropped & ~bordered & draws.chance(0.4)
    centre_x = torch.where(shifted, draws.uniform(-0.2, 0.2), centre_x)
    centre_y = torch.where(shifted, draws.uniform(-0.2, 0.2), centre_y)
    angle = torch.where(draws.chance(0.35), draws.uniform(-15, 15), zero) * (math.pi / 180)
    mirror = draws.chance(0.4)
    fill = torch.rand(n, 3, generator=generator)
    fill = torch.where(draws.chance(0.6)[:, None], (fill[:, :1] > 0.5).float(), fill)
    views = place(images, centre_x, centre_y, width, height, angle, mirror, fill)
    within = bordered & draws.chance(0.4)
    outside = place(torch.ones_like(images[:, :1]), centre_x, centre_y, width, height, angle, mirror,
                    torch.zeros(n, 1)) < 0.5  # fmt: skip
    views = torch.where(outside & within[:, None, None, None], images.roll(7, 0), views)
    views = recolour(shrunk(views), draws, share=0.3, grey=0.2)
    views = cover(views, draws, share=0.45)
    return blur_and_compress(views, draws, share=0.35)


def mild_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Leave half of the photos as they are, and alter the others a little; at SIZE pixels."""
    draws = Draws(len(images), generator)
    mirror = draws.chance(0.1)[:, None, None, None]
    views = shrunk(crop_photos(images, 0.3, 0.85, 1.0, generator))
    return blur_and_compress(torch.where(mirror, views.flip(3), views), draws, share=0.15)


def crop_photos(images: Tensor, share: float, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Replace a share of the photos by a crop of ``low`` to ``high`` of their sides."""
    rows = (torch.rand(len(images), generator=generator) < share).nonzero()[:, 0]
    if not len(rows):
        return images
    draws = Draws(len(rows), generator)
    side = draws.uniform(low, high)
    centre_x, centre_y = draws.uniform(-1, 1) * (1 - side), draws.uniform(-1, 1) * (1 - side)
    none = torch.zeros(len(rows))
    crops = place(images[rows], centre_x, centre_y, side, side, none, none > 0, torch.zeros(len(rows), 3))
    return images.index_copy(0, rows, crops)


def shrunk(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, SOURCE // SIZE)


def to_input(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


# ------------------------------------------------------------------------------------------------ network


class CopyHash(nn.Module):
    """The HybridHash network and a hash layer with batch norm, which :meth:`folded` makes a plain one."""

    def __init__(self, dims: list[int], heads: list[int], depths: list[int]) -> None:
        super().__init__()
        self.backbone = HybridHash(
            img_size=SIZE, embed_dims=dims, num_heads=heads, depths=depths, interaction_heads=4,
            num_classes=LENGTHS[-1], drop_path_rate=0.0,
        )  # fmt: skip
        self.backbone.head.fc = nn.Linear(dims[-1], LENGTHS[-1], bias=False)
        self.norm = nn.BatchNorm1d(LENGTHS[-1], affine=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)
        codes: Tensor = self.norm(self.backbone.head.fc(features))
        return codes

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The state dict of a HybridHash with codes of the same signs: (W x - mean) / std = W' x + b."""
        state = {name: value.clone() for name, value in self.backbone.state_dict().items()}
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        state["head.fc.weight"] = state["head.fc.weight"] * scale[:, None]
        state["head.fc.bias"] = -self.norm.running_mean * scale
        return state


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views (N, bits): the other view of a photo against all other photos of the batch."""
    views = F.normalize(torch.cat([first, second]), dim=1)
    logits = (views @ views.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(views)).roll(len(first)))


def koleo(codes: Tensor) -> Tensor:
    """Spreading term: minus the mean log distance of each code to its nearest in the batch (KoLeo)."""
    codes = F.normalize(codes, dim=1)
    with torch.no_grad():
        nearest = (codes @ codes.T).fill_diagonal_(-2).argmax(1)
    return -(codes - codes[nearest]).norm(dim=1).clamp(min=1e-6).log().mean()


# ----------------------------------------------------------------------------------------------- training


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    files = [file for file in find_photos(args.photos) if not is_held_out(file)]
    if len(files) < args.batch_size:
        raise SystemExit(
            f"{len(files)} photos to train on in {args.photos}, fewer than a batch of {args.batch_size}"
        )
    pool = [read_photo(file) for file in files]
    random = np.random.default_rng(args.seed)
    pool += [draw_picture(random) for _ in range(len(files) // 4)]
    photos = torch.stack(pool)
    print(f"{len(files)} photos and {len(pool) - len(files)} drawn pictures", flush=True)

    model = CopyHash(args.dims, args.heads, args.depths)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters", flush=True)
    average = CopyHash(args.dims, args.heads, args.depths)
    average.load_state_dict(model.state_dict())
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.98),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(args.seed)
    step, seconds = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        step, seconds = saved["step"], saved["seconds"]
        print(f"goes on at step {step}", flush=True)

    losses = []
    start = time.process_time()
    while step < args.steps:
        progress = step / args.steps
        warm = min(1.0, (step + 1) / args.warmup)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.5 * (1 + math.cos(math.pi * progress)) + 0.01)
        sharpness = 1 + (args.sharpness - 1) * progress  # tanh of the codes comes ever nearer to their signs

        rows = torch.randperm(len(photos), generator=generator)[: args.batch_size]
        # A large crop is a photo of its own here: the batch holds no other part of its photo.
        batch = crop_photos(photos[rows].float() / 255, 0.3, 0.4, 0.8, generator)
        views = torch.cat([mild_view(batch, generator), strong_view(batch, generator)])
        codes = torch.tanh(sharpness * model(to_input(views)))
        first, second = codes.chunk(2)
        loss = torch.zeros(())
        for bits, weight in zip(LENGTHS, args.weights, strict=True):
            one, two = first[:, :bits], second[:, :bits]
            loss = loss + weight * (nt_xent(one, two, args.temperature) + args.spread * koleo(one))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

        with torch.no_grad():
            decay = min(args.average, (step + 1) / (step + 10))
            for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                if kept.dtype.is_floating_point:
                    kept.lerp_(new, 1 - decay)
        step += 1
        losses.append(loss.item())
        if step % args.log_every == 0 or step == args.steps:
            spent = seconds + time.process_time() - start
            line = {"step": step, "loss": round(float(np.mean(losses)), 4), "cpu_seconds": round(spent)}
            print(json.dumps(line), flush=True)
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            losses.clear()
        if step % args.save_every == 0 or step == args.steps:
            state = {
                "model": model.state_dict(), "average": average.state_dict(),
                "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
                "step": step,
                "seconds": seconds + time.process_time() - start,
            }  # fmt: skip
            torch.save(state, out / "checkpoint.tmp")
            os.replace(out / "checkpoint.tmp", checkpoint)
            write_weights(copy.deepcopy(average), photos[: len(files)], out)


@torch.no_grad()
def write_weights(model: CopyHash, photos: Tensor, out: Path) -> None:
    """Write the folded weights in half precision; thresholds of the bits are those of the plain photos.

    Args:
        model: A copy of the averaged network, which is changed.
        photos: uint8 (N, 3, SOURCE, SOURCE), the photos that were trained on.
        out: The output folder.
    """
    model.norm.train()
    model.norm.reset_running_stats()
    model.norm.momentum = None  # the plain average over all batches
    model.backbone.eval()
    usable = len(photos) // 500 * 500 or len(photos)
    for batch in photos[:usable].split(500):
        model(to_input(shrunk(batch.float() / 255)))
    state = {name: value.half().contiguous() for name, value in model.folded().items()}
    state["lengths"] = torch.tensor(LENGTHS)
    save_file(state, out / "model.tmp")
    os.replace(out / "model.tmp", out / "model.safetensors")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", nargs="+", help="folders of images")
    parser.add_argument("--out", default="copies", help="folder of checkpoint, log and weights")
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch-size", type=int, default=128, help="photos in a batch, two views each")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--warmup", type=int, default=200, help="steps until the full learning rate")
    parser.add_argument("--temperature", type=float, default=0.07)
    parser.add_argument("--spread", type=float, default=2.0, help="weight of the spreading term")
    parser.add_argument("--sharpness", type=float, default=3.0, help="factor inside tanh at the end")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument(
        "--weights", type=float, nargs=3, default=[0.3, 0.3, 1.0], help="of 64, 128, 256 bits"
    )
    parser.add_argument("--dims", type=int, nargs=3, default=[32, 64, 128])
    parser.add_argument("--heads", type=int, nargs=3, default=[1, 2, 4])
    parser.add_argument("--depths", type=int, nargs=3, default=[1, 1, 2])
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
