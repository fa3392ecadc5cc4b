"""The training example: whole runs, resumption after a kill, two processes, every loss, what it refuses."""

import csv
import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import hybridhash
from hybridhash import HashCodes
from hybridhash.data import Split, list_protocols, read_image
from hybridhash.eval import RetrievalReport
from hybridhash.losses import ContrastiveLoss, list_losses
from tests import ROOT

SCRIPT = ROOT / "examples" / "train.py"
spec = importlib.util.spec_from_file_location("train_example", SCRIPT)
train = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)

SMALL = ["embed_dims=(16,32,64)", "num_heads=(1,2,4)", "depths=(1,1,1)"]
TINY = [
    "--model",
    "hybridhash_16",
    "--img-size",
    "16",
    "--bits",
    "8",
    "--num-workers",
    "0",
    "--log-every",
    "1",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 14 images each, of different colours and noise."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for k in range(14):
            pixels = torch.randint(0, 120, (20, 18, 3), generator=generator)
            pixels[..., number] += 120
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / name / f"{k}.png")
    return folder


def options(photos, out, more="", model_args=(*SMALL, "drop_path_rate=0.2")):
    sizes = ["--query-per-class", "2", "--batch-size", "8", "--warmup-epochs", "0"]
    return [
        *(*TINY, "--data-dir", str(photos), "--out", str(out), *sizes),
        *("--model-args", *model_args, *more.split()),
    ]


def run(photos, out, more="", **kwargs):
    return train.main(options(photos, out, more, **kwargs))


def log_of(out):
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def losses_of(out):
    return [(line["update"], line["loss"]) for line in log_of(out) if line["loss"]]


