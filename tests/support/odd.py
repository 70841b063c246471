"""A store with one thing damaged, and all commands on it: shared by tests and a long sweep.

`python -m tests.support.odd` tries every file and folder of a store with every kind of damage and every command,
and says how many that were; tests/store/test_strangers.py tries a part of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from obuild.executors.qemu.ssh import make_key
from obuild.host import stamp
from obuild.host.fs import discard, in_memory
from obuild.plan.keys import LayerId
from obuild.store import flatten
from obuild.store.layers import Store
from tests.support import fake_obuild, forked
from tests.support.fakes import POWER_OFF, boot_disk

#: How long a command may take before it counts as hanging, in seconds.
LIMIT = 20

SPEC = """
((build dev ((from tiny) (run (shell "make"))))
 (from tiny)
 (run (cache (c (target /c))) (shell "with a cache"))
 (copy (from (build dev)) (src /out) (dst /got))
 (run (shell "deep"))
 (run (shell "deeper"))
 (run (shell "last")))
"""

BUILD = ("build", "--qemu-accel=tcg", "-f", "SPEC", "SOURCE")

#: Read-only commands, and those that change the store. ID is a layer in the middle of a chain.
LOOKS = (
    ("ls",),
    ("logs", "ID"),
    ("inspect", "ID"),
    ("plan", "-f", "SPEC", "SOURCE"),
    ("df",),
    ("prune", "--dry-run", "--keep-bytes=0"),
    ("base", "ls"),
    ("cache", "ls"),
    ("tag", "ls"),
    ("history",),
    ("watch",),
    ("report", "-o", "OUT"),
    ("fsck", "--read-data"),
)
CHANGES = (
    BUILD,
    ("build", "--qemu-accel=tcg", "-f", "LONGER", "SOURCE"),
    ("run", "ID", "--", "true"),
    ("cache", "export", "c", "OUT", "--force"),
    ("cache", "import", "c", "TAR"),
    ("cache", "rm", "c"),
    ("base", "add", "DISK", "--name=tiny", "--force"),
    ("base", "rm", "tiny"),
    ("prune", "--before=0s", "--limit=1"),
    ("prune", "--keep-bytes=100K"),
    ("rm", "ID"),
    ("tag", "ID", "web"),
    ("tag", "rm", "web"),
    ("clean",),
    ("fsck", "--repair"),
)


def run(argv: Iterable[str], *, before: Callable[[], object] = lambda: None) -> tuple[int, str, str]:
    """Run the program in a forked process: exit code (negative: a signal), stdout and stderr.

    Guests are scripted, chains are flattened early. `before` is called in that process.
    """
    with in_memory("stdout") as out, in_memory("stderr") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            os._exit(_child([*argv], out.fileno(), err.fileno(), before))
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), _said(out), _said(err)


def _said(file: BinaryIO) -> str:
    return os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")


def _child(argv: list[str], out: int, err: int, before: Callable[[], object]) -> int:

    from obuild.cli.main import run as program
    from obuild.executors.all import EXECUTORS

    code = 70
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin, sys.stdout, sys.stderr = (open(fd, mode, closefd=False) for fd, mode in enumerate("rww"))  # noqa: SIM115
        sys.argv = ["obuild", *argv]
        flatten.LONGEST = 3
        EXECUTORS["qemu"] = fake_obuild.guests()
        before()
        program()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


@dataclass(frozen=True)
class Yard:
    """A folder with a store that has one of everything, to be copied, and the arguments of commands."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def victim(self) -> Path:
        """A folder that symlinks lead to: nothing in it may ever change. Never use a real folder here."""
        return self.folder / "victim"

    def words(self) -> dict[str, str]:
        names = {"SPEC": "test.spec", "LONGER": "longer.spec", "SOURCE": "source", "DISK": "disk.img"}
        found = {
            word: str(self.folder / name) for word, name in (names | {"OUT": "out.tar", "TAR": "a.tar"}).items()
        }
        return found | {"ID": (self.folder / "id").read_text()}

    def command(self, store: Path, command: tuple[str, ...]) -> tuple[int, str, str]:
        words = self.words()
        count = 2 if command[0] in ("base", "cache") else 1
        args = [words.get(word, word) for word in command]
        argv = [*args[:count], f"--store=qemu:{store}", *args[count:]]
        done = forked.run(argv, module="tests.support.fake_obuild", limit=LIMIT)
        return done.returncode, done.stdout, done.stderr

    def copy(self, name: str = "copy") -> Path:
        """A fresh copy of the store, in place of the last one."""
        copy = self.folder / name
        discard(copy)
        subprocess.run(["cp", "-a", self.store, copy], check=True)
        return copy

    def places(self) -> list[str]:
        """Each file and folder of the store; of similar ones only some."""
        found: dict[str, str] = {}
        for path in sorted(self.store.rglob("*")):
            name = str(path.relative_to(self.store))
            alike = "/".join("ID" if len(part) >= 64 else part for part in name.split("/"))
            found.setdefault(alike, name)
        middle = self.words()["ID"]
        own = [f"result/{middle}", *(f"result/{middle}/{name}" for name in ("key", "log", "mtree", "rootfs"))]
        return list(dict.fromkeys([*found.values(), *own, f"result/{middle}/rootfs/image.qcow2"]))

    def victims(self) -> dict[str, tuple[int, int, str]]:
        """The current state of the folder that must not change."""
        found = {}
        for path in [self.victim, *sorted(self.victim.rglob("*"))]:
            status = path.lstat()
            content = path.read_text() if stat.S_ISREG(status.st_mode) else ""
            found[str(path)] = status.st_mode, status.st_mtime_ns, content
        return found


