"""encode_dataset under kill -9, full disks and several processes: nothing lost, nothing twice."""

from __future__ import annotations

import errno
import multiprocessing as mp
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from hybridhash import HashCodes, _code_files, open_codes
from hybridhash.codes import pack_codes
from hybridhash.encoding import read_failures
from tests._processes import CONTEXT, run_on_ranks
from tests.encoding._helpers import BITS, IMAGES, LABELS, Net, contents, probed, run

DATASET = TensorDataset(IMAGES, LABELS)
LARGER = TensorDataset(IMAGES.repeat(20, 1, 1, 1), LABELS.repeat(20))


class Logged(Dataset[Any]):
    """Images with every ninth one broken; each row that is read is written to a file."""

    def __init__(self, log, size=60, seconds=0.0):
        self.log = str(log)
        self.size = size
        self.seconds = seconds

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, b"%d\n" % row)
        os.close(file)
        time.sleep(self.seconds)
        if row % 9 == 4:
            raise OSError("broken")
        return image(row), row % 5


def image(row):
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(row))


def check_logged(out, size=60):
    """That no image is lost and none is twice."""
    good = [row for row in range(size) if row % 9 != 4]
    with torch.no_grad():
        packed = pack_codes(Net().eval()(torch.stack([image(row) for row in good])))
    ids = torch.tensor(good)
    assert open_codes(out) == HashCodes(packed, BITS, ids % 5, ids)
    assert [failure.row for failure in read_failures(out)] == list(range(4, size, 9))


def child(function, *arguments):
    """Exit code of a process that runs a function."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def call(out, dataset, options):
    mp.set_start_method("fork", force=True)  # a forkserver of the child would outlive it
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(Net(), dataset, out, **options)


# Kill -9


def call_until(out, event):
    """Run, but die without notice at the given operation on the files of ``out``."""
    left = event

    def watch(name, arguments):
        nonlocal left
        touches = name == "open" and str(arguments[0]).startswith(str(out))
        if touches or name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    call(out, DATASET, {"save_seconds": 0, "batch_size": 8, "shard_size": 16})


def die_everywhere(folder):
    """``call_until`` each event in turn, until there are no more, in forks that are cheap."""
    torch.set_num_threads(1)
    for event in range(1, 1000):
        pid = os.fork()
        if pid == 0:
            call_until(folder / f"{event:03d}", event)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status):
            os._exit(os.WEXITSTATUS(status))
        assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forkserver and SIGKILL")
def test_killed_before_any_operation_on_files_nothing_is_lost(tmp_path):
    run(Net(), DATASET, tmp_path / "whole", batch_size=8, shard_size=16)
    want = contents(tmp_path / "whole")
    assert len(want) == 3
    (tmp_path / "died").mkdir()
    assert child(die_everywhere, tmp_path / "died") == 0
    folders = sorted((tmp_path / "died").iterdir())
    assert len(folders) > 30  # it had that many occasions to die
    for out in folders:
        run(Net(), DATASET, out, batch_size=8, shard_size=16)
        assert contents(out) == want
        assert not list(out.rglob("*.tmp"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forkserver and SIGKILL")
@pytest.mark.parametrize(("workers", "most"), [(0, 4), (1, 2)])
def test_killed_at_random_moments_it_goes_on_each_time(tmp_path, workers, most):
    out, log = tmp_path / "codes", tmp_path / "log"
    options = {"save_seconds": 0, "num_workers": workers, "shard_size": 25}
    dataset = Logged(log, seconds=0.004)
    generator = random.Random(workers)
    kills = 0
    for _ in range(40):
        before = log.stat().st_size if log.exists() else 0
        process = CONTEXT.Process(target=call, args=(out, dataset, options))
        process.start()
        while process.is_alive() and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.002)
        process.join(generator.uniform(0, 0.15) if kills < most else 60)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills == most
    check_logged(out)
    # What was saved was not done again: a process reads some images to try, and loses the batches in hand.
    in_hand = 4 * (2 + 3 * workers)
    assert len(log.read_text().split()) <= 60 + (kills + 1) * len(probed(60)) + kills * in_hand


def hold(out):
    call(out, Logged(out.parent / "log", seconds=0.1), {})


def test_two_calls_at_a_time_are_refused(tmp_path):
    process = CONTEXT.Process(target=hold, args=(tmp_path / "codes",))
    process.start()
    while not (tmp_path / "codes" / "manifest.json").exists():
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=r"another process is encoding to .*codes: wait until"):
        run(Net(), Logged(tmp_path / "log"), tmp_path / "codes")
    process.kill()
    process.join()
    with pytest.warns(UserWarning, match="7 of 60"):
        run(Net(), Logged(tmp_path / "log"), tmp_path / "codes")
    check_logged(tmp_path / "codes")


# Full disks


def test_a_full_disk_leaves_whole_files_and_the_same_call_goes_on(tmp_path, monkeypatch):
    write_tensors, saved = _code_files.write_tensors, 0

    def until_full(path, *arguments):
        nonlocal saved
        saved += 1
        if saved > 3:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_tensors(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_code_files, "write_tensors", until_full)
        with pytest.raises(OSError, match="No space left"):
            run(Net(), DATASET, tmp_path, save_seconds=0)
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names[0] == ".lock"
    assert [name.split("-")[0] for name in names[1:]] == ["manifest.json", "rows", "rows", "rows"]
    model = Net()
    run(model, DATASET, tmp_path)
    assert sum(model.sizes) == 1 + 23 - 10  # rows 0 to 9 had been saved
    assert open_codes(tmp_path) == HashCodes(expected(), BITS, LABELS, torch.arange(23))


def expected():
    with torch.no_grad():
        return pack_codes(Net().eval()(IMAGES))


def call_with_small_files(out):
    """Run where no file can grow beyond 5,000 bytes: writes fail in the middle of a shard."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        call(out, LARGER, {"shard_size": 1000, "save_seconds": 0, "batch_size": 80})
    except OSError:
        os._exit(7)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forkserver and limits")
