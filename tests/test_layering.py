"""Who may import whom, and who alone may touch what: read from the code itself."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "obuild"

#: Lowest first. A module imports only from lines above its own.
RANKS = (
    "errors events mask quoting regular spec_ops tarball trace units version",
    "locks",
    "card files parts posix process qmp sexp streams tree usage",
    "disk explain marks mtree packing recipe shape spec_fields spec_show",
    "accel machine ram spec_read terminal unpack",
    "spec ssh",
    "systems targets",
    "dockerfile fmt guests.freebsd guests.linux guests.linux_resident guests.openbsd guests.windows",
    "guests plan resident",
    "flat placing states volumes",
    "store",
    "bases.debian caches index inside transfer warm",
    "bases describe gc lasting",
    "base executors.qemu follow",
    "executors",
    "build machines parallel room upkeep",
    "debug extract failing forecast fsck",
    "engine",
    "ui",
    "console",
    "commands.base commands.build commands.cache commands.check commands.debug commands.language commands.look "
    "commands.upkeep",
    "cli commands",
    "__init__ __main__",
)
#: The command line.
CONSOLE = {"cli", "console", *(name for rank in RANKS for name in rank.split() if name.startswith("commands."))}

RANK = {name: rank for rank, names in enumerate(RANKS) for name in names.split()}


def name_of(path: Path) -> str:
    """`obuild/guests/linux.py` is guests.linux, `obuild/guests/__init__.py` guests."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def imports(module: str) -> Iterator[str]:
    """Every module that is imported anywhere in this one, inside functions and for types too."""
    for node in nodes(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            source = node.module or ""
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix("obuild.")
                yield f"obuild.{inner}" if source.split(".")[0] == "obuild" and inner in MODULES else source


def own(module: str) -> set[str]:
    """The modules of obuild that this one imports."""
    names = {name.removeprefix("obuild.") for name in imports(module) if name.split(".")[0] == "obuild"}
    return {"__init__" if name == "obuild" else name for name in names}


def where(found: Callable[[ast.AST], bool]) -> set[str]:
    """The modules in which such a node stands."""
    return {module for module in MODULES if any(found(node) for node in nodes(module))}


def test_every_module_has_a_rank_and_every_rank_is_a_module() -> None:
    assert set(RANK) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_ranks(module: str) -> None:
    assert {other for other in own(module) if RANK[other] >= RANK[module]} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if "." in module])
def test_a_member_of_a_family_does_not_know_its_family(module: str) -> None:
    family = module.rpartition(".")[0]
    assert {other for other in own(module) if other == family or other.startswith(f"{family}.")} == set()


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("sexpdata", {"sexp"}),
        ("paramiko", {"ssh"}),
        ("scp", {"ssh"}),
        ("sqlite_utils", {"index"}),
        ("sqlite3", {"index"}),
        ("typer", CONSOLE),
        ("fcntl", {"locks"}),
        ("threading", {"parallel"}),
        ("multiprocessing", set()),
        ("concurrent", {"parallel"}),
        ("asyncio", set()),
    ],
)
def test_a_library_has_one_importer(library: str, modules: set[str]) -> None:
    importers = {module for module in MODULES if library in {name.split(".")[0] for name in imports(module)}}
    assert importers == modules


def is_attribute(node: ast.AST, of: str, *names: str) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == of
        and node.attr in names
    )


def test_only_the_user_interface_prints() -> None:
    def prints(node: ast.AST) -> bool:
        call = (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input")
        )
        return call or is_attribute(node, "sys", "stdout", "stderr", "stdin")

    assert where(prints) <= {"__main__", "streams", "ui"} | CONSOLE


def test_only_the_command_line_exits() -> None:
    def exits(node: ast.AST) -> bool:
        named = isinstance(node, ast.Name) and node.id in ("SystemExit", "exit", "quit")
        return named or is_attribute(node, "sys", "exit") or is_attribute(node, "os", "_exit", "abort")

    assert where(exits) <= {"__main__"} | CONSOLE


def test_only_the_command_line_reads_the_environment() -> None:
    """And `process`, which needs PATH and hands the rest on."""

    def reads(node: ast.AST) -> bool:
        return is_attribute(node, "os", "environ", "environb", "getenv", "putenv")

    assert where(reads) == {"cli", "console", "process"}


def test_only_one_module_starts_programs() -> None:
    def starts(node: ast.AST) -> bool:
        shell = is_attribute(node, "os", "system", "popen", "fork", "execv", "execvp", "posix_spawn")
        return shell or (
            isinstance(node, ast.Call)
            and is_attribute(node.func, "subprocess", "run", "Popen", "call", "check_call", "check_output")
        )

    assert where(starts) == {"process"}


def test_only_one_module_calls_qemu_img() -> None:
    def calls(node: ast.AST) -> bool:
        argv = node.elts if isinstance(node, ast.List | ast.Tuple) else []
        return bool(argv) and isinstance(argv[0], ast.Constant) and argv[0].value == "qemu-img"

    assert where(calls) == {"disk"}