def make_yard(folder: Path) -> Yard:
    """The store gets a base, layers, flattened ones, a cache, memos, a login key, and an index."""
    yard = Yard(folder)
    for name in ("source", "victim/inside", "victim/rootfs"):
        (folder / name).mkdir(parents=True)
    for name in ("precious", "inside/precious", "cache.tar", "key", "log", "mtree", "rootfs/image.qcow2"):
        (yard.victim / name).write_text("precious")
    (folder / "id").write_text("")
    (folder / "test.spec").write_text(SPEC)
    (folder / "longer.spec").write_text(SPEC.rstrip()[:-1] + '(run (cache (c (target /c))) (shell "longer")))')
    (folder / "disk.img").write_bytes(boot_disk("", POWER_OFF))
    (folder / "source" / "x").touch()
    subprocess.run(["tar", "--create", f"--file={folder / 'a.tar'}", "-C", folder, "source"], check=True)
    for command in (("base", "add", "DISK", "--name=tiny"), BUILD, ("fsck", "--repair"), ("ls",)):
        code, _, said = yard.command(yard.store, command)
        if code:
            raise RuntimeError(f"{command}: {said}")
    store = Store.open(yard.store)
    make_key(store.ssh / "id_ed25519")
    for name in ("qemu.json", "runc.json"):
        (store.state / name).write_text('{"key": [], "said": ""}')
    (store.state / "accel.json").write_text(f'{{"key": ["{stamp.boot_id()}"], "problem": ""}}')
    parents = store.parents()
    leaves = [id for id in parents if id not in parents.values()]
    tip = max(leaves, key=lambda id: _depth(id, parents))
    (folder / "id").write_text(str(parents[parents[tip] or tip]))
    states = store.states
    states.folder.mkdir(mode=0o700)
    states.running.mkdir(mode=0o700)
    (states.folder / tip).mkdir()
    for name in ("ram", "device", "about.json"):
        (states.folder / tip / name).write_text("{}")
    return yard


def _depth(id: LayerId | None, parents: dict[LayerId, LayerId | None]) -> int:
    return 1 + _depth(parents[id], parents) if id else 0


# -- the damages


def nothing(path: Path, yard: Yard) -> None:
    """It is missing."""


def empty(path: Path, yard: Yard) -> None:
    path.touch()


