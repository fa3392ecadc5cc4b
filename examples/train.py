"""Train a hash network: any backbone, any loss, any benchmark or images of your own; see docs/training.md.

    python examples/train.py --protocol digits --model hybridhash_tiny_64 --img-size 32
    python examples/train.py --data-dir photos --model resnet50 --pretrained --loss dch
    torchrun --nproc-per-node 8 examples/train.py --protocol cifar10-1 --data-dir data --recipe paper

``--out`` gets the split, the log, a checkpoint after each epoch, the report, the codes of the database
(``database.safetensors``, whose ids are rows of the whole data set, or of the list file), the file of each id
(``database.csv``), and a folder ``model`` that ``hybridhash.load`` reads. ``--resume`` goes on after the last
epoch of a killed run.
"""

import argparse
import csv
import math
import os
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from PIL.Image import DecompressionBombError
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, ParseKwargs, distribute_bn, init_distributed_device, random_seed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from hybridhash import HashCodes, create_hash_model, encode
from hybridhash.data import (
    LabelledImages,
    Split,
    balanced_batches,
    cifar10,
    custom_protocol,
    digits,
    get_protocol,
    list_protocols,
    read_csv,
    read_image,
)
from hybridhash.eval import evaluate, mean_average_precision
from hybridhash.hub import save_pretrained
from hybridhash.losses import create_loss_for, list_losses
from hybridhash.models import list_heads

RECIPES = {
    "default": {
        "epochs": 30, "opt": "adamw", "lr": 3e-4, "weight_decay": 0.05, "augment": "rrc",
        "sched": "cosine", "warmup_epochs": 2, "clip_grad": 1.0, "ema": 0.998,
    },
    # The public HybridHash code and its log, with batch 64 and alpha 0.5. RMSprop as torch has it, not timm.
    "paper": {
        "epochs": 12, "opt": "rmsprop", "lr": 2.5e-5, "weight_decay": 1e-5, "augment": "flip",
        "opt_args": {"alpha": 0.99, "momentum": 0.0, "filter_bias_and_bn": False},
    },
}  # fmt: skip
DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MAY_DIFFER = {"resume", "out", "device", "log_every", "tensorboard", "download"}
MAY_DIFFER |= {"traceback", "rank", "local_rank"}


def code_lengths(text):
    return tuple(map(int, text.split(",")))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--recipe", default="default", choices=RECIPES, help="defaults of the options below")
    add("--protocol", choices=["digits", *list_protocols()], help="a benchmark, or scanned digits")
    add("--data-dir", type=Path, help="a folder per class; with --protocol: of CIFAR-10, or of list files")
    add("--csv", type=Path, help="images and labels in a CSV file, in place of --data-dir")
    add("--separator", help="between several labels in a cell of the CSV file")
    add("--root", type=Path, help="what paths in list and CSV files start from")
    add("--strip-prefix", default="", help="what paths in list files begin with and the root lacks")
    add("--download", action="store_true", help="fetch CIFAR-10 (before a run of several processes)")
    add("--query-per-class", type=int, help="of images of your own (10)")
    add("--split", type=Path, help="a split to use, or to draw and save, for several runs")
    add("--val-fraction", type=float, default=0.1, help="held out of the training set (0.1)")
    add("--select-on", choices=("val", "query"), default="val", help="what chooses the epoch (val)")
    add("--augment", choices=("none", "flip", "rrc"), help="of training images")
    add("--num-workers", type=int, default=4, help="processes that read images (4)")
    add("--model", default="hybridhash_64", help="hybridhash_*, or any model of timm (hybridhash_64)")
    add("--bits", type=int, default=64, help="code length (64)")
    add("--lengths", type=code_lengths, help="code lengths to be good at, up to --bits: 8,16,32,64")
    add("--head", choices=list_heads(), help="(the model's own, or tanh)")
    add("--img-size", type=int, default=224, help="pixels (224)")
    add("--pretrained", action="store_true", help="begin with the backbone's weights from the Hub")
    for name in ("--model-args", "--loss-args", "--opt-args"):
        add(name, nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE")
    add("--loss", default="wml", choices=list_losses(), help="(wml)")
    add("--bank", action=argparse.BooleanOptionalAction, help="pairs against the training set (for wml)")
    add("--classes-per-batch", type=int, default=0, help="balanced batches of so many classes")
    add("--epochs", type=int, help="passes over the training set")
    add("--batch-size", type=int, default=64, help="images in a batch of one process (64)")
    add("--accumulate", type=int, default=1, help="batches in an update; pairs are those of a batch")
    add("--opt", help="of timm's optimiser factory")
    add("--lr", type=float, help="largest learning rate")
    add("--weight-decay", type=float)
    add("--layer-decay", type=float, help="of the learning rate, from the head down (0.75 if --pretrained)")
    add("--sched", choices=("cosine", "none"), default="none")
    add("--warmup-epochs", type=int, default=0)
    add("--clip-grad", type=float, default=0.0, help="largest norm of the gradient; 0: any")
    add("--ema", type=float, default=0.0, help="decay of averaged weights, which are evaluated; 0: none")
    add("--amp", choices=DTYPES, default="none", help="autocast; fp16 with a scaled loss (none)")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("out/train"), help="folder of the results (out/train)")
    add("--resume", action="store_true", help="go on with the run in OUT, if there is one")
    add("--val-every", type=int, default=1, help="epochs between validations (1)")
    add("--log-every", type=int, default=10, help="updates between lines of the log (10)")
    add("--tensorboard", action="store_true", help="needs the package tensorboard")
    add("--traceback", action="store_true", help="show where in the program an error arose")
    args = parser.parse_args(argv)
    parser.set_defaults(**RECIPES[args.recipe])
    if args.loss == "contrastive":
        parser.set_defaults(augment="rrc")  # what the two views of an image differ by
    elif args.protocol == "digits" or (args.recipe == "paper" and "cifar" in str(args.protocol)):
        parser.set_defaults(augment="none")
    if args.recipe == "default" and args.pretrained:
        parser.set_defaults(layer_decay=0.75)
    return check_args(parser, parser.parse_args(argv))


