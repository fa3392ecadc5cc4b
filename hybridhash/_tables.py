"""Tables as plain text."""

from __future__ import annotations

__all__ = ["aligned"]


def aligned(rows: list[list[str]]) -> str:
    """Align cells in columns: the first column and words to the left, numbers to the right.

    Args:
        rows: Cells of each row. All rows have the same number of cells.

    Example:
        >>> print(aligned([["name", "images"], ["query", "1,000"], ["train", "50"]]))
        name   images
        query   1,000
        train      50
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 or " " in cell else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