def garbage(path: Path, yard: Yard) -> None:
    path.write_bytes(b'\0\xff\x80{"((' * 500)


def folder(path: Path, yard: Yard) -> None:
    (path / "inside").mkdir(parents=True)


def link_to_folder(path: Path, yard: Yard) -> None:
    path.symlink_to(yard.victim)


def link_to_file(path: Path, yard: Yard) -> None:
    path.symlink_to(yard.victim / "precious")


def link_to_nothing(path: Path, yard: Yard) -> None:
    path.symlink_to(yard.victim / "made")


def pipe(path: Path, yard: Yard) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, yard: Yard) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path may be too long for a socket
    try:
        with closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path, yard: Yard) -> None:
    """Like /dev/zero; only root can make one."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def truncated(path: Path, yard: Yard) -> None:
    """Half of the file; of a folder, nothing."""


DAMAGES = (nothing, empty, garbage, truncated, folder, link_to_folder, link_to_file, link_to_nothing, pipe,
           unix_socket, device)  # fmt: skip
Damage = Callable[[Path, Yard], None]


def put(damage: Damage, path: Path, yard: Yard) -> None:
    """Replace `path` with something else."""
    if damage is truncated:
        if path.is_dir():
            shutil.rmtree(path)
            path.mkdir()
        else:
            path.chmod(0o644)
            os.truncate(path, path.stat().st_size // 2)
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    damage(path, yard)


def troubles(
    yard: Yard, place: str, damage: Damage, commands: Iterable[tuple[str, ...]], again: bool
) -> list[str]:
    """The faults of commands on one damage: hangs, tracebacks, exit codes, changes elsewhere.

    With `again`, each of them has the store to itself; else one finds it as the one before has left it.
    """
    found = []
    before = yard.victims()
    store = None
    for command in commands:
        if store is None or again:
            store = yard.copy()
            put(damage, store / place, yard)
        code, _, said = yard.command(store, command)
        what = f"{place} is {damage.__name__}: {' '.join(command)}"
        if code not in (0, 1, 2) or "Traceback" in said:
            found.append(f"{what}: {code} {said[-1500:]}")
        elif code and (not said.startswith("obuild: ") or "[Errno" in said):
            found.append(f"{what}: {code} says {said[:300]}")
        if yard.victims() != before:
            found.append(f"{what}: CHANGED what is elsewhere")
            return found
    return found


def unrepaired(yard: Yard, place: str, damage: Damage) -> list[str]:
    """The faults after a repair: fsck finds more than what only a user can fix, or a build does not work."""
    store = yard.copy()
    put(damage, store / place, yard)
    yard.command(store, ("fsck", "--repair", "--read-data"))
    what = f"{place} is {damage.__name__}: after a repair"
    code, out, said = yard.command(store, ("fsck", "--read-data"))
    refused = "must be a folder" in said or "cannot tell the format" in said  # the user has to act
    told = code and not refused and "base-image/" not in out
    found = [f"{what}: {out}{said}"] if told else []
    if not code:
        code, out, said = yard.command(store, BUILD)
        if code and "base" not in place:
            found.append(f"{what}: build: {code} {said[:300]}")
    return found


def main() -> None:
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="obuild-odd-", dir=os.environ.get("ODD_DIR")) as name:
        yard = make_yard(Path(name))
        count: Counter[str] = Counter()
        for place in yard.places():
            if wanted and not any(word in place for word in wanted):
                continue
            for damage in DAMAGES:
                found = troubles(yard, place, damage, LOOKS, again=False)
                found += troubles(yard, place, damage, CHANGES, again=True)
                found += unrepaired(yard, place, damage)
                count["damages"] += 1
                count["commands"] += len(LOOKS) + len(CHANGES) + 4
                count["troubles"] += len(found)
                for line in found:
                    print(line, flush=True)
            print(place, dict(count), file=sys.stderr, flush=True)
        print(dict(count))


if __name__ == "__main__":
    main()
