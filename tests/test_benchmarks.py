"""Every script of benchmarks/ imports beside the tests' own modules, and says what it measures."""

import pytest

from tests._benchmark_scripts import FOLDER, load_benchmark


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_can_be_imported(name):
    assert load_benchmark(name).__doc__