def check_args(parser, args):
    """What is wrong is said before anything is read."""
    args.cifar = "cifar" in str(args.protocol)
    args.bank = args.loss == "wml" if args.bank is None else args.bank
    if args.protocol != "digits" and args.data_dir is None and args.csv is None:
        parser.error("no images: give --data-dir or --csv, or --protocol digits")
    if args.loss == "contrastive" and args.augment == "none":
        parser.error("--augment none makes two equal views, which --loss contrastive learns nothing from")
    if args.loss == "contrastive" and args.classes_per_batch:
        parser.error("--classes-per-batch needs labels, and --loss contrastive looks at none")
    if not 0 <= args.val_fraction < 1:
        parser.error(f"--val-fraction must be at least 0 and below 1, got {args.val_fraction}")
    for name in ("epochs", "batch_size", "accumulate", "val_every", "log_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: PyTorch finds no GPU here")
    if args.lengths and args.lengths[-1] != args.bits:
        parser.error(f"--lengths must end with --bits {args.bits}, got {args.lengths[-1]}")
    if args.lengths and args.head == "weighted":
        parser.error("--head weighted orders the bits itself: leave --lengths out")
    for name in ("data_dir", "csv", "root"):
        path = getattr(args, name)
        if path is not None and not path.exists() and not (args.download and name == "data_dir"):
            parser.error(f"--{name.replace('_', '-')}: there is no {path}")
    if args.split and args.split.exists() and args.query_per_class is not None:
        parser.error(f"--query-per-class draws a split, but --split {args.split} exists: give one of the two")
    return args


