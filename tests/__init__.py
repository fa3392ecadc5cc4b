"""The tests mirror the package; modules that start with an underscore help them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
