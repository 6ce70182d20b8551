"""torch, imported when something of it is first used: its import takes longer than all that a second `plan` does.

`import torch` then binds a stand-in, and so does `import torch.nn.functional as F`. The first use of an attribute
imports torch and puts it in place of the stand-ins, in every module that has one. A module that uses torch while it is
imported, as a base class for example, imports it at once. (`lazy import` of Python 3.15 is this.)
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

NAMES = ("torch", "torch.nn", "torch.nn.functional")
_LOCK = threading.RLock()
_stand_ins: dict[str, ModuleType] = {}


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(_load(self.__name__), name)


def postpone() -> None:
    """Put the stand-ins in place of torch, unless it is imported or is not there."""
    if "torch" in sys.modules or (spec := PathFinder.find_spec("torch")) is None:
        return
    for name in NAMES:
        _stand_ins[name] = sys.modules[name] = _StandIn(name)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(_stand_ins[parent], own, _stand_ins[name])
    _stand_ins["torch"].__spec__ = spec  # other libraries look whether torch is there


def _load(name: str) -> ModuleType:
    """Return the module of this name, after putting torch in place of every stand-in."""
    with _LOCK:
        if sys.modules.get("torch") is _stand_ins["torch"]:
            for each in NAMES:
                del sys.modules[each]
            real = {id(_stand_ins[each]): importlib.import_module(each) for each in NAMES}
            for module in list(sys.modules.values()):
                for own, value in list(vars(module).items()) if isinstance(module, ModuleType) else ():
                    if id(value) in real and not isinstance(module, _StandIn):
                        setattr(module, own, real[id(value)])
    return importlib.import_module(name)
