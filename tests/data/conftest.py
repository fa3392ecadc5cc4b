import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Photos a.png to h.png, each of one colour."""
    for number, name in enumerate("abcdefgh"):
        Image.new("RGB", (4, 4), (30 * number, 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path
