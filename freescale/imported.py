"""Tables whose values are imported when they are first asked for: of many families a render needs one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

Value = TypeVar("Value")


class Imported(Mapping[str, Value]):
    """Values by key, each where it stands in a package: `module.NAME`."""

    def __init__(self, package: str, places: Mapping[str, str]) -> None:
        self.package, self.places = package, places

    def __getitem__(self, key: str) -> Value:
        """Return the value of a key."""
        module, _, name = self.places[key].rpartition(".")
        value: Value = getattr(import_module(f"{self.package}.{module}"), name)
        return value

    def __contains__(self, key: object) -> bool:
        """Return whether there is such a key, without importing its value."""
        return key in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
