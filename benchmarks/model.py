"""Images/s of HybridHash against timm's Nest of the same dims, heads and depths.

Both take turns in one process. "Share of limit" is the arithmetic of the network (matrix products,
convolutions, attention) per second over that of one large matrix product in the same dtype and run. On one
thread of a CPU the clock is CPU time, which other programs on the machine disturb least.

    python benchmarks/model.py                                     # one thread, batch 8, 224 px
    python benchmarks/model.py --compile
    python benchmarks/model.py --device cuda --batch-size 256 --channels-last --dtypes bfloat16 --compile
"""

import argparse
import time

import timm
import torch
from common import interleaved, machine, table
from timm.models.nest import Nest
from torch.utils.flop_counter import FlopCounterMode

import hybridhash  # noqa: F401


def build(name, dtype, args):
    """The model and NesT with the same stages, in the asked dtype."""
    model = timm.create_model(name, img_size=args.img_size)
    nest = Nest(
        img_size=args.img_size,
        embed_dims=[info["num_chs"] for info in model.feature_info],
        num_heads=[level.blocks[0].attn.num_heads for level in model.levels],
        depths=[len(level.blocks) for level in model.levels],
        num_classes=model.num_classes,
        pad_type="same",
    )
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    return [m.to(args.device, dtype, memory_format=memory_format) for m in (model, nest)]


def inference(model, images):
    model.eval()

    def call():
        with torch.inference_mode():
            return model(images)

    return call


def training_step(model, images):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def call():
        optimizer.zero_grad()
        model(images).float().square().mean().backward()
        optimizer.step()

    return call


def measure(rivals, repeats, args):
    """Median seconds per call of each rival."""
    alone = args.device == "cpu" and args.threads == 1
    clock = time.process_time if alone else time.perf_counter
    return interleaved(rivals, repeats, args.device, clock)


def arithmetic_limit(dtype, args):
    """FLOP/s of a large matrix product."""
    size = 8192 if args.device.startswith("cuda") else 2048
    a, b = (torch.randn(size, size, device=args.device, dtype=dtype) for _ in range(2))
    seconds = measure({"matmul": lambda: a @ b}, max(args.repeats, 5), args)["matmul"]
    return 2 * size**3 / seconds


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["hybridhash_64"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="measure compiled models as well")
    parser.add_argument("--no-training", action="store_true", help="measure inference only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    steps = [inference] if args.no_training else [inference, training_step]
    rows = []
    for name in args.models:
        for dtype_name in args.dtypes:
            dtype = getattr(torch, dtype_name)
            limit = arithmetic_limit(dtype, args)
            for step in steps:
                for compiled in [False, True] if args.compile else [False]:
                    model, nest = build(name, dtype, args)
                    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size)
                    images = images.to(args.device, dtype)
                    if args.channels_last:
                        images = images.to(memory_format=torch.channels_last)
                    forward_work = flops(inference(model, images))
                    work = flops(step(model, images))
                    rivals = {
                        key: step(torch.compile(m) if compiled else m, images)
                        for key, m in (("ours", model), ("nest", nest))
                    }
                    seconds = measure(rivals, args.repeats, args)
                    rows.append(
                        [
                            name,
                            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
                            f"{forward_work / args.batch_size / 2e9:.2f}",
                            dtype_name,
                            step.__name__.replace("_", " "),
                            "compiled" if compiled else "eager",
                            f"{args.batch_size / seconds['ours']:.2f}",
                            f"{args.batch_size / seconds['nest']:.2f}",
                            f"{seconds['nest'] / seconds['ours']:.2f}",
                            f"{work / seconds['ours'] / limit:.0%}",
                            f"{limit / 1e9:.0f}",
                        ]
                    )
    print(machine(args.device))
    print(f"batch {args.batch_size}, {args.img_size} px, median of {args.repeats}\n")
    header = ["model", "M params", "GMACs", "dtype", "step", "mode", "images/s", "Nest images/s", "ratio"]
    print(table([*header, "share of limit", "limit, GFLOP/s"], rows))


if __name__ == "__main__":
    main()