def checkpoint_of(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_run_on_the_digits_learns_and_leaves_a_model(tmp_path, capsys):
    more = "--epochs 3 --lr 3e-3 --warmup-epochs 0 --query-per-class 20 --ema 0 --tensorboard --model-args"
    command = [*TINY, "--protocol", "digits", "--out", str(tmp_path), *more.split(), *SMALL]
    report = train.main([*command, "drop_path_rate=0"])
    text = capsys.readouterr().out
    assert "1,437 images are trained on, 160 held out" in text
    assert "digits: own data, 10 classes" in text
    scores = [float(line["val_map"]) for line in log_of(tmp_path) if line["val_map"]]
    assert len(scores) == 3
    assert min(max(scores), report["map"]) > 0.35  # 0.16 untrained
    assert RetrievalReport.from_json(tmp_path / "report.json")["map"] == report["map"]
    codes = HashCodes.load(tmp_path / "database.safetensors")
    assert (len(codes), codes.bits) == (1597, 8)
    model = hybridhash.load(tmp_path / "model").eval()
    assert_same_weights(model.state_dict(), torch.load(tmp_path / "best.pt", weights_only=True))
    assert "digits" in (tmp_path / "model" / "README.md").read_text()
    assert any(path.name.startswith("events") for path in (tmp_path / "tensorboard").iterdir())


def test_contrastive_learns_on_the_digits_without_a_label(tmp_path, monkeypatch):
    given = []

    def forward(self, codes, labels, **kwargs):
        given.append(labels.tolist())
        return contrastive(self, codes, labels, **kwargs)

    contrastive = ContrastiveLoss.forward
    monkeypatch.setattr(ContrastiveLoss, "forward", forward)
    more = "--epochs 2 --lr 3e-3 --warmup-epochs 0 --query-per-class 20 --ema 0 --val-fraction 0"
    more += " --model test_resnet --img-size 32 --bits 16 --head batchnorm"
    command = [*TINY, "--protocol", "digits", *more.split(), "--loss", "contrastive"]
    command += ["--loss-args", "binary=sign"]
    trained = train.main([*command, "--out", str(tmp_path / "trained")])
    views = [row for batch in given for row in batch]
    rows = torch.tensor(views).bincount(minlength=1597)
    assert all(batch[::2] == batch[1::2] for batch in given)  # two views of each image
    assert set(rows.tolist()) <= {0, 2, 4}  # an epoch leaves out a batch that is not full
    assert len(given) == 2 * (1597 // 64)
    monkeypatch.setattr(train, "train_epoch", lambda run, network, dataset: None)
    untrained = train.main([*command, "--out", str(tmp_path / "untrained")])
    assert trained["map"] > 2 * untrained["map"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--augment none", "two equal views, which --loss contrastive learns nothing from"),
        ("--classes-per-batch 3", "--classes-per-batch needs labels, and --loss contrastive looks at none"),
    ],
)
def test_contrastive_refuses_what_it_cannot_use(capsys, more, message):
    with pytest.raises(SystemExit):
        train.main(["--protocol", "digits", "--loss", "contrastive", *more.split()])
    assert message in capsys.readouterr().err


def test_the_validation_set_is_held_out_of_the_training_set(photos, tmp_path, monkeypatch):
    seen = {}

    def look(run, validation, top_k):
        seen["validation"] = validation
        torch.save(run.model.state_dict(), run.args.out / "best.pt")

    monkeypatch.setattr(train, "train_epoch", lambda run, network, dataset: seen.update(trained=dataset))
    monkeypatch.setattr(train, "keep_best", look)
    run(photos, tmp_path, "--epochs 1 --val-fraction 0.25")
    trained, (held_out, database) = seen["trained"], seen["validation"]
    assert (len(trained), len(held_out)) == (27, 9)
    assert not set(trained.rows.tolist()) & set(held_out.rows.tolist())
    assert torch.equal(database.rows, trained.rows)
    split = Split.load(tmp_path / "split.safetensors", trained.dataset.dataset.labels)
    assert not torch.isin(split.train[held_out.rows], split.query).any()


def test_choosing_the_epoch_on_the_queries_warns(photos, tmp_path):
    with pytest.warns(UserWarning, match="chosen on the queries: the mAP reported is too high"):
        report = run(photos, tmp_path, "--epochs 1 --select-on query")
    assert float(log_of(tmp_path)[-1]["val_map"]) == pytest.approx(report["map"], abs=1e-6)


def test_without_validation_the_last_weights_are_kept(photos, tmp_path):
    run(photos, tmp_path, "--epochs 2 --val-fraction 0 --ema 0")
    content = checkpoint_of(tmp_path)
    assert content["best"]["epoch"] == 2
    assert_same_weights(torch.load(tmp_path / "best.pt", weights_only=True), content["model"])


def test_a_killed_run_goes_on_with_the_same_losses(photos, tmp_path):
    # Drop path, augmentation, EMA, parameters of the loss, warm-up and cosine are all at work.
    more = "--epochs 4 --loss greedyhash --accumulate 2 --warmup-epochs 1"
    run(photos, tmp_path / "whole", more)
    command = [sys.executable, SCRIPT, *options(photos, tmp_path / "killed", more)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    lines = iter(process.stdout.readline, "")
    assert any("epoch 3" in line for line in lines)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint_of(tmp_path / "killed")["epoch"] >= 2
    assert not (tmp_path / "killed" / "report.json").exists()
    run(photos, tmp_path / "killed", more + " --resume")
    assert len(losses_of(tmp_path / "whole")) == 8
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    whole, killed = checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "killed")
    for part in ("model", "ema", "loss_fn"):
        assert_same_weights(whole[part], killed[part])


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "more", ["--loss wml --amp fp16", "--loss dpn --loss-args adaptive=True", "--loss adsh --augment flip"]
)
def test_a_stopped_run_goes_on_exactly(photos, tmp_path, monkeypatch, more):
    more = "--epochs 2 " + more
    run(photos, tmp_path / "whole", more)
    save = train.Run.save

    def stop(self, path):
        save(self, path)
        raise StoppedError

    monkeypatch.setattr(train.Run, "save", stop)
    with pytest.raises(StoppedError):
        run(photos, tmp_path / "stopped", more)
    monkeypatch.undo()
    torch.rand(3)  # another place of the global generator
    run(photos, tmp_path / "stopped", more + " --resume")
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")
    assert_same_weights(
        checkpoint_of(tmp_path / "whole")["loss_fn"], checkpoint_of(tmp_path / "stopped")["loss_fn"]
    )


