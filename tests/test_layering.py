"""Import rules, and which modules may use what: read from the code itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "obuild"

#: A room imports only from those before it; every module may import the files beside the rooms.
ROOMS = ("host", "spec", "guests", "plan", "store", "remotes", "executors", "bases", "exports", "builder", "cli")


def name_of(path: Path) -> str:
    """Return the module's name: guests.linux for `obuild/guests/linux.py`, guests for its `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(module: str) -> int:
    """Return the position of a module's room; the shared files come before the first room."""
    room = module.split(".")[0]
    return ROOMS.index(room) if room in ROOMS else -1


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}

#: The command line.
CONSOLE = {
    "cli.main",
    "cli.console",
    "cli.options",
    "cli.described",
    *(module for module in MODULES if module.startswith("cli.commands.")),
}


@cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def imports(module: str) -> Iterator[str]:
    """Return every module that is imported anywhere in this one, inside functions and for types, too."""
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
    """Return the modules of obuild that this one imports."""
    names = {name.removeprefix("obuild.") for name in imports(module) if name.split(".")[0] == "obuild"}
    return {"__init__" if name == "obuild" else name for name in names}


def where(found: Callable[[ast.AST], bool]) -> set[str]:
    """Return the modules that contain such a node."""
    return {module for module in MODULES if any(found(node) for node in nodes(module))}


#: The front door and the first step: they import rooms, and no room imports them.
DOORS = {"__init__", "__main__"}


@pytest.mark.parametrize("module", sorted(set(MODULES) - DOORS))
def test_a_room_imports_only_from_rooms_before_it(module: str) -> None:
    assert {other for other in own(module) if room_of(other) > room_of(module) or other in DOORS} == set()


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_a_room_has_no_import_cycle(room: str) -> None:
    inside = {module: own(module) - {module} for module in MODULES if module.split(".")[0] == room or not room}
    while free := {module for module, others in inside.items() if not others & inside.keys()}:
        for module in free:
            del inside[module]
    assert inside == {}


@pytest.mark.parametrize("family", ["guests", "bases", "exports.packages"])
def test_only_the_table_of_a_family_imports_its_members(family: str) -> None:
    tables = {
        "guests": {"freebsd", "linux", "openbsd", "windows"},
        "exports.packages": {"apk", "dpkg", "pacman", "rpm"},
        "bases": {"cloud", "installer", "scratch.image", "windows"},
    }
    members = {f"{family}.{member}" for member in tables[family]}
    assert members <= set(MODULES)
    # Native steps are those of Linux alone.
    linux = {module for module in MODULES if family == "guests" and module.startswith("executors.native.")}
    assert {module for module in MODULES if own(module) & members} <= {f"{family}.all", *members, *linux}


def test_only_the_table_of_executors_imports_one() -> None:
    """The exceptions make login keys, which are OpenSSH's, or make base images by booting a guest."""
    others = {module for module in MODULES if not module.startswith("executors.qemu.")}
    knowing = {module for module in others if any(name.startswith("executors.qemu.") for name in own(module))}
    assert knowing == {
        *(
            "executors.all",
            "bases.catalog",
            "bases.cloud",
            "bases.inputs",
            "bases.installation",
            "bases.installer",
            "bases.own_keys",
            "bases.media",
            "bases.unattended",
            "bases.windows",
        )
    }


#: A thread enters another namespace, and one reads what a container prints while another writes to it.
NATIVE = {"executors.native.namespace", "executors.native.line"}


#: What knows Dask, whose servers are coroutines.
DASK = {"builder.farm.link", "builder.farm.server", "builder.farm.service"}