@contextmanager
def one_line(args):
    """Mistakes of the user end the run in one line; ``--traceback`` shows where they were found."""
    try:
        yield
    except (
        ArithmeticError,
        AssertionError,
        ImportError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if args.traceback:
            raise
        sys.exit(f"train.py: {str(error) or repr(error)} (--traceback says where)")


def user_images(args):
    if args.protocol == "digits":
        return digits()
    if args.csv:
        return read_csv(args.csv, args.root, separator=args.separator)
    if args.cifar:
        return cifar10(args.data_dir, download=args.download)
    images = ImageFolder(args.data_dir, loader=read_image)
    left_out = sum(path.is_file() for path in args.data_dir.rglob("*")) - len(images)
    if left_out and args.rank == 0:
        taken = f"ImageFolder takes {', '.join(IMG_EXTENSIONS)}"
        warnings.warn(f"{left_out:,} files in {args.data_dir} are left out: {taken}", stacklevel=2)
    return LabelledImages(images)


def load_parts(args):
    """The protocol, and its queries, training set and database."""
    protocol = get_protocol(args.protocol) if args.protocol not in (None, "digits") else None
    if protocol is not None and protocol.draw is None:
        parts = protocol.load_lists(args.data_dir, args.root, strip_prefix=args.strip_prefix)
        return as_used(protocol, parts), parts
    images = user_images(args)
    if protocol is None:
        name = args.protocol or (args.csv or args.data_dir.resolve()).stem
        protocol = custom_protocol(name, images.labels, query_per_class=args.query_per_class or 10)
    split = choose_split(args, protocol, images.labels)
    protocol = replace(protocol, train_in_database=bool(torch.isin(split.train, split.database).all()))
    return as_used(protocol, split), split.datasets(images)


def as_used(protocol, parts):
    """The protocol with the sizes of the parts in use, which are printed."""
    return replace(protocol, query=len(parts.query), train=len(parts.train), database=len(parts.database))


def choose_split(args, protocol, labels):
    """The split of ``--split`` or of the run that is resumed, or the one that the options draw."""
    path = args.split or args.out / "split.safetensors"
    resumed = (args.out / "checkpoint.pt").exists()
    if path.exists() and (args.split or resumed):
        split = Split.load(path, labels)
        if args.protocol and split.protocol != protocol.name:
            raise ValueError(f"{path} was drawn for {split.protocol}, not for {protocol.name}")
        return split
    split = protocol.split(labels, torch.Generator().manual_seed(args.seed))
    if path.exists():
        found = Split.load(path, labels)
        names = ("query", "train", "database")
        if not all(torch.equal(getattr(found, name), getattr(split, name)) for name in names):
            raise ValueError(
                f"{path} is another split than these options draw ({found}): delete it, choose another "
                f"--out, or use it with --split {path}"
            )
    split.save(path)
    return split


def make_transforms(args, model):
    config = timm.data.resolve_model_data_config(model)
    plain = timm.data.create_transform(**config)
    if args.augment == "none":
        return plain, plain
    if args.augment == "rrc":
        mirror = {"hflip": 0.0} if args.protocol == "digits" else {}
        return timm.data.create_transform(**config, is_training=True, scale=(0.35, 1.0), **mirror), plain
    cut = [transforms.Resize(round(args.img_size / 0.875)), transforms.RandomCrop(args.img_size)]
    return transforms.Compose([*cut, transforms.RandomHorizontalFlip(), *plain.transforms[-2:]]), plain


class TwoViews:
    """An image twice, augmented each time: ``(2, C, H, W)``."""

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image):
        return torch.stack([self.transform(image), self.transform(image)])


def make_model(args):
    native = args.model.startswith("hybridhash")
    kwargs = {"pretrained": args.pretrained, **args.model_args}
    if native or (timm.is_model(args.model) and timm.get_pretrained_cfg(args.model).fixed_input_size):
        kwargs.setdefault("img_size", args.img_size)
    if native and args.head is None:
        model = timm.create_model(args.model, num_classes=args.bits, **kwargs)
    else:
        model = create_hash_model(args.model, args.bits, head=args.head or "tanh", **kwargs)
    # Saved with the model, so that whoever loads it prepares images in the same way.
    model.pretrained_cfg["input_size"] = (3, args.img_size, args.img_size)
    if args.cifar or args.protocol == "digits":
        model.pretrained_cfg["crop_pct"] = 1.0
    return model