def test_two_processes_train_as_one_with_twice_the_batch(photos, tmp_path):
    # Without random layers and augmentation, or the processes would draw other numbers than the one.
    same = "--epochs 1 --augment none --loss greedyhash --ema 0 --clip-grad 0 --device cpu"
    model_args = (*SMALL, "drop_path_rate=0")
    run(photos, tmp_path / "one", same + " --batch-size 16", model_args=model_args)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT]
    command = [*launch, *options(photos, tmp_path / "two", same, model_args=model_args)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    one, two = (losses_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for (_, first), (_, second) in zip(one, two, strict=True):
        assert float(first) == pytest.approx(float(second), rel=1e-4)
    codes = HashCodes.load(tmp_path / "two" / "database.safetensors")
    split = Split.load(tmp_path / "two" / "split.safetensors", torch.arange(3).repeat_interleave(14))
    assert torch.equal(codes.ids, split.database)


@pytest.mark.parametrize("name", list_losses())
def test_every_loss_can_be_chosen(photos, tmp_path, monkeypatch, name):
    def stop(run, validation, top_k):
        raise StoppedError(run.log)

    monkeypatch.setattr(train, "keep_best", stop)
    batches = "--augment rrc" if name == "contrastive" else "--augment none --classes-per-batch 2"
    more = f"--model test_resnet --img-size 32 --loss {name} --epochs 1 {batches}"
    with pytest.raises(StoppedError) as stopped:
        run(photos, tmp_path, more, model_args=())
    losses = [line["loss"] for line in stopped.value.args[0]]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))


def test_one_run_trains_and_measures_several_lengths(photos, tmp_path, capsys):
    run(photos, tmp_path, "--epochs 1 --loss csq --lengths 4,6,8 --model test_resnet", model_args=())
    printed, card = capsys.readouterr().out, (tmp_path / "model" / "README.md").read_text()
    database = HashCodes.load(tmp_path / "database.safetensors")
    for length in (4, 6):
        report = RetrievalReport.from_json(tmp_path / f"report_{length}.json")
        assert (report.bits, report.database) == (length, len(database))
        assert f"first {length} bits: mAP {report['map']:.4f}" in printed
        assert f"| {length} | {report['map']:.4f} |" in card
    assert database.bits == 8


def test_what_losses_require_is_provided(photos, tmp_path, monkeypatch):
    requires, ends = {}, []
    update = train.Run.update

    def look(self):
        requires[self.args.loss] = set(self.loss_fn.requires)
        before = [p.detach().clone() for p in self.loss_fn.parameters()]
        update(self)
        if "parameters" in self.loss_fn.requires:
            assert not all(torch.equal(a, b) for a, b in zip(before, self.loss_fn.parameters(), strict=True))
        if hasattr(self.loss_fn, "epoch_end") and not ends:
            self.loss_fn.epoch_end = lambda: ends.append(self.args.loss)
        if self.args.bank:
            assert self.loss_fn.bank.seen.any()

    monkeypatch.setattr(train.Run, "update", look)
    for name in ("wml", "cnnh", "dlbhc", "adsh"):
        run(photos, tmp_path / name, f"--epochs 1 --model test_resnet --loss {name} --ema 0", model_args=())
    assert requires == {
        "wml": {"bank", "indices"},
        "cnnh": {"indices"},
        "dlbhc": {"parameters"},
        "adsh": {"indices", "epoch_hook"},
    }
    assert ends == ["adsh"]


def test_accumulated_batches_are_one_update(photos, tmp_path):
    run(photos, tmp_path, "--epochs 1 --val-fraction 0 --accumulate 3")  # 36 images, 4 batches
    assert [update for update, _ in losses_of(tmp_path)] == ["1", "2"]


def test_the_recipe_of_the_paper(photos, tmp_path):
    args = train.parse_args([*options(photos, tmp_path), "--recipe", "paper", "--batch-size", "64"])
    got = (args.opt, args.lr, args.weight_decay, args.epochs, args.batch_size, args.sched, args.ema)
    assert got == ("rmsprop", 2.5e-5, 1e-5, 12, 64, "none", 0)
    loss = train.create_loss_for("wml", torch.arange(9) % 3, 8, bank=args.bank)
    assert loss.alpha == 0.5
    args.device = torch.device("cpu")
    optimizer = train.Run(args, torch.nn.Linear(2, 2), loss, 1).optimizer
    assert type(optimizer) is torch.optim.RMSprop
    (group,) = optimizer.param_groups
    assert (group["alpha"], group["momentum"], group["weight_decay"]) == (0.99, 0, 1e-5)