#: The terminal is drawn on, and quiet steps are noticed, while a build works.
DRAWING = {"cli.live.drawer", "cli.live.view", "cli.plain"}


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("sexpdata", {"spec.sexp"}),
        ("paramiko", {"executors.qemu.ssh"}),
        ("scp", {"executors.qemu.ssh"}),
        ("sqlite_utils", {"store.index"}),
        ("sqlite3", {"store.index", "exports.packages.rpm"}),
        ("typer", CONSOLE),
        ("gc", {"__main__"}),  # what a program does to its own memory is no business of a library
        ("fcntl", {"host.locks", "executors.native.requirements"}),
        (
            "threading",
            {
                *("builder.scheduler", "builder.listener", "builder.sharing", "remotes.slices", *NATIVE),
                *("builder.farm.client", "builder.farm.link", "builder.farm.service"),
                *DRAWING,
            },
        ),
        ("multiprocessing", set()),
        (
            "concurrent",
            {
                *("builder.scheduler", "builder.sharing"),
                *("host.parallel", "builder.farm.link", "builder.farm.service"),
            },
        ),
        ("asyncio", DASK),
        ("distributed", DASK | {"builder.farm.task", "builder.farm.dask_settings"}),
        ("nacl", {"builder.farm.client", "builder.farm.service", "exports.signing"}),
        ("pycdlib", {"bases.seed"}),
        ("rich", {"cli.live.paint"}),
        ("yaml", {"bases.cloud_config"}),
        ("boto3", {"remotes.aws"}),
        ("azure", {"exports.targets.page_blob"}),
        ("obstore", {"exports.targets.buckets", "exports.targets.page_blob"}),
        ("zstandard", {"host.zstd"}),
        ("httpx", {"remotes.blobs", "remotes.registry", "remotes.registry_auth", "remotes.registry_http"}),
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

    face = {"cli.text", "cli.reference", "cli.progress", "cli.live.drawer"}
    assert where(prints) <= {"__main__", "host.streams"} | face | CONSOLE


def test_only_the_command_line_exits() -> None:
    def exits(node: ast.AST) -> bool:
        named = isinstance(node, ast.Name) and node.id in ("SystemExit", "exit", "quit")
        return named or is_attribute(node, "sys", "exit") or is_attribute(node, "os", "_exit", "abort")

    assert where(exits) <= {"__main__"} | CONSOLE


def test_only_the_command_line_reads_the_environment() -> None:
    """Except `process`, which needs PATH and passes the rest on."""

    def reads(node: ast.AST) -> bool:
        return is_attribute(node, "os", "environ", "environb", "getenv", "putenv")

    assert where(reads) == {"cli.main", "cli.console", "host.process"}


def test_only_one_module_starts_programs() -> None:
    def starts(node: ast.AST) -> bool:
        shell = is_attribute(node, "os", "system", "popen", "fork", "execv", "execvp", "posix_spawn")
        return shell or (
            isinstance(node, ast.Call)
            and is_attribute(node.func, "subprocess", "run", "Popen", "call", "check_call", "check_output")
        )

    assert where(starts) == {"host.process"}


def test_only_one_module_calls_qemu_img() -> None:
    def calls(node: ast.AST) -> bool:
        argv = node.elts if isinstance(node, ast.List | ast.Tuple) else []
        return bool(argv) and isinstance(argv[0], ast.Constant) and argv[0].value == "qemu-img"

    assert where(calls) == {"host.qemu_img"}


#: The modules that read the files of copies.
READERS = {"plan.tree", "plan.archive"}


def test_planning_only_reads_the_files_of_copies() -> None:
    """So a plan depends only on its arguments, and planning changes nothing."""
    plans = {module for module in MODULES if module.startswith("plan.")}
    assert plans > READERS
    outside = {"io", "os", "shutil", "socket", "subprocess", "tempfile", "threading", "time", "urllib"}
    inside = {"host", "store", "bases", "executors"}
    for module in plans - READERS:
        assert not {name.split(".")[0] for name in imports(module)} & outside, module
        assert not {name.split(".")[0] for name in own(module)} & inside, module

    def opens(node: ast.AST) -> bool:
        path = {"open", "read_text", "read_bytes", "stat", "lstat", "exists", "is_file", "is_dir", "iterdir"}
        return (isinstance(node, ast.Name) and node.id == "open") or (
            isinstance(node, ast.Attribute) and node.attr in path
        )

    assert where(opens) & plans <= READERS


def test_no_table_is_keyed_by_id() -> None:
    """With a table by id(), it would depend on the garbage collector which of two equal stages is found."""

    def takes_id(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "id"

    assert where(takes_id) == set()


def test_no_test_imports_another() -> None:
    """What tests share is in tests/support."""
    tests = Path(__file__).parent
    importing = re.compile(r"^\s*(?:from|import) tests\.[\w.]*\b(?:test_\w+|conftest)\b", re.MULTILINE)
    assert [str(path) for path in tests.rglob("*.py") if importing.search(path.read_text())] == []
