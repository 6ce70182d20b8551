"""The import of diffusers' UNets and VAE without what a trace never runs, for a process that does nothing but trace.

`import diffusers.models.unets.unet_2d_condition` loads every network that diffusers has, transformers, scipy and
torch's compiler. Here the packages that list networks are entered without their lists, and what a network on the meta
device never calls is a stand-in. An empty stand-in that is used after all raises: no trace comes out otherwise than by
the plain import, it only fails, and is then made there (`stages/planner/apart.py`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import operator
import sys
from enum import Enum
from functools import reduce
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNLISTED = ("diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets")
"""Packages whose own code imports every network of a kind; the one that is asked for is imported by its path."""

UNUSED = (
    "diffusers.hooks",
    "diffusers.image_processor",
    "diffusers.loaders",
    "diffusers.quantizers",
    "diffusers.utils.dynamic_modules_utils",
    "diffusers.utils.hub_utils",
    "diffusers.utils.loading_utils",
    "huggingface_hub.file_download",
    "huggingface_hub.hf_api",
    "requests",
    "sympy",
    "transformers",
)
"""Packages of which a network takes base classes and names alone."""


def _same(given: Any, *_: Any, **__: Any) -> Any:
    return given


def _nothing() -> None:
    pass


def _absent(_: Any) -> None:
    raise ValueError("no weights are offloaded")


def _equal(one: Any, other: Any) -> bool:
    """Compare sizes that are numbers."""
    return bool(one == other if isinstance(one, int) else tuple(one) == tuple(other))


def _all(*given: bool) -> bool:
    return reduce(operator.and_, given)


def _any(*given: bool) -> bool:
    return reduce(operator.or_, given)


PROVIDED: Mapping[str, Mapping[str, Any]] = {
    "diffusers.hooks.group_offloading": {  # asked of a network for its device, and when it moves
        "_get_group_onload_device": _absent,
        "_is_group_offload_enabled": lambda _: False,
    },
    "diffusers.quantizers.quantization_config": {  # that a network is compared with which moves to a device
        "QuantizationMethod": Enum("QuantizationMethod", "BITS_AND_BYTES GGUF MODELOPT QUANTO TORCHAO"),
    },
    "torch._dynamo": {  # what they say to a compiler, which is not there, and whether it is
        **dict.fromkeys(("allow_in_graph", "disable"), _same),
        "is_compiling": lambda: False,
    },
    "torch.fx.experimental.symbolic_shapes": {  # of sizes that are numbers; its own import brings sympy
        **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true", "guarding_hint_or_throw"), _same),
        "statically_known_true": _same,
        "has_guarding_hint": lambda _: True,
        "is_nested_int": lambda _: False,
        "sym_and": _all,
        "sym_eq": _equal,
        "sym_or": _any,
    },
    "transformers.utils.logging": {"disable_progress_bar": _nothing, "set_verbosity_error": _nothing},
}
"""What is used: functions do here what they do of plain numbers outside of a compiler."""


class _StandIn(ModuleType):
    """A module, or a name in one, that is empty: a class to inherit from, or what raises if it is called."""

    def __getattr__(self, name: str) -> Any:
        """Return a name of the module; kept."""
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{self.__name__}.{name}"
        made: Any = importlib.import_module(path) if path in PROVIDED else _StandIn(path)
        setattr(self, name, made := type(name, (), {}) if name[0].isupper() else made)
        return made

    def __call__(self, *_: Any, **__: Any) -> None:
        """Raise what torch's operators do not take for an operand that they do not know, as they do a TypeError."""
        raise RuntimeError(f"{self.__name__} is not imported for a trace")


class _Finder:
    """Finds stand-ins, and packages without their own code."""

    def find_spec(self, name: str, path: Sequence[str] | None, _: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a module that is not imported as it is."""
        if name in UNLISTED:
            real = PathFinder.find_spec(name, path)
            spec = ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
            spec.submodule_search_locations = None if real is None else real.submodule_search_locations
            return spec
        if any(name == each or name.startswith(f"{each}.") for each in (*UNUSED, *PROVIDED)):
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return a stand-in, or leave an ordinary module to the machinery."""
        return None if spec.name in UNLISTED else _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module."""
        vars(module).update(PROVIDED.get(module.__name__, {}))


def import_lightly() -> None:
    """Import from now on in this process as a trace needs it; for good."""
    importlib.metadata.packages_distributions = dict  # diffusers reads the metadata of all that is installed
    sys.meta_path.insert(0, _Finder())
