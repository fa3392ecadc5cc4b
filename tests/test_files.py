"""Atomic writes: after a failure at any step the files are those of before."""

import errno
import itertools
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from hybridhash import HashCodes
from hybridhash._files import replacing, replacing_files
from hybridhash.hub import save_pretrained
from tests._hub_models import create

STEPS = ("replace", "fsync", "link", "mkdir")


def _content(folder):
    """Every file and folder below a folder, with the bytes of the files."""
    paths = Path(folder).rglob("*")
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def _fail_at(monkeypatch, name, number):
    """Have the call of this number of ``os.<name>`` fail, counted from 1; return the list of its calls."""
    real, calls = getattr(os, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)
    return calls


def _write_file(folder):
    with replacing(folder / "b.txt") as temporary:
        temporary.write_text("new")


def _write_files(folder):
    with replacing_files(folder, last="a.txt") as temporary:
        for name in ("a.txt", "b.txt", "c.txt"):
            (temporary / name).write_text("new")


def _write_half(file, error):
    file.write_text("half")
    raise error


@pytest.mark.parametrize("existing", [True, False], ids=["over old files", "into an empty folder"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("write", [_write_file, _write_files])
def test_a_failure_at_any_step_leaves_what_was_there(write, step, existing, tmp_path, monkeypatch):
    if existing:
        for name in ("a.txt", "b.txt", "other.txt"):
            (tmp_path / name).write_text(f"old {name}")
    before = _content(tmp_path)
    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            calls = _fail_at(patch, step, number)
            try:
                write(tmp_path)
            except OSError:
                assert _content(tmp_path) == before, f"{step} {number} failed"
            else:
                # A step that did not fail, or for which there is another way.
                written = _content(tmp_path)
                assert written["b.txt"] == b"new"
                assert written.get("other.txt") == before.get("other.txt")
                assert not [name for name in written if name.startswith(".")]
                if len(calls) < number:
                    break
                shutil.rmtree(tmp_path)
                tmp_path.mkdir()
                for name, content in before.items():
                    (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("write", [replacing, replacing_files])
def test_a_block_that_raises_leaves_what_was_there(write, error, tmp_path):
    (tmp_path / "a.txt").write_text("old")
    target = tmp_path / "a.txt" if write is replacing else tmp_path
    with pytest.raises(error), write(target) as temporary:
        _write_half(temporary if write is replacing else temporary / "a.txt", error)
    assert _content(tmp_path) == {"a.txt": b"old"}


def test_folders_that_were_made_for_a_failed_write_are_removed(tmp_path):
    folder = tmp_path / "made" / "model"
    with pytest.raises(OSError, match="full"), replacing_files(folder) as temporary:
        _write_half(temporary / "a.txt", OSError("full"))
    assert _content(tmp_path) == {}
    with replacing_files(folder) as temporary:
        (temporary / "a.txt").write_text("new")
    assert _content(folder) == {"a.txt": b"new"}


def test_the_file_that_names_the_others_is_moved_last(tmp_path, monkeypatch):
    calls = _fail_at(monkeypatch, "replace", 0)
    _write_files(tmp_path)
    assert [Path(target).name for _, target in calls] == ["b.txt", "c.txt", "a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
@pytest.mark.parametrize("write", [replacing, replacing_files])
def test_the_mode_of_a_file_follows_the_umask(write, umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with write(tmp_path / "a.txt" if write is replacing else tmp_path) as temporary:
            file = temporary if write is replacing else temporary / "a.txt"
            file.unlink(missing_ok=True)
            file.write_text("new")
            file.chmod(0o400 | 0o200)
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_others_may_read_saved_codes_and_models(tmp_path):
    before = os.umask(0o022)
    try:
        HashCodes.from_codes(torch.ones(2, 8)).save(tmp_path / "codes.safetensors")
        save_pretrained(create(), tmp_path / "model")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_links_are_followed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "data" / "real.txt")
    (tmp_path / "folder").symlink_to(tmp_path / "data")
    with replacing(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    with replacing_files(tmp_path / "folder") as temporary:
        (temporary / "other.txt").write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert _content(tmp_path / "data") == {"real.txt": b"new", "other.txt": b"new"}


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="none does not exist, create it"),
        replacing(tmp_path / "none" / "a"),
    ):
        pass
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match="file"), replacing_files(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "a file"


# Temporary files


def _die_while_writing(folder):
    """Write as a process that is killed in the middle."""
    pid = os.fork()
    if pid == 0:
        with replacing(folder / "b.txt") as file, replacing_files(folder) as files:
            file.write_text("half")
            (files / "a.txt").write_text("half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_killed_processes_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    for _ in range(3):
        _die_while_writing(tmp_path)
    (tmp_path / ".b.txt.mine").write_text("mine")
    left = {path.name.split(".")[1].split("-")[0] for path in tmp_path.iterdir()}
    assert left == {"b", "saving"}
    with replacing(tmp_path / "b.txt") as outer, replacing_files(tmp_path) as files:
        with replacing(tmp_path / "b.txt") as inner:  # another save of the same file, at the same time
            inner.write_text("first")
        _write_files(tmp_path)
        outer.write_text("second")
        (files / "c.txt").write_text("third")
    assert _content(tmp_path) == {
        "a.txt": b"new",
        "b.txt": b"second",
        "c.txt": b"third",
        ".b.txt.mine": b"mine",
    }


def test_a_full_disk_is_told_by_its_number_and_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.txt"))


@pytest.mark.parametrize("url", ["s3://bucket/a", "hf://user/repo/a", Path("gs://bucket/a")])
@pytest.mark.parametrize("write", [replacing, replacing_files])
def test_a_url_is_refused(write, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a URL: give a local or mounted folder"), write(url):
        pass
    assert not os.listdir(tmp_path)
