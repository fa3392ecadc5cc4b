"""Encode a folder of images with Ray Data, on this machine or, unchanged, on a cluster.

    python examples/encode_ray.py hf-hub:user/repo photos/ codes.safetensors
    python examples/encode_ray.py model_folder/ photos/ codes.safetensors --encoders 8 --gpus 1 --address auto

The folder has one folder per class. On a cluster every node must see the images and the model under the same
paths. At least two CPUs are needed: one for each encoder, the others read images. A task carries whole
batches, so the codes are those of a plain loop over batches of that size, to the byte, whatever the machines.
Codes and class ids go to one file, with the row of each image in the sorted list of files as its id; images
that cannot be decoded go to ``codes.safetensors.failures.json``. Needs ``pip install hybridhash[ray]``.
"""

import argparse
import json
import os
import time
from functools import partial

import numpy as np
import ray
import timm
import torch
from torchvision.datasets import ImageFolder

import hybridhash
from hybridhash import HashCodes
from hybridhash.data import read_image


def transform_of(model):
    """What timm does with an image before it goes to the model."""
    return timm.data.create_transform(
        **timm.data.resolve_model_data_config(model, {"img_size": model.img_size})
    )


def read(batch, transform):
    """The images of a batch of paths; those that cannot be decoded apart, with the reason."""
    images, rows, failures = [], [], []
    for row, path in zip(batch["rows"], batch["paths"], strict=True):
        try:
            image = read_image(str(path))
        except Exception as error:  # a broken file can make a decoder raise anything
            reason = f"{type(error).__name__}: {error}"
            failures.append([int(row), reason if str(path) in reason else f"{path}: {reason}"])
        else:
            images.append(transform(image).numpy())
            rows.append(int(row))
    stacked = np.stack(images) if images else np.zeros((0, 1, 1, 1), np.float32)
    return {"rows": np.array(rows, np.int64), "images": stacked, "failures": json.dumps(failures)}


class Encoder:
    """Codes of a batch of images; an actor, so that the model is loaded once."""

    def __init__(self, model):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.model = hybridhash.load(model)
        if ray.get_gpu_ids():
            self.model.cuda()

    def __call__(self, batch):
        images = torch.from_numpy(np.array(batch["images"][0]))
        packed = np.zeros((0, -(-self.model.bits // 8)), np.uint8)
        if len(images):
            packed = hybridhash.encode(self.model, [images], progress=False).packed.numpy()
        return {"rows": batch["rows"], "packed": packed[None], "failures": batch["failures"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="hf-hub:user/repo, or a folder of hybridhash.hub.save_pretrained")
    parser.add_argument("images", help="a folder of folders of images")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--encoders", type=int, default=1, help="actors that hold the model")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each encoder")
    parser.add_argument("--address", help="of a cluster; auto for the one that this machine is part of")
    parser.add_argument("--cpus", type=int, help="CPUs to declare on this machine, if there is no cluster")
    args = parser.parse_args()
    ray.init(address=args.address, num_cpus=args.cpus, log_to_driver=False)
    if ray.cluster_resources().get("CPU", 0) < args.encoders + 1:
        parser.error("each encoder takes a CPU and the readers need at least one more: give more --cpus")
    ray.data.DataContext.get_current().enable_progress_bars = False

    model = hybridhash.load(args.model)
    files = ImageFolder(args.images, is_valid_file=os.path.isfile)
    rows, size = range(len(files)), args.batch_size
    batches = [
        {"rows": list(part), "paths": [files.samples[row][0] for row in part]}
        for part in (rows[start : start + size] for start in range(0, len(files), size))
    ]
    start = time.perf_counter()
    encoded = (
        ray.data.from_items(batches, override_num_blocks=len(batches))
        .map(partial(read, transform=transform_of(model)))
        .map_batches(
            Encoder,
            fn_constructor_args=(args.model,),
            batch_size=1,  # of batches
            concurrency=args.encoders,
            num_cpus=1,
            num_gpus=args.gpus,
        )
    )
    results = sorted(
        (row for row in encoded.iter_rows() if len(row["rows"]) or row["failures"]),
        key=lambda row: min([*row["rows"], *(failure[0] for failure in json.loads(row["failures"]))]),
    )
    seconds = time.perf_counter() - start

    ids = torch.from_numpy(np.concatenate([row["rows"] for row in results]))
    packed = torch.from_numpy(np.concatenate([row["packed"] for row in results]))
    codes = HashCodes(packed, model.bits, torch.tensor(files.targets)[ids], ids)
    codes.save(args.out)
    failures = [failure for row in results for failure in json.loads(row["failures"])]
    with open(f"{args.out}.failures.json", "w") as file:
        json.dump(failures, file, indent=1)
    print(f"{len(codes)} images encoded, {len(failures)} could not be decoded, {seconds:.2f} s")


if __name__ == "__main__":
    main()
