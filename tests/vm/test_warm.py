"""Warm machines: the same result as with a boot for each step, whatever the steps do, and never a failed build."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.program import Program, assert_clean, base_images, boots, layers, new_store

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]


@pytest.fixture(autouse=True)
def where_machines_are_kept_warm(request: pytest.FixtureRequest) -> None:
    """Skip the test if machines of its architecture are not."""
    if "micro_images" in request.fixturenames and not request.getfixturevalue("kept_warm"):
        pytest.skip(f"machines on {request.getfixturevalue('arch')} are not kept warm")


#: What a boot, a login and the clock leave in a layer: the only differences between the two ways.
MAY_DIFFER = re.compile(
    r"/var/log/.*|/var/lib/systemd/.*|/etc/machine-id|/var/lib/dbus/machine-id|/etc/\.pwd\.lock|/etc/resolv\.conf"
    r"|(/var)?/tmp/systemd-private-.*|/var/cache/ldconfig/aux-cache|/var/lib/private(/.*)?|/var/cache/private(/.*)?"
)


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount a layer's root file system read-only, as it is on the disk: no journal is replayed."""
    raw = folder / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    root = folder / "root"
    root.mkdir(exist_ok=True)
    about = subprocess.run(
        ["dumpe2fs", "-h", f"{raw}?offset={1 << 20}"], capture_output=True, text=True, check=True
    ).stdout
    assert "needs_recovery" not in about  # clean: frozen or unmounted
    subprocess.run(["mount", "-o", f"loop,ro,noload,offset={1 << 20}", raw, root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)
        raw.unlink()


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Return kind, mode, owner, and content or target of each path of a file system."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            content: object = ""
            if stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
                content = status.st_rdev
            found[f"/{path.relative_to(root)}"] = (status.st_mode, status.st_uid, status.st_gid, content)
    return {path: about for path, about in found.items() if not MAY_DIFFER.fullmatch(path)}


#: Steps that make files of all kinds and leave things behind, and steps that record what they see of them.
#: left_behind.toml covers everything that a step can leave.
STEPS = r"""
    (run (shell "mkdir /data && echo one >/data/file && ln -s file /data/link && chmod 4755 /data/file;
                 echo scratch >/tmp/left; mkdir -p /tmp/.hidden; echo x >/tmp/.hidden/y; echo changed >/etc/motd;
                 mkdir -p /mnt/t && mount -t tmpfs t /mnt/t && echo x >/mnt/t/x && touch /run/left /dev/shm/y;
                 hostname other; ls -a /tmp; sleep 1000 & setsid sleep 1001 >&- 2>&- &"))
    (run (shell "ls -a /tmp /run/lock | grep -v systemd >/data/seen; ls -A /mnt/t /dev/shm >/data/mounted;
                 test -e /run/left && echo run >>/data/mounted; cat /proc/sys/kernel/hostname >/data/name;
                 ps ax -o args | grep -c '[s]leep 100' >/data/sleepers; cat /data/*"))
    (workdir /srv/a)
    (user (uid 33) (gid 33))
    (env VAR value)
    (run (shell "id >who; env | sort >env; pwd >here; umask >umask; ulimit -a >limits; cat who"))
    (copy (src .) (dst /copied/))
    (user (uid 0) (gid 0))
    (run (network host) (shell "cut -f1-3 /proc/net/route | grep 00000000.0202000A >/data/routes"))
    (run (shell "cut -f1-3 /proc/net/route | grep 00000000.0202000A >>/data/routes; cat /data/[smn]*"))
"""

#: How many layers they become.
COUNT = 6


@pytest.mark.long
@pytest.mark.parametrize("base", ["micro", "debian-12"])
@pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted to be compared")
def test_warm_and_cold_builds_give_the_same_files(base: str, tmp_path: Path, spec: Spec, source: Path) -> None:
    (source / "a").write_text("a file\n")
    (source / "b").mkdir()
    (source / "b" / "c").write_bytes(os.urandom(5000))
    path = spec(f"((from {base}) {STEPS})")
    program = Program(new_store(tmp_path / "store", base_images(base)))
    trees: dict[str, list[dict[str, tuple[object, ...]]]] = {}
    said: dict[str, list[str]] = {}
    for way in ("warm", "boot"):
        done = program.build(path, source, "--vm", way)
        said[way] = [line for line in done.stdout.splitlines() if not line.startswith("the next step")]
        trees[way] = []
        for id in layers(done.stdout)[-COUNT:]:
            with mounted(program.store / "result" / id / "rootfs/image.qcow2", tmp_path) as root:
                trees[way].append(tree(root))
        assert_clean(program)
        program("fsck", "--read-data")
        for id in reversed(layers(done.stdout)[-COUNT:]):
            program("rm", id)
    assert len(trees["warm"]) == len(trees["boot"]) == COUNT
    for number, (warm, boot) in enumerate(zip(trees["warm"], trees["boot"], strict=True)):
        assert {path for path in {*warm, *boot} if warm.get(path) != boot.get(path)} == set(), number
    assert said["warm"][-30:] == said["boot"][-30:]


BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def test_a_chain_runs_in_one_boot_and_a_longer_one_continues_in_it(
    shared: Program, spec: Spec, source: Path
) -> None:
    steps = f'(run (shell "{BOOT_ID} # a")) (run (shell "{BOOT_ID} # b"))'
    first = shared.build(spec(f"((from micro) {steps})"), source)
    longer = shared.build(spec(f'((from micro) {steps} (run (shell "{BOOT_ID} # c")))'), source)
    branch = shared.build(
        spec(f'((from micro) (run (shell "{BOOT_ID} # a")) (run (shell "{BOOT_ID} # d")))'), source
    )
    assert len(boots(longer)) == 3
    assert len({*boots(first), *boots(longer), *boots(branch)}) == 1
    assert_clean(shared)


def test_a_failed_step_is_retried_from_its_parent(shared: Program, spec: Spec, source: Path) -> None:
    before = f'(run (shell "{BOOT_ID}; echo before a failure"))'
    first = shared.build(spec(f'((from micro) {before} (run (shell "rm /etc/passwd; exit 7")))'), source, code=1)
    again = shared.build(spec(f'((from micro) {before} (run (shell "{BOOT_ID}; test -e /etc/passwd")))'), source)
    assert len(boots(again)) == 2
    assert {*boots(first)} == {*boots(again)}


@pytest.mark.long
def test_a_step_that_changes_how_modules_are_loaded_is_followed_by_a_boot(
    shared: Program, spec: Spec, source: Path
) -> None:
    change = "touch /etc/modprobe.d/x.conf"
    path = spec(f'((from micro) (run (shell "{BOOT_ID}; {change}")) (run (shell "{BOOT_ID}; findmnt /dev/shm")))')
    done = shared.build(path, source)
    assert len({*boots(done)}) == 2
    assert "the next step needs a boot: " in done.stdout
    assert_clean(shared)


def test_two_machines_from_one_state_have_their_own_time_and_randomness(
    shared: Program, spec: Spec, source: Path
) -> None:
    stages = "\n".join(
        f'(build "s{number}" ((from micro) (run (shell "echo {number}; {BOOT_ID}; '
        'echo random $(head -c 16 /dev/urandom | od -An -tx8); echo now $(date +%s.%N)"))))'
        for number in range(4)
    )
    before = time.time()
    done = shared.build(spec(f"({stages} (from micro) (run (shell true)))"), source, "--jobs", "4")
    after = time.time()
    assert len(boots(done)) == 4
    assert len({*boots(done)}) == 1
    assert len({*re.findall(r"^random .*$", done.stdout, re.MULTILINE)}) == 4
    times = [float(found) for found in re.findall(r"^now (.*)$", done.stdout, re.MULTILINE)]
    assert all(before - 1 < at < after + 1 for at in times)
    assert_clean(shared)


def test_the_network_is_closed_after_a_step_that_opened_it(
    shared: Program, spec: Spec, source: Path, served: int
) -> None:
    reach = f"{BOOT_ID}; (exec 3<>/dev/tcp/10.0.2.2/{served}) 2>/dev/null && echo reached || echo not reached"
    closed = f'(run (shell "{reach} # N"))'
    opened = f'(run (network host) (shell "{reach} # N"))'
    steps = " ".join(each.replace("N", str(n)) for n, each in enumerate((closed, opened, opened, closed, opened)))
    done = shared.build(spec(f"((from micro) (shell /bin/bash -c) {steps})"), source)
    said = re.findall(r"^(?:not )?reached$", done.stdout, re.MULTILINE)
    assert said == ["not reached", "reached", "reached", "not reached", "reached"]
    assert len({*boots(done)}) == 1


@pytest.fixture
def served() -> Iterator[int]:
    """Listen on a port of this host's 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.long
def test_a_damaged_state_causes_a_note_and_a_boot(ready: Program, spec: Spec, source: Path) -> None:
    """tests/store/test_warm.py has every kind of damage."""
    before = ready.build(spec(f'((from micro) (run (shell "{BOOT_ID}")))'), source)
    (state,) = (path for path in (ready.store / "warm").iterdir() if (path / "disk.qcow2").exists())
    (state / "device").unlink()  # other stores have the same file
    (state / "device").write_bytes(b"no")
    again = ready.build(spec(f'((from micro) (run (shell "{BOOT_ID} # again")))'), source)
    assert re.search(
        f"the saved machine of layer {state.name[:12]} cannot be used .*its device.*; booting\n", again.stdout
    )
    assert {*boots(before)} != {*boots(again)}
    assert_clean(ready)


@pytest.mark.long
def test_without_a_budget_a_machine_continues_and_is_not_saved(shared: Program, spec: Spec, source: Path) -> None:
    path = spec(f'((from micro) (run (shell "{BOOT_ID} # one")) (run (shell "{BOOT_ID} # two")))')
    done = shared.build(path, source, "--warm-budget=0")
    assert len({*boots(done)}) == 1
    assert not any((shared.store / "warm" / id).exists() for id in layers(done.stdout)[1:])


@pytest.mark.long
def test_long_chains_and_large_memories_continue_from_saved_states(
    shared: Program, spec: Spec, source: Path
) -> None:
    large = '(run (shell "dd if=/dev/urandom of=/large bs=1M count=80 2>/dev/null; sha256sum /large >/sum"))'
    small = " ".join(f'(run (shell "echo {number} >>/numbers"))' for number in range(20))
    first, last = f'(run (shell "{BOOT_ID}"))', f'(run (shell "{BOOT_ID}; sha256sum -c /sum; wc -l </numbers"))'
    done = shared.build(spec(f"((from micro) {first} {large} {small} {last})"), source)
    assert len({*boots(done)}) == 1
    assert "/large: OK\n20\n" in done.stdout
    assert list((shared.store / "flat").iterdir())


def test_a_step_that_kills_all_processes_is_reported(shared: Program, spec: Spec, source: Path) -> None:
    done = shared.build(spec('((from micro) (run (shell "echo here; kill -9 -1")))'), source, code=1)
    assert "did the step kill it?" in done.stderr
    assert_clean(shared)
