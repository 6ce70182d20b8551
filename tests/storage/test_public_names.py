"""The public names of the package are what they say, whichever of its modules was imported first."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def ours() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "storage"]


@pytest.fixture
def _not_imported() -> Iterator[None]:
    """The package as if nobody had imported it; afterwards all is as before."""
    before = {name: sys.modules.pop(name) for name in ours()}
    yield
    for name in ours():
        del sys.modules[name]
    sys.modules |= before


@pytest.mark.usefixtures("_not_imported")
def test_no_module_takes_the_name_of_a_function() -> None:
    package = importlib.import_module("storage")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"storage.{module.name}")
    assert [name for name in package.__all__ if isinstance(getattr(package, name), ModuleType)] == []
