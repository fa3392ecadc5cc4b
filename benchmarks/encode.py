"""Images/s of encode_dataset from JPEG files, and where the time goes.

The bare network, and reading files without a network, take turns with the whole in one process. Overhead is
the time of ``encode_dataset`` over that of the bare network on ready batches; "in memory" has the images
decoded before, so that decoding keeps up whatever the machine. The start (SHA-256 of the weights, one image
to try) is given apart: it does not grow with the images. ``--cpu-time`` counts the seconds that this process
runs in place of those that pass, without workers: what others do on the machine does not count then.

    python benchmarks/encode.py                                  # one thread, no workers, 64 images
    python benchmarks/encode.py --cpu-time                       # on a machine that is busy with other work
    python benchmarks/encode.py --workers 1 --ray
    python benchmarks/encode.py --device cuda --images 20000 --batch-size 256 --workers 16
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from common import interleaved, machine, synchronize, table
from PIL import Image
from torchvision.datasets import ImageFolder

from hybridhash import encode_dataset
from hybridhash._inference import to_device
from hybridhash.data.images import read_image
from hybridhash.encoding.reader import model_transform
from hybridhash.hub import save_pretrained

HEADER = ["model", "px", "case", "images/s", "reading", "transfer", "network", "rest", "overhead", "start, s"]


def write_photos(folder, count):
    """JPEG files of 500 x 375 pixels, smooth with some noise, as photographs are."""
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    for row in range(count):
        small = Image.fromarray(generator.integers(0, 255, (12, 16, 3), np.uint8))
        pixels = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = (pixels + generator.integers(-12, 12, pixels.shape)).clip(0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / "photos" / f"{row:05d}.jpg", quality=90)


def encoder(model, dataset, args, workers):
    """A call that encodes a data set into a new folder."""

    def call():
        with tempfile.TemporaryDirectory() as out:
            encode_dataset(
                model, dataset, out, batch_size=args.batch_size, num_workers=workers, progress=False
            )

    return call


def beside_network(model, images, args):
    """Time of one call of encode_dataset outside the model over that inside, the start left out; the median.

    Both are parts of the same call, so what else the machine does hits them alike.
    """
    ratios = []
    for _ in range(args.repeats):
        began, ended = [], []
        hooks = [
            model.register_forward_pre_hook(lambda *_, began=began: began.append(args.clock())),
            model.register_forward_hook(lambda *_, ended=ended: ended.append(args.clock())),
        ]
        encoder(model, images, args, 0)()
        whole = args.clock() - began[1]  # the first image is tried before
        inside = sum(ended[1:]) - sum(began[1:])
        ratios.append(whole / inside - 1)
        for hook in hooks:
            hook.remove()
    return statistics.median(ratios)


def rivals_of(model, files, images, args):
    """The parts by themselves, and the whole from files and from memory."""
    batches = torch.stack(images).split(args.batch_size)
    ready = [to_device(batch, torch.device(args.device)) for batch in batches]

    def reading():
        return [files[row] for row in range(len(files))]

    def transfer():
        return [to_device(batch, torch.device(args.device)) for batch in batches]

    def network():
        with torch.no_grad():
            return [(model(batch) > 0).cpu() for batch in ready]

    rivals = {
        "reading": reading,
        "transfer": transfer,
        "network": network,
        "start": encoder(model, images[:1], args, 0),
        "one": lambda: model(ready[0][:1]),
        "in memory": encoder(model, images, args, 0),
        "files, no worker": encoder(model, files, args, 0),
    }
    if args.workers:
        rivals[f"files, {args.workers} worker(s)"] = encoder(model, files, args, args.workers)
    return rivals


def rows_of(name, size, args, folder):
    """The table's rows of a model."""
    model = timm.create_model(name, img_size=size).to(args.device).eval()
    files = ImageFolder(str(folder), model_transform(model), loader=read_image)
    images = [files[row][0] for row in range(len(files))]
    seconds = interleaved(rivals_of(model, files, images, args), args.repeats, args.device, args.clock)
    count, bare = len(files), seconds["network"]
    # Encoding one image is the start, and that image twice: once to try, once to keep.
    start = max(seconds.pop("start") - 2 * seconds.pop("one"), 0)
    cells = [name, str(size)]
    rows = [[*cells, "bare network", f"{count / bare:.1f}", "", "", "100%", "", "", ""]]
    for case, whole in list(seconds.items())[3:]:
        work = whole - start
        reads = 0 if case == "in memory" else seconds["reading"]
        shares = [reads, seconds["transfer"], bare]
        if "worker(s)" in case:
            shares[0] = max(work - bare - seconds["transfer"], 0)  # what is not hidden behind the network
        rest = max(work - sum(shares), 0)
        parts = [f"{part / work:.1%}" for part in (*shares, rest)]
        rows.append([*cells, case, f"{count / work:.1f}", *parts, f"{work / bare - 1:+.1%}", f"{start:.2f}"])
    if args.device == "cpu":
        own = f"{beside_network(model, images, args):+.1%}"
        rows.append([*cells, "in memory, both within one call", "", "", "", "", "", own, ""])
    if args.ray:
        rows.append([*cells, *ray_row(model, files, args, folder, bare)])
    return rows


def ray_row(model, files, args, folder, bare):
    """The same by the Ray example on this machine; its time contains the start of its actors."""
    script = Path(__file__).parent.parent / "examples" / "encode_ray.py"
    with tempfile.TemporaryDirectory() as place:
        save_pretrained(model.cpu(), f"{place}/model")
        command = [sys.executable, script, f"{place}/model", folder, f"{place}/codes.safetensors"]
        options = ["--cpus", "2", "--batch-size", args.batch_size, "--gpus", int(args.device != "cpu")]
        result = subprocess.run(
            [*map(str, command), *map(str, options)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
        )
    seconds = float(re.search(r"([\d.]+) s$", result.stdout.strip())[1])
    model.to(args.device)
    rate = f"{len(files) / seconds:.1f}"
    return ["Ray Data, 2 CPUs, with its start", rate, "", "", "", "", f"{seconds / bare - 1:+.1%}", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["hybridhash_tiny_64:224", "hybridhash_tiny_64:64"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="measure with that many workers, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ray", action="store_true", help="measure the Ray example as well")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, not of the clock")
    args = parser.parse_args()
    if args.cpu_time and (args.workers or args.ray or args.device != "cpu"):
        parser.error("--cpu-time sees this process only: leave --workers, --ray and --device away")
    args.clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        write_photos(Path(place), args.images)
        rows = []
        for entry in args.models:
            name, _, size = entry.partition(":")
            rows += rows_of(name, int(size or 224), args, place)
            synchronize(args.device)
    clock = "CPU time" if args.cpu_time else "wall time"
    print(machine(args.device))
    print(
        f"{args.images} JPEG files of 500 x 375, batch {args.batch_size}, median of {args.repeats}, {clock}\n"
    )
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
