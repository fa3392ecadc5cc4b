"""pytest plugin that points timm's own ``tests/test_models.py`` at this package's models only.

It must be loaded with ``-p``: timm's tests choose their models when they are imported. They select some tests
by the name of timm's module, so that filter is ignored here. The glob is in ``HYBRIDHASH_TIMM_MODELS``.
"""

import fnmatch
import os

import timm

import hybridhash  # noqa: F401

GLOB = os.environ["HYBRIDHASH_TIMM_MODELS"]
all_models = timm.list_models


def list_models(filter="", module="", **kwargs):
    return [name for name in all_models(filter, **kwargs) if fnmatch.fnmatch(name.split(".")[0], GLOB)]


timm.list_models = list_models


def pytest_collection_modifyitems(config, items):
    """Deselect what is not about one of these models: tests of timm's utilities and of its own weights."""
    ours = [item for item in items if is_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours


def is_ours(item):
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("model_name") if callspec else None
    return isinstance(name, str) and fnmatch.fnmatch(name.split(".")[0], GLOB)