def test_a_write_that_fails_in_the_middle_leaves_whole_files(tmp_path):
    out = tmp_path / "codes"
    assert child(call_with_small_files, out) == 7
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith(".tmp") or name.startswith("shard")]
    assert len([name for name in names if name.startswith("rows")]) == 6
    model = Net()
    run(model, LARGER, out, shard_size=1000)
    assert model.sizes == [1]
    assert open_codes(out) == HashCodes(expected().repeat(20, 1), BITS, LABELS.repeat(20), torch.arange(460))


# Several processes


def rank_calls(rank, given):
    """ "done", or the traceback of a process that encodes together with others."""
    out, datasets, options = given
    try:
        call(out, datasets[rank], options)
    except Exception:
        return traceback.format_exc()
    return "done"


@pytest.mark.parametrize("shard_size", [10, 25, 100])
def test_two_processes_give_the_files_of_one(tmp_path, shard_size):
    options = {"shard_size": shard_size, "save_seconds": 0}
    with pytest.warns(UserWarning, match="7 of 60"):
        run(Net(), Logged(tmp_path / "log1"), tmp_path / "one", **options)
    datasets = [Logged(tmp_path / "log2")] * 2
    assert run_on_ranks(rank_calls, (tmp_path / "two", datasets, options)) == ["done", "done"]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    check_logged(tmp_path / "two")
    # Both read each row once, and every process some more to try.
    rows = sorted(map(int, (tmp_path / "log2").read_text().split()))
    assert rows == sorted([*range(60), *probed(60), *probed(60)])


def test_processes_go_on_where_one_was_and_one_where_processes_were(tmp_path):
    options = {"save_seconds": 0, "batch_size": 2}
    out = tmp_path / "codes"
    with pytest.raises(ValueError, match="row 4 cannot be read"):
        run(Net(), Logged(tmp_path / "log"), out, on_error="raise", **options)
    datasets = [Logged(tmp_path / "log"), Buggy(tmp_path / "log")]
    other, failed = run_on_ranks(rank_calls, (out, datasets, options))
    assert "KeyError: 'a bug'\n" in failed
    assert "RuntimeError: process 1 of 2 failed: KeyError: 'a bug'" in other
    model = Net()
    with pytest.warns(UserWarning, match="7 of 60"):
        run(model, Logged(tmp_path / "log"), out, **options)
    assert sum(model.sizes) < 20  # of the second half
    check_logged(out)


class Buggy(Logged):
    """A data set with a mistake of the program in row 50."""

    def __getitem__(self, row):
        if row == 50:
            raise KeyError("a bug")
        return super().__getitem__(row)


def test_processes_that_disagree_are_refused(tmp_path):
    datasets = [DATASET, TensorDataset(IMAGES[:22], LABELS[:22])]
    for text in run_on_ranks(rank_calls, (tmp_path / "codes", datasets, {})):
        assert "ValueError: process 1 encodes something else: ['images 23 there and 22 now']" in text


def test_processes_of_torchrun_must_be_initialised(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"one of 2 processes of torchrun .*init_process_group"):
        run(Net(), DATASET, tmp_path)
