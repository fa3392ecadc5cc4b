"""Export a hash model: ONNX, torch.export, AOTInductor, and ONNX of 8 bits, each compared with PyTorch.

The model is a name of timm, a repository of the Hub (``hf-hub:user/repo``) or a folder of
``hybridhash.hub.save_pretrained``. The name is a hash model, such as ``hybridhash_tiny_64``, or any backbone,
such as ``resnet50``, which gets a hash head of ``--bits``.
It is compared on the images of a folder (``--images``), or on synthetic ones. Needs
``pip install hybridhash[export]``. Run it with ``--help`` for the options.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
import torch.nn.functional as F

import hybridhash
from hybridhash.data import read_image
from hybridhash.export import (
    export_aoti,
    export_onnx,
    export_program,
    quantize_onnx,
    read_metadata,
)

FORMATS = ["onnx", "int8", "program", "aoti"]


def create(name, bits, image_size, pretrained):
    """Return the model of a name in eval mode, with random weights unless ``pretrained``."""
    size = {} if image_size is None or not name.startswith("hybridhash") else {"img_size": image_size}
    if name.startswith("hf-hub:") or Path(name).is_dir():
        return hybridhash.load(name).eval()
    if name.startswith("hybridhash"):
        size |= {} if bits is None else {"num_classes": bits}
        return timm.create_model(name, pretrained=pretrained, **size).eval()
    return hybridhash.create_hash_model(name, bits or 64, pretrained=pretrained).eval()


def load_images(folder, count, shape):
    """Return images, uint8 (count, C, H, W): those of the folder, or smooth random colours with noise."""
    channels, height, width = shape
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(count, channels, 7, 7, generator=generator)
        images = F.interpolate(coarse, size=(height, width), mode="bicubic") * 255
        noise = torch.randn(images.shape, generator=generator) * torch.arange(count).view(-1, 1, 1, 1)
        return (images + noise).clamp(0, 255).to(torch.uint8)
    files = sorted(path for path in folder.rglob("*") if path.is_file())[:count]
    images = [np.asarray(read_image(file).resize((width, height))) for file in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def reference(model, images, metadata):
    """Return the packed codes of the model in PyTorch, as ``hybridhash.encode`` gives them."""
    mean = torch.tensor(metadata["mean"]).view(1, -1, 1, 1)
    std = torch.tensor(metadata["std"]).view(1, -1, 1, 1)
    with torch.no_grad():
        batches = [(batch / 255 - mean) / std for batch in images.split(8)]
        return hybridhash.pack_codes(torch.cat([model(batch) for batch in batches]))


def export(model, kind, folder, image_size):
    """Write the file of a kind and return its path."""
    if kind == "onnx":
        return export_onnx(model, folder / "model.onnx", image_size=image_size)
    if kind == "program":
        return export_program(model, folder / "model.pt2", image_size=image_size)
    return export_aoti(model, folder / "model.aoti.pt2", image_size=image_size)


def load(kind, path):
    """Load an exported file and return a function from a batch of images to packed codes."""
    if kind == "program":
        return torch.export.load(path).module()
    if kind == "aoti":
        return torch._inductor.aoti_load_package(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["packed"], {"images": batch.numpy()})[0]


def equal_bits(packed, wanted, bits):
    """Return the share of bits that agree."""
    different = np.bitwise_count(np.asarray(packed) ^ np.asarray(wanted)).sum()
    return 1 - different / (len(wanted) * bits)


def ratio(call, baseline, repeats):
    """Return the median time of a call over that of the baseline; they take turns on a busy machine."""
    seconds = [[], []]
    for _ in range(repeats + 1):
        for times, function in zip(seconds, (call, baseline), strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    first, second = (statistics.median(times[1:]) for times in seconds)
    return first / second


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="timm name, hf-hub:user/repo, or a folder")
    parser.add_argument("--bits", type=int, help="code length of a model that is made here")
    parser.add_argument("--image-size", type=int, help="height and width, by default the model's")
    parser.add_argument("--pretrained", action="store_true", help="load the backbone's weights from the Hub")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="images to compare on")
    parser.add_argument("--count", type=int, default=32, help="how many of them (default 32)")
    parser.add_argument("--formats", nargs="+", default=["onnx", "int8", "program"], help="also aoti")
    parser.add_argument("--repeats", type=int, default=0, help="also compare the time, so many times each")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the files (default out)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create(args.model, args.bits, args.image_size, args.pretrained)
    images = wanted = None
    for kind in sorted(set(args.formats), key=FORMATS.index):
        if kind == "int8":
            source, path = args.out / "model.onnx", args.out / "model.int8.onnx"
            if not source.exists():
                parser.error("int8 needs onnx before it")
        else:
            source = path = export(model, kind, args.out, args.image_size)
        metadata = read_metadata(source)
        if images is None:
            images = load_images(args.images, args.count, metadata["input_size"])
            wanted = reference(model, images, metadata)
        flipped = quantize_onnx(source, path, images) if kind == "int8" else None
        run = load(kind, path)
        packed = np.concatenate([np.asarray(run(batch)) for batch in images.split(8)])
        equal = equal_bits(packed, wanted, metadata["bits"])
        line = f"{kind:8} {path.stat().st_size / 1e6:8.2f} MB  equal bits {equal:.6f}"
        if flipped is not None:
            line += f"  flipped against onnx {flipped:.6f}"
        if args.repeats:
            few = images[:4]
            baseline = partial(reference, model, few, metadata)
            line += f"  time of PyTorch x {ratio(partial(run, few), baseline, args.repeats):.2f}"
        print(line, flush=True)
    print(" ".join(f"{key}={value}" for key, value in metadata.items()))


if __name__ == "__main__":
    main()