def test_the_recipe_of_the_paper_counts_rows_never_visited(photos, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train_epoch", lambda run, network, dataset: seen.append(run.loss_fn))
    run(photos, tmp_path, "--recipe paper --epochs 1")
    assert seen[0].bank.count_unseen


def test_options_of_the_command_line_win_over_the_recipe(photos, tmp_path):
    args = train.parse_args([*options(photos, tmp_path), "--recipe", "paper", "--lr", "0.1", "--epochs", "3"])
    assert (args.lr, args.epochs, args.opt) == (0.1, 3, "rmsprop")
    args = train.parse_args(options(photos, tmp_path))
    assert (args.opt, args.sched, args.layer_decay, args.bank) == ("adamw", "cosine", None, True)
    assert train.parse_args([*options(photos, tmp_path), "--pretrained"]).layer_decay == 0.75


@pytest.mark.parametrize(("protocol", "augment"), [("cifar10", "none"), ("coco", "flip")])
def test_the_paper_augments_all_but_cifar(tmp_path, protocol, augment):
    args = train.parse_args(["--recipe", "paper", "--protocol", protocol, "--data-dir", str(tmp_path)])
    assert args.augment == augment


def test_digits_are_augmented_only_if_asked():
    assert train.parse_args(["--protocol", "digits"]).augment == "none"
    assert train.parse_args(["--protocol", "digits", "--augment", "rrc"]).augment == "rrc"


def test_layers_near_the_input_learn_more_slowly(photos, tmp_path):
    args = train.parse_args([*options(photos, tmp_path), "--layer-decay", "0.5"])
    args.device = torch.device("cpu")
    run = train.Run(args, train.make_model(args), train.create_loss_for("dch", torch.arange(9) % 3, 8), 5)
    scales = {group["lr_scale"] for group in run.optimizer.param_groups}
    assert max(scales) == 1.0
    assert min(scales) < 0.2
    head = {id(p) for p in run.model.head.parameters()}
    for group in run.optimizer.param_groups:
        if head & {id(p) for p in group["params"]}:
            assert group["lr_scale"] == 1.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--recipe papr", "argument --recipe: invalid choice: 'papr'"),
        ("--loss hashnt", "argument --loss: invalid choice: 'hashnt' (choose from"),
        ("--protocol cifar", "argument --protocol: invalid choice: 'cifar' (choose from"),
        ("--head tan", "argument --head: invalid choice: 'tan'"),
        ("--val-fraction 1", "--val-fraction must be at least 0 and below 1, got 1.0"),
        ("--accumulate 0", "--accumulate must be at least 1, got 0"),
        ("--lengths 4,16", "--lengths must end with --bits 8, got 16"),
        ("--lengths 4,8 --loss drsdh --head weighted", "leave --lengths out"),
        ("--data-dir nowhere", "--data-dir: there is no nowhere"),
        ("--csv nowhere.csv", "--csv: there is no nowhere.csv"),
        pytest.param(
            "--device cuda",
            "--device cuda: PyTorch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_read(photos, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "out", more)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_are_needed(capsys):
    with pytest.raises(SystemExit):
        train.main([])
    assert "no images: give --data-dir" in capsys.readouterr().err


def test_every_protocol_can_be_named():
    for name in list_protocols():
        assert train.parse_args(["--protocol", name, "--data-dir", "."]).protocol == name


def test_a_run_of_another_configuration_is_not_resumed(photos, tmp_path):
    run(photos, tmp_path, "--epochs 1 --val-fraction 0")
    with pytest.raises(SystemExit, match="holds a run already: --resume it"):
        run(photos, tmp_path, "--epochs 1 --val-fraction 0")
    with pytest.raises(
        SystemExit, match=r"checkpoint\.pt is of another run: epochs is 1 there, 2 here; lr is"
    ):
        run(photos, tmp_path, "--epochs 2 --val-fraction 0 --resume --lr 0.5")
    before = losses_of(tmp_path)
    run(photos, tmp_path, "--epochs 1 --val-fraction 0 --resume")
    assert losses_of(tmp_path) == before


def test_unknown_arguments_of_a_loss_are_named(photos, tmp_path):
    with pytest.raises(SystemExit, match="WMLLoss takes no argument 'alhpa'"):
        run(photos, tmp_path / "a", "--loss-args alhpa=1")
    with pytest.raises(SystemExit, match="CSQLoss has no bank; those with one: dbdh, dch"):
        run(photos, tmp_path / "b", "--loss csq --bank")


def test_too_few_images_for_a_batch_are_named(photos, tmp_path):
    with pytest.raises(SystemExit, match="32 training images do not fill a batch of 100"):
        run(photos, tmp_path, "--batch-size 100")


def test_a_loss_that_is_not_finite_stops_the_run(photos, tmp_path, monkeypatch):
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(
        hybridhash.losses.WMLLoss, "forward", lambda self, codes, labels, indices: nan * codes.sum()
    )
    with pytest.raises(SystemExit, match="the loss of update 1 is nan"):
        run(photos, tmp_path / "line", "--epochs 1")
    with pytest.raises(FloatingPointError, match="the loss of update 1 is nan"):
        run(photos, tmp_path / "traceback", "--epochs 1 --traceback")


@pytest.mark.parametrize(("schedule", "steps"), [("iterations", 8), ("epochs", 2)])
def test_a_head_that_steepens_is_stepped(photos, tmp_path, schedule, steps):
    more = "--loss hashnet --head continuation --epochs 2 --val-fraction 0 --ema 0"
    run(photos, tmp_path, more, model_args=(*SMALL, f"head_args={{'schedule':'{schedule}'}}"))
    assert checkpoint_of(tmp_path)["model"]["head.steps"] == steps


def test_weights_of_bits_are_handed_to_the_head(photos, tmp_path):
    run(photos, tmp_path, "--loss drsdh --head weighted --epochs 1 --val-fraction 0 --ema 0")
    content = checkpoint_of(tmp_path)
    weights = content["model"]["head.weights"]
    assert torch.equal(weights, content["loss_fn"]["bit_weights"])
    assert not torch.equal(weights, torch.ones(8))
    assert torch.equal(hybridhash.load(tmp_path / "model").head.weights, weights)


def test_any_backbone_is_saved_with_its_size_of_images(photos, tmp_path):
    run(photos, tmp_path, "--model test_resnet --img-size 48 --epochs 1 --ema 0", model_args=())
    config = timm.data.resolve_model_data_config(hybridhash.load(tmp_path / "model"))
    assert config["input_size"] == (3, 48, 48)


def test_list_files_are_trained_on(photos, tmp_path):
    names = sorted(path.relative_to(photos) for path in photos.rglob("*.png"))
    parts = {"test": names[::7], "train": names[1::7], "database": names[2::7] + names[3::7]}
    for name, part in parts.items():
        lines = [
            f"{path} " + " ".join(str(int(c == k % 21)) for c in range(21)) for k, path in enumerate(part)
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    more = f"--protocol nuswide_21_m --root {photos} --epochs 1 --batch-size 4"
    with pytest.warns(UserWarning, match="not the sizes of nuswide_21_m"):
        report = run(tmp_path, tmp_path / "out", more)
    assert (report.queries, report.database) == (6, 12)
    (tmp_path / "train.txt").write_text("red/0.png 0 1 0")
    with pytest.raises(SystemExit, match=r"train\.txt, line 1: 3 labels, expected 21"):
        run(tmp_path, tmp_path / "short", more)


def test_a_csv_file_is_trained_on(photos, tmp_path):
    names = sorted(path.relative_to(photos) for path in photos.rglob("*.png"))
    lines = [f"{path},{path.parent};{'warm' if path.parent.name == 'red' else 'cold'}" for path in names]
    (tmp_path / "photos.csv").write_text("\n".join(["image,label", *lines]))
    more = f"--csv {tmp_path}/photos.csv --separator ; --root {photos} --epochs 1"
    report = run(photos, tmp_path / "out", more)
    assert report.queries > 0
    assert HashCodes.load(tmp_path / "out" / "database.safetensors").labels.shape[1] == 5


def test_ids_of_the_index_are_rows_of_the_data_set_and_name_files(photos, tmp_path, capsys):
    run(photos, tmp_path, "--epochs 1 --val-fraction 0 --augment none --ema 0")
    codes = HashCodes.load(tmp_path / "database.safetensors")
    samples = ImageFolder(photos).samples
    assert [samples[row][1] for row in codes.ids.tolist()] == codes.labels.tolist()
    with open(tmp_path / "database.csv", newline="") as file:
        files = {int(line["id"]): line["image"] for line in csv.DictReader(file)}
    assert files == {row: samples[row][0] for row in codes.ids.tolist()}
    model = hybridhash.load(tmp_path / "model").eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    last = int(codes.ids[-1])
    again = hybridhash.encode(model, [transform(read_image(files[last]))[None]])
    assert torch.equal(again.packed[0], codes.packed[-1])
    text = capsys.readouterr().out
    assert f"hybridhash_16 on cpu: 4 updates; results go to {tmp_path}" in text
    assert re.search(r"update 4/4 epoch 1/1 loss \S+ lr \S+, [\d,]+ images/s, 0 min \d+ s left\n", text)
    assert f"in {tmp_path}: model" in text


def test_a_split_left_behind_is_not_used_in_silence(photos, tmp_path, capsys):
    with pytest.raises(SystemExit, match="do not fill a batch of 100"):
        run(photos, tmp_path, "--batch-size 100")
    with pytest.raises(SystemExit, match=r"is another split than these options draw .*query 6, train 36"):
        run(photos, tmp_path, "--epochs 1 --seed 7")
    with pytest.raises(SystemExit, match="is another split than these options draw"):
        run(photos, tmp_path, "--epochs 1 --query-per-class 3")
    with pytest.raises(SystemExit):
        run(photos, tmp_path, f"--epochs 1 --split {tmp_path}/split.safetensors")
    assert "--query-per-class draws a split, but --split" in capsys.readouterr().err
    command = [*TINY, "--data-dir", str(photos), "--out", str(tmp_path), "--batch-size", "8", "--epochs", "1"]
    command += ["--split", f"{tmp_path}/split.safetensors", "--warmup-epochs", "0", "--model-args", *SMALL]
    report = train.main(command)
    assert "query 6, train 36 (in the database), database 36" in capsys.readouterr().out
    assert report.queries == 6
    split = Split.load(tmp_path / "split.safetensors", torch.arange(3).repeat_interleave(14))
    replace(split, protocol="cifar10").save(tmp_path / "other.safetensors")
    args = train.parse_args([*command, "--protocol", "digits", "--split", f"{tmp_path}/other.safetensors"])
    with pytest.raises(ValueError, match="was drawn for cifar10, not for digits"):
        train.choose_split(
            args,
            train.custom_protocol("digits", torch.arange(3), query_per_class=1),
            torch.arange(3).repeat_interleave(14),
        )


def test_an_image_that_cannot_be_read_is_left_out_and_named(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("red/3.png", "blue/5.png"):
        (tmp_path / "photos" / name).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="left out: the image") as warned:
        report = run(tmp_path / "photos", tmp_path / "out", "--epochs 1")
    named = {name for name in ("red/3.png", "blue/5.png") for w in warned if name in str(w.message)}
    assert named == {"red/3.png", "blue/5.png"}
    assert report.queries + report.database == 40
    codes = HashCodes.load(tmp_path / "out" / "database.safetensors")
    samples = ImageFolder(photos).samples
    assert [samples[row][1] for row in codes.ids.tolist()] == codes.labels.tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--model resnet51", "timm has no model 'resnet51'"),
        ("--img-size 50", "50"),
        ("--query-per-class 14", "class 0 has 14 images, too few for 14 queries"),
    ],
)
def test_mistakes_end_in_one_line(photos, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message) as caught:
        run(photos, tmp_path, more)
    assert str(caught.value).startswith("train.py: ")


def test_files_that_are_left_out_are_counted(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "red" / "phone.HEIC").write_bytes(b"...")
    with pytest.warns(UserWarning, match=r"1 files in .*photos are left out: ImageFolder takes \.jpg"):
        run(tmp_path / "photos", tmp_path / "out", "--epochs 1 --val-fraction 0")


def test_a_folder_without_classes_is_refused_in_one_line(photos, tmp_path):
    with pytest.raises(SystemExit, match="Couldn't find any class folder"):
        run(photos / "red", tmp_path, "--epochs 1")


def test_the_example_uses_only_public_names():
    imports = re.findall(r"^(?:from|import) (hybridhash\S*)", SCRIPT.read_text(), flags=re.MULTILINE)
    assert imports
    assert not [name for name in imports if "._" in name]
