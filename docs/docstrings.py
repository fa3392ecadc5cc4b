"""Griffe extension: shows the package's docstrings, which are also read by Sphinx's tools, as Markdown."""

import re
import textwrap

import griffe

ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?([^`]+)`")
MATH = re.compile(r"^( *)\.\. math::\n((?:\1 +\S.*\n?)+)", flags=re.MULTILINE)
EXAMPLE = re.compile(r"^( *)Example:$", flags=re.MULTILINE)


def fenced(match: re.Match[str]) -> str:
    """A formula as a fenced block of LaTeX, so that the page needs no script."""
    formula = textwrap.dedent(match[2]).rstrip()
    return textwrap.indent(f"```latex\n{formula}\n```\n", match[1])


class Docstrings(griffe.Extension):
    """Roles become code, formulas become blocks, and an example is read as a doctest."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            text = MATH.sub(fenced, text)
            obj.docstring.value = EXAMPLE.sub(r"\1Examples:", text)
