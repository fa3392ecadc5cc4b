"""Every method of docs/methods.md, run as it stands there: mAP on scanned digits.

python benchmarks/methods.py [--methods hybridhash csq] [--epochs 14]
"""

import argparse
import re
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, table

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"


def blocks() -> tuple[str, dict[str, str]]:
    """The code that all share, and that of each method, by its anchor."""
    setup, *sections = re.split(r"^## .*\{: #(\w+) \}$", PAGE.read_text(), flags=re.MULTILINE)

    def code(text: str) -> str:
        return "".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))

    methods = dict(zip(sections[::2], map(code, sections[1::2]), strict=True))
    return code(setup), methods


def main() -> None:
    setup, methods = blocks()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=list(methods), choices=methods)
    parser.add_argument("--epochs", type=int, help="instead of the page's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    namespace: dict[str, Any] = {}
    exec(setup, namespace)
    namespace["EPOCHS"] = arguments.epochs or namespace["EPOCHS"]
    print(f"{namespace['EPOCHS']} epochs\n{machine()}\n")
    rows = []
    for name in arguments.methods:
        namespace["results"].clear()
        start = time.perf_counter()
        exec(methods[name], namespace)
        seconds = f"{time.perf_counter() - start:.0f}"
        rows += [[name, title, f"{value:.3f}", seconds] for title, value in namespace["results"].items()]
        print(rows[-1], flush=True)
    print(table(["anchor", "method", "mAP", "s"], rows))


if __name__ == "__main__":
    main()
