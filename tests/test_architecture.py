"""The arrows between the packages, and what none of them may do, read from the source files.

flows ──▶ stages ──▶ freescale
             └─────▶ storage
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "flows": {"stages", "storage", "freescale"},
    "stages": {"storage", "freescale"},
    "storage": set[str](),
    "freescale": set[str](),
}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
OWN_GENERATOR = {
    "bernoulli",
    "multinomial",
    "normal",
    "rand",
    "randint",
    "randn",
    "randperm",
}  # take generator=
DRAWS_IN_PLACE = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
GLOBAL_STATE = {
    "default_generator",
    "get_rng_state",
    "initial_seed",
    "manual_seed",
    "random",
    "seed",
    "set_rng_state",
}
NO_GENERATOR = {"rand_like", "randint_like", "randn_like"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def at(path: Path, node: ast.AST, what: str) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {what}"


def imported(tree: ast.AST, *, typing: bool = True) -> Iterator[tuple[str, ast.AST]]:
    """Dotted names of imported modules; without `typing`, those under `if TYPE_CHECKING` are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            yield from imported(ast.Module(node.orelse, []))
        else:
            yield from imported(node, typing=typing)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for such an expression, else an empty string."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def swapped_methods(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Assignments to `.forward`, `.__call__` and `.__class__`, also by `setattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            name: object = node.attr
        elif isinstance(node, ast.Call) and dotted(node.func) in {"setattr", "object.__setattr__"}:
            name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else None
        else:
            continue
        if name in {"forward", "__call__", "__class__"}:
            yield f"assigns .{name}", node


