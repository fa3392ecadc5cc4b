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