def epoch_batches(args, labels, epoch):
    """Rows of each batch of this process: the same in every run of the same seed."""
    generator = torch.Generator().manual_seed(args.seed + 10_007 * epoch)
    size = args.batch_size * args.world_size
    if args.classes_per_batch:
        each = size // args.classes_per_batch
        batches = list(balanced_batches(labels, args.classes_per_batch, each, generator))
    else:
        order = torch.randperm(len(labels), generator=generator)
        batches = order[: len(order) // size * size].view(-1, size).tolist()
    return [batch[args.rank :: args.world_size] for batch in batches]


class Readable(Dataset):
    """A data set with None in place of an image that cannot be read, which a warning names."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            return None


def readable_batch(items):
    items = [item for item in items if item is not None]
    if not items:
        raise ValueError("no image of a batch can be read; warnings above name them")
    return default_collate(items)


def hash_images(args, model, dataset):
    """Codes of a data set in its order, with its rows as ids; each process does a share."""
    share = Subset(Readable(dataset), range(args.rank, len(dataset), args.world_size))
    workers = {"num_workers": args.num_workers, "collate_fn": readable_batch}
    loader = DataLoader(share, batch_size=2 * args.batch_size, **workers)
    codes = [encode(model, loader, dtype=DTYPES[args.amp], progress=False)] * args.world_size
    if args.distributed:
        dist.all_gather_object(codes, codes[0])
    codes = HashCodes.cat(codes)
    return codes[codes.ids.argsort()]


def whole_rows(part):
    """Rows of a part in the data set that it was taken from in the end."""
    rows = part.rows
    while isinstance(part.dataset, LabelledImages):
        part = part.dataset
        rows = part.rows[rows]
    return rows


def save_database(args, codes, part):
    """Codes whose ids are rows of the whole data set, and a table of the file of each id."""
    ids = whole_rows(part)[codes.ids]
    HashCodes(codes.packed, codes.bits, codes.labels, ids).save(args.out / "database.safetensors")
    try:
        paths = [part.file(index) for index in codes.ids.tolist()]
    except TypeError:  # images that are no files
        return
    with open(args.out / "database.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "image"))
        writer.writerows(zip(ids.tolist(), paths, strict=True))


def save_whole(content, path):
    """Write a file that is never seen half written."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


class Run:
    """Everything that training changes, and how far it is."""

    def __init__(self, args, model, loss_fn, updates_per_epoch):
        self.args, self.model, self.loss_fn = args, model, loss_fn
        self.settings = {key: str(value) for key, value in vars(args).items() if key not in MAY_DIFFER}
        decay = {"weight_decay": args.weight_decay, "layer_decay": args.layer_decay}
        self.optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, **decay, **args.opt_args)
        if "parameters" in loss_fn.requires:
            self.optimizer.add_param_group({"params": list(loss_fn.parameters())})
        self.scheduler = None
        if args.sched == "cosine":
            warmup = {"warmup_epochs": min(args.warmup_epochs, args.epochs - 1), "warmup_lr": args.lr / 100}
            steps = {"num_epochs": args.epochs, "updates_per_epoch": updates_per_epoch}
            self.scheduler, _ = create_scheduler_v2(self.optimizer, step_on_epochs=False, **steps, **warmup)
        self.ema = ModelEmaV3(model, decay=args.ema, use_warmup=True) if args.ema else None
        self.evaluated = self.ema.module if self.ema else model
        self.scaler = torch.amp.GradScaler(args.device.type, enabled=args.amp == "fp16")
        self.epoch = self.updates = 0
        self.updates_in_all = updates_per_epoch * args.epochs
        self.first = None  # number and time of the first update of this process
        self.best, self.log, self.board = {"map": -1.0, "epoch": 0}, [], None
        self.parts = {key: getattr(self, key) for key in ("model", "loss_fn", "optimizer", "scaler")}
        if self.ema:
            self.parts["ema"] = self.ema.module

    def save(self, path):
        """The checkpoint, and ``log.csv`` up to it."""
        content = {key: part.state_dict() for key, part in self.parts.items()}
        content |= {key: getattr(self, key) for key in ("settings", "epoch", "updates", "best", "log")}
        save_whole(content, path)
        with open(self.args.out / "log.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ("update", "epoch", "loss", "lr", "val_map"))
            writer.writeheader()
            writer.writerows(self.log)

    def load(self, path):
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored = content["settings"]
        differing = [key for key, value in self.settings.items() if stored.get(key) != value]
        if differing:
            other = [f"{key} is {stored.get(key)} there, {self.settings[key]} here" for key in differing]
            sys.exit(f"{path} is of another run: {'; '.join(other)}")
        for key, part in self.parts.items():
            part.load_state_dict(content.pop(key))
        vars(self).update(content)

    def write(self, **values):
        if self.args.rank == 0:
            self.log.append({"update": self.updates, "epoch": self.epoch + 1, **values})
            done = (
                f"update {self.updates:,}/{self.updates_in_all:,} epoch {self.epoch + 1}/{self.args.epochs}"
            )
            got = " ".join(f"{key} {value:.6g}" for key, value in values.items())
            print(done, got + self.speed(), flush=True)
            for key, value in values.items() if self.board else ():
                self.board.add_scalar(key, value, self.updates)

    def speed(self):
        """Images a second and the time left, measured since the first update of this process."""
        if self.first is None or self.updates == self.first[0]:
            return ""
        seconds = (time.monotonic() - self.first[1]) / (self.updates - self.first[0])
        images = self.args.batch_size * self.args.accumulate * self.args.world_size / seconds
        left = seconds * (self.updates_in_all - self.updates)
        return f", {images:,.0f} images/s, {int(left) // 60:,} min {int(left) % 60} s left"

    def update(self):
        """One step of the optimiser, from the gradients at hand."""
        self.scaler.unscale_(self.optimizer)
        for parameter in self.loss_fn.parameters() if self.args.distributed else ():
            if parameter.grad is not None:  # the mean over processes, as DDP takes it for the network
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.args.world_size
        if self.args.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.first is None:
            self.first = (self.updates, time.monotonic())
        if self.scheduler:
            self.scheduler.step_update(self.updates)
        if self.ema:
            self.ema.update(self.model, step=self.updates)


def train_epoch(run, network, dataset):
    args, model = run.args, run.model
    # Each epoch begins from a seed of its own, so that a resumed run draws what the killed one drew.
    random_seed(args.seed + 10_007 * (run.epoch + 1), args.rank)
    batches = epoch_batches(args, dataset.labels, run.epoch)
    workers = {"num_workers": args.num_workers, "pin_memory": args.device.type == "cuda"}
    loader = DataLoader(Readable(dataset), batch_sampler=batches, collate_fn=readable_batch, **workers)
    network.train()
    run.loss_fn.train()
    schedule = getattr(model.head, "schedule", None)  # of a head that steepens, as HashNet's
    for number, (images, labels, indices) in enumerate(loader):
        if number % args.accumulate == 0:
            total, group = 0.0, min(args.accumulate, len(batches) - number)
        last = number % args.accumulate == group - 1
        if args.loss == "contrastive":  # no label: views of an image share its row number
            images, labels = images.flatten(0, 1), indices.repeat_interleave(2)
        images, labels = (x.to(args.device, non_blocking=True) for x in (images, labels))
        with nullcontext() if last or not args.distributed else network.no_sync():
            with torch.autocast(args.device.type, DTYPES[args.amp], enabled=args.amp != "none"):
                codes = network(images)
            if args.loss in ("dnnh", "drsdh"):  # made for codes in (0, 1)
                codes = (codes + 1) / 2
            loss = run.loss_fn(codes, labels, indices=indices.to(args.device)) / group
            run.scaler.scale(loss).backward()
        total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss of update {run.updates + 1} is {total}: try a smaller --lr")
        if last:
            lr = max(group["lr"] for group in run.optimizer.param_groups)
            run.update()
            if schedule == "iterations":
                model.head.step()
            if run.updates % args.log_every == 0:
                run.write(loss=total, lr=lr)
    if schedule == "epochs":
        model.head.step()
    if "epoch_hook" in run.loss_fn.requires:
        run.loss_fn.epoch_end()
    if args.loss == "drsdh" and args.head == "weighted":
        model.head.set_weights(run.loss_fn.bit_weights)
    for averaged in {model, run.evaluated} if args.distributed else ():
        distribute_bn(averaged, args.world_size, reduce=True)


def keep_best(run, validation, top_k):
    """Keep the weights if they are the best so far; the latest where nothing is held out."""
    score = run.best["map"]
    if validation:
        codes = [hash_images(run.args, run.evaluated, part) for part in validation]
        score = float(mean_average_precision(*codes, top_k=top_k))
        run.write(val_map=score)
    if not validation or score > run.best["map"]:
        run.best = {"map": score, "epoch": run.epoch + 1}
        if run.args.rank == 0:
            save_whole(run.evaluated.state_dict(), run.args.out / "best.pt")


def main(argv=None):
    args = parse_args(argv)
    with one_line(args):
        return train(args)


def train(args):
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists() and not args.resume:
        sys.exit(f"{args.out} holds a run already: --resume it, or choose another --out")
    args.device = init_distributed_device(args)
    random_seed(args.seed)
    protocol, parts = load_parts(args)
    model = make_model(args).to(args.device)
    train_transform, transform = make_transforms(args, model)
    query, database = (LabelledImages(x, transform=transform) for x in (parts.query, parts.database))
    order = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(args.seed))
    held_out = 0 if args.select_on == "query" else round(args.val_fraction * len(order))
    val_rows, rows = order[:held_out].sort().values, order[held_out:].sort().values
    if args.loss == "contrastive":
        train_transform = TwoViews(train_transform)
    train = LabelledImages(parts.train, rows=rows, transform=train_transform)
    validation = [LabelledImages(parts.train, rows=r, transform=transform) for r in (val_rows, rows)]
    if args.select_on == "query":
        warnings.warn("the epoch is chosen on the queries: the mAP reported is too high", stacklevel=2)
        validation = [query, database]
    elif not held_out:
        validation = None
    if args.rank == 0:
        print(f"{protocol}\n{parts}\n{len(train):,} images are trained on, {held_out:,} held out", flush=True)

    sizes = {"num_classes": parts.train.num_classes, "model": model, "bank": args.bank}
    sizes |= {"count_unseen": args.recipe == "paper", "generator": torch.Generator().manual_seed(args.seed)}
    sizes["lengths"] = args.lengths
    loss_fn = create_loss_for(args.loss, train.labels, args.bits, **sizes, **args.loss_args).to(args.device)
    batches = len(epoch_batches(args, train.labels, 0))
    if batches == 0:
        sys.exit(f"{len(train)} training images do not fill a batch of {args.batch_size * args.world_size}")
    run = Run(args, model, loss_fn, math.ceil(batches / args.accumulate))
    if args.rank == 0:
        where = f"{args.world_size} x {args.device}" if args.distributed else args.device
        print(
            f"{args.model} on {where}: {run.updates_in_all:,} updates; results go to {args.out}", flush=True
        )
    if checkpoint.exists():
        run.load(checkpoint)
    if args.tensorboard and args.rank == 0:
        from torch.utils.tensorboard import SummaryWriter

        run.board = SummaryWriter(args.out / "tensorboard", purge_step=run.updates + 1)
    network = model
    if args.distributed:
        network = DistributedDataParallel(model, [args.device] if args.device.type == "cuda" else None)
    if args.compile:
        network = torch.compile(network)
    while run.epoch < args.epochs:
        train_epoch(run, network, train)
        if (run.epoch + 1) % args.val_every == 0 or run.epoch + 1 == args.epochs:
            keep_best(run, validation, protocol.top_k)
        run.epoch += 1
        if args.rank == 0:
            run.save(checkpoint)

    if args.distributed:
        dist.barrier()
    model.load_state_dict(torch.load(args.out / "best.pt", map_location="cpu", weights_only=True))
    codes = [hash_images(args, model, part) for part in (query, database)]
    report = evaluate(*codes, top_k=protocol.top_k)
    shorter = {}
    for length in (args.lengths or ())[:-1]:
        shorter[length] = evaluate(*(part.truncate(length) for part in codes), top_k=protocol.top_k)
    if args.rank == 0:
        print(f"\nweights of epoch {run.best['epoch']}\n{report}")
        report.to_json(args.out / "report.json")
        for length, cut in shorter.items():
            print(f"first {length} bits: mAP {cut['map']:.4f}")
            cut.to_json(args.out / f"report_{length}.json")
        save_database(args, codes[1], database)
        training = f"Loss {args.loss}, recipe {args.recipe}, epoch {run.best['epoch']} by {args.select_on}."
        about = {"dataset": protocol.name, "training": training}
        save_pretrained(model, args.out / "model", report, shorter=shorter, **about)
        print(f"\nin {args.out}: model (for hybridhash.load), database.safetensors, report.json, log.csv")
    if args.distributed:
        dist.destroy_process_group()
    return report


if __name__ == "__main__":
    main()
