"""The house rules that no linter has: STYLE section 2, and what else is said of files."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ringhaul

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "ringhaul"

LAYERS = {
    "errors": 0, "ids": 0, "limits": 0, "texts": 0,
    "wire": 1, "ring": 1, "quant": 1, "state": 1, "arrays": 1,
    "core": 2,
    "compiled": 3, "io": 3,
    "arguments": 4, "results": 4, "reduction": 4, "collectives": 4, "memory": 4, "progress": 4,
    "many": 4, "work": 4, "joining": 4, "member": 4, "blocking": 4, "communicator": 4, "aio": 4,
    "diloco": 5, "torch": 5,
    "cli": 6, "__main__": 6,
}  # fmt: skip
#: `import ringhaul` itself: the names that users call.
PUBLIC_LAYER = 4
TESTING_LAYER = 3
#: Programs of their own, which are started as processes, or run the whole stack: they call what
#: users call.
PEER_PROGRAMS = ("ringhaul.testing.peer", "ringhaul.testing.victim", "ringhaul.testing.stack")
#: What makes a run differ from the next, or waits.
IMPURE = {
    "time", "datetime", "random", "secrets", "threading", "_thread", "multiprocessing",
    "concurrent", "subprocess", "signal", "socket", "select", "selectors", "ssl", "trio",
    "asyncio", "logging",
}  # fmt: skip
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
UNFINISHED = re.compile(r"\b(FIX" + r"ME|TO" + r"DO|XX" + r"X)\b")


def sources() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def everything() -> list[Path]:
    folders = ("src", "tests", "bench", "examples")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in sources()}


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every module that is imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = len(parents) - node.level + is_package
                base = ".".join([*parents[:kept], *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return list(imports_of(tree, module_of(path), path.name == "__init__.py"))


def room_of(module: str) -> str | None:
    """`core` for `ringhaul.core.peer`; None for `ringhaul` itself."""
    return module.split(".")[1] if "." in module else None


def layer_of(module: str) -> int:
    room = room_of(module)
    if room is None:
        return PUBLIC_LAYER
    if module.startswith(PEER_PROGRAMS):
        return LAYERS["cli"]
    return TESTING_LAYER if room == "testing" else LAYERS[room]


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "ringhaul"


def core_half(module: str) -> str | None:
    """`coordinator` or `peer`, for what is inside one of the two machines."""
    parts = module.split(".")
    return (
        parts[2] if parts[1:2] == ["core"] and parts[2:3] in (["coordinator"], ["peer"]) else None
    )


def is_allowed(module: str, imported: str) -> bool:
    """May `module` import `imported`, both ours?"""
    if room_of(imported) == "testing":
        return room_of(module) == "testing"
    halves = {core_half(module), core_half(imported)}
    return layer_of(imported) <= layer_of(module) and halves != {"coordinator", "peer"}


@pytest.mark.parametrize("path", sources(), ids=named)
def test_every_room_has_a_layer(path: Path) -> None:
    room = room_of(module_of(path))

    assert room in {*LAYERS, "testing", None}


@pytest.mark.parametrize("path", sources(), ids=named)
def test_imports_point_down_the_layers(path: Path) -> None:
    module = module_of(path)
    ours = [name for name in imports(path) if is_ours(name)]

    assert [name for name in ours if not is_allowed(module, name)] == []


@pytest.mark.parametrize("path", sources(), ids=named)
def test_the_pure_layers_import_no_clock_dice_threads_sockets_or_log(path: Path) -> None:
    if layer_of(module_of(path)) > 2:
        return
    text = path.read_text(encoding="utf-8")

    assert [name for name in imports(path) if name.split(".")[0] in IMPURE] == []
    assert "np.random" not in text
    assert "os.urandom" not in text


@pytest.mark.parametrize("path", sources(), ids=named)
def test_only_the_codec_imports_msgpack(path: Path) -> None:
    uses = any(name.split(".")[0] == "msgpack" for name in imports(path))

    # mutants are what the codec does not make
    assert uses == (module_of(path) in ("ringhaul.wire.codec", "ringhaul.testing.fuzz.mutants"))


@pytest.mark.parametrize("path", sources(), ids=named)
def test_nothing_unpickles(path: Path) -> None:
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}

    assert not banned & {name.split(".")[0] for name in imports(path)}
    assert "allow_pickle" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", everything(), ids=named)
def test_a_file_is_short(path: Path) -> None:
    line_count = len(path.read_text(encoding="utf-8").splitlines())

    assert line_count <= FILE_LINES_MAX


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, its docstring not counted."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        first = function.body[0]
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", everything(), ids=named)
def test_a_function_is_short(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert [f.name for f in functions if code_lines(f) > FUNCTION_LINES_MAX] == []


@pytest.mark.parametrize("path", everything(), ids=named)
def test_nothing_is_left_unfinished(path: Path) -> None:
    assert UNFINISHED.findall(path.read_text(encoding="utf-8")) == []


def is_documented(name: str) -> bool:
    """Has a docstring of its own; a plain value has a `#:` comment above it instead."""
    value = getattr(ringhaul, name)
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        source = (SOURCE / "__init__.py").read_text(encoding="utf-8")
        return re.search(rf"^#: .+\n{re.escape(name)}\b", source, re.MULTILINE) is not None
    written = (value.__doc__ or "").strip()
    made_by_dataclass = inspect.isclass(value) and written.startswith(f"{value.__name__}(")
    return bool(written) and not made_by_dataclass


def test_every_public_name_exists_and_has_a_docstring() -> None:
    names = getattr(ringhaul, "__all__", [])

    assert [name for name in names if not hasattr(ringhaul, name)] == []
    assert [name for name in names if not is_documented(name)] == []


def test_every_module_begins_with_what_it_decides() -> None:
    written = [path for path in sources() if path.read_text(encoding="utf-8").strip()]

    assert [
        named(path)
        for path in written
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ] == []


# -- The rules themselves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("ringhaul.core.peer.machine", "ringhaul.wire.codec", True),
        ("ringhaul.wire.codec", "ringhaul.core.steps", False),
        ("ringhaul.core.peer.machine", "ringhaul.core.coordinator.members", False),
        ("ringhaul.core.coordinator.members", "ringhaul.core.peer", False),
        ("ringhaul.core.coordinator.members", "ringhaul.core.steps", True),
        ("ringhaul.diloco.sync", "ringhaul", True),
        ("ringhaul.io.link", "ringhaul", False),
        ("ringhaul.testing.world", "ringhaul.io.link", True),
        ("ringhaul.testing.world", "ringhaul.communicator", False),
        ("ringhaul.cli.main", "ringhaul.testing.world", False),
        ("ringhaul.errors", "ringhaul.wire", False),
    ],
)
def test_the_arrows_are_those_of_the_style(module: str, imported: str, allowed: bool) -> None:
    assert is_allowed(module, imported) == allowed


def test_imports_are_found_wherever_they_stand() -> None:
    text = """
import os.path
from ringhaul import errors, nothing
from . import codec
from ..ids import PeerId
def late():
    import trio
"""
    found = set(imports_of(ast.parse(text), "ringhaul.wire.framing", False))

    assert found == {
        "os.path", "ringhaul.errors", "ringhaul", "ringhaul.wire.codec", "ringhaul.ids", "trio",
    }  # fmt: skip


def test_every_module_of_the_pure_layers_can_be_imported() -> None:
    for module in sorted(name for name in MODULES if layer_of(name) <= 2):
        importlib.import_module(module)


def test_nothing_is_raised_in_an_except_of_groups() -> None:
    """Python 3.11.0 to 3.11.3 wraps it in another group, which nobody expects."""
    found = [
        f"{path.name}:{inner.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
        for inner in ast.walk(handler)
        if isinstance(inner, ast.Raise) and inner.exc is not None
    ]

    assert found == []