def global_draws(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Whatever reads or sets a generator that the program shares."""
    yield from ((f"imports {name}", node) for name, node in imported(tree) if name.split(".")[0] == "random")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = dotted(node).split(".")
            if parts[0] == "torch" and len(parts) > 1:
                banned = GLOBAL_STATE | NO_GENERATOR | {f"{name}_all" for name in GLOBAL_STATE}
                inner = parts[2:] if parts[1] in {"cuda", "mps", "xpu"} else parts[1:]
                if inner and inner[0] in banned:
                    yield f"uses {'.'.join(parts)}", node
            if parts[0] in {"np", "numpy"} and parts[1:2] == ["random"]:
                yield f"uses {'.'.join(parts)}", node
        if isinstance(node, ast.ImportFrom) and node.module in {"torch", "torch.random", "numpy.random"}:
            drawn = GLOBAL_STATE | NO_GENERATOR | OWN_GENERATOR
            yield from ((f"imports {a.name}", node) for a in node.names if a.name in drawn)
        if isinstance(node, ast.Call) and "generator" not in {keyword.arg for keyword in node.keywords}:
            called = dotted(node.func).split(".")
            if called[0] == "torch" and called[-1] in OWN_GENERATOR:
                yield f"calls {'.'.join(called)} without generator=", node
            if isinstance(node.func, ast.Attribute) and node.func.attr in DRAWS_IN_PLACE:
                yield f"calls {node.func.attr} without generator=", node


def loads_tensors_only(call: ast.Call) -> bool:
    """`torch.load(…, weights_only=True)`, in so many words."""
    return any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in call.keywords)


def pickled(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Doors for files that run code when they are read; `torch.load` of tensors alone runs none."""
    harmless = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and loads_tensors_only(node)}
    yield from ((f"imports {name}", node) for name, node in imported(tree) if name.split(".")[0] in PICKLES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in {
            "torch.load",
            "torch.save",
            "torch.serialization",
        } - ({"torch.load"} if id(node) in harmless else set()):
            yield f"uses {dotted(node)}", node
        if isinstance(node, ast.ImportFrom) and node.module in {"torch", "torch.serialization"}:
            yield from ((f"imports {a.name}", node) for a in node.names if a.name in {"load", "save"})
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield "sets allow_pickle", node


Rule = Callable[[ast.AST], Iterator[tuple[str, ast.AST]]]


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_says_what_it_is(package: str) -> None:
    assert ast.get_docstring(tree_of(ROOT / package / "__init__.py")), f"{package}/__init__.py has no docstring"


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_arrows(package: str) -> None:
    others = ALLOWED.keys() - ALLOWED[package] - {package} | {"benchmarks", "tests"}
    bad = [
        at(path, node, f"imports {name}")
        for path in sources(package)
        for name, node in imported(tree_of(path))
        if name.split(".")[0] in others
    ]
    assert not bad, "\n".join(bad)


def test_the_kernel_needs_torch_alone() -> None:
    """diffusers may be named for its types."""
    allowed = {"torch", "freescale", "", *sys.stdlib_module_names}
    bad = [
        at(path, node, f"imports {name}")
        for path in sources("freescale")
        for typing, extra in ((False, set[str]()), (True, {"diffusers"}))
        for name, node in imported(tree_of(path), typing=typing)
        if name.split(".")[0] not in allowed | extra
    ]
    assert not bad, "\n".join(bad)


LIBRARIES = ("stages/models/load.py", "stages/models/networks.py", "stages/models/videocrafter.py")


@pytest.mark.parametrize(
    ("module", "packages", "doors"),
    [
        ("prefect", ("freescale", "stages", "storage"), ()),
        ("prefect_dask", ("freescale", "stages", "storage"), ()),
        ("diffusers", tuple(ALLOWED), LIBRARIES),
        ("transformers", tuple(ALLOWED), (*LIBRARIES, "stages/models/clip_tokenizer/__init__.py")),
        ("storage", ("freescale", "stages"), ("stages/call.py", "stages/resume.py", "stages/runner.py")),
    ],
)
def test_only_the_doors_import(module: str, packages: tuple[str, ...], doors: tuple[str, ...]) -> None:
    bad = [
        at(path, node, f"imports {name}")
        for path in sources(*packages)
        if path.relative_to(ROOT).as_posix() not in doors
        for name, node in imported(tree_of(path), typing=module == "storage")
        if name.split(".")[0] == module
    ]
    assert not bad, "\n".join(bad)


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def in_circles(graph: Mapping[str, set[str]]) -> set[str]:
    """The modules that import themselves by way of others: those left when leaves are taken off, from both ends."""
    left = set(graph)
    while ends := {m for m in left if not graph[m] & left or not any(m in graph[other] for other in left)}:
        left -= ends
    return left


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for types count: whoever reads a module has to read those too. `__init__` files are lists of names."""
    paths = {module_of(path): path for path in sources(*ALLOWED) if path.name != "__init__.py"}
    graph = {module: set[str]() for module in paths}
    for module, path in paths.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[module] |= ({node.module} | names) & paths.keys() - {module}
    assert in_circles(graph) == set()
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


@pytest.mark.parametrize(("package", "most"), [("flows", 8), ("stages", 18)])
def test_the_top_of_a_package_is_short(package: str, most: int) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= most


def test_a_module_is_one_idea_and_a_function_fits_a_screen() -> None:
    """Lines of a module that hold something: 300 at the most. Lines of a function: 50."""
    bad = []
    for path in sources(*ALLOWED):
        text = path.read_text(encoding="utf-8")
        if (lines := sum(1 for line in text.splitlines() if line.strip())) > 300:
            bad.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, FUNCTIONS) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 50:
                bad.append(at(path, node, f"{node.name} has {lines} lines"))
    assert not bad, "\n".join(bad)


def test_public_names_say_what_they_are() -> None:
    """At least 98 of 100 public classes and functions have a docstring."""
    public = [
        (at(path, node, node.name), ast.get_docstring(node) is not None)
        for path in sources(*ALLOWED)
        for node in ast.walk(tree_of(path))
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")
    ]
    silent = [name for name, documented in public if not documented]
    assert len(silent) <= 0.02 * len(public), "\n".join(silent)


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    bad = [
        at(path, node, f"imports {name}")
        for path in sources("flows")
        if path.relative_to(ROOT).parts[1] != "cli"
        for name, node in imported(tree_of(path))
        if name.startswith("flows.cli")
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("rule", [swapped_methods, global_draws, pickled])
def test_no_package_does(rule: Rule) -> None:
    bad = [at(path, node, what) for path in sources(*ALLOWED) for what, node in rule(tree_of(path))]
    assert not bad, "\n".join(bad)


def test_pickles_of_tensors_are_read_through_one_door() -> None:
    found = [path for path in sources(*ALLOWED) if "torch.load" in {dotted(n) for n in ast.walk(tree_of(path))}]
    assert [path.name for path in found] == ["checkpoint_file.py"]


def test_no_file_is_named_for_nothing_or_for_something_else() -> None:
    python = [path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith((".", "build"))]
    assert [path for path in python if path.stem in {"utils", "util", "helpers", "misc"}] == []
    # A file-path entrypoint would put flows/ first on sys.path, and such a file would hide its namesake.
    hides = {*ALLOWED, *sys.stdlib_module_names} - {"__init__"}
    assert [path for path in (ROOT / "flows").glob("*.py") if path.stem in hides] == []
    # tests/storage/__init__.py would hide the package `storage`.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_deployments_name_modules_and_not_files() -> None:
    entrypoints = re.findall(r"entrypoint:\s*(\S+)", (ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    assert entrypoints
    assert [entry for entry in entrypoints if not re.fullmatch(r"flows(\.\w+)+", entry)] == []


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (swapped_methods, "block.forward = new"),
        (swapped_methods, "block.__class__ = New"),
        (swapped_methods, "setattr(block, 'forward', new)"),
        (global_draws, "import random"),
        (global_draws, "from random import shuffle"),
        (global_draws, "torch.manual_seed(0)"),
        (global_draws, "torch.cuda.manual_seed_all(0)"),
        (global_draws, "torch.randn(3)"),
        (global_draws, "torch.randn_like(x)"),
        (global_draws, "x.normal_()"),
        (global_draws, "from torch import randn"),
        (global_draws, "np.random.default_rng()"),
        (pickled, "import pickle"),
        (pickled, "torch.load(path)"),
        (pickled, "torch.load(path, weights_only=safe)"),
        (pickled, "load = torch.load"),
        (pickled, "from torch import load"),
        (pickled, "np.load(path, allow_pickle=True)"),
    ],
)
def test_a_rule_sees(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n def forward(self): return self.inner.forward(1)",
        "torch.randn(3, generator=g); g = torch.Generator().manual_seed(0); x.normal_(generator=g)",
        "torch.normal(0.0, 1.0, (2,), generator=g)",
        "torch.load(path, weights_only=True)",
        "from safetensors.torch import load_file; np.load(path, allow_pickle=False)",
    ],
)
def test_no_rule_minds(source: str) -> None:
    for rule in (swapped_methods, global_draws, pickled):
        assert list(rule(ast.parse(source))) == []


def test_types_may_be_named_without_an_import() -> None:
    tree = ast.parse("import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    from d.e import g")
    assert [name for name, _ in imported(tree)] == ["a", "b", "c", "d.e"]
    assert [name for name, _ in imported(tree, typing=False)] == ["a", "c", "d.e"]
