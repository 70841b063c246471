"""Where caches and secrets may be: refused when planned, with the op's place."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from obuild import spec
from obuild.errors import SpecError
from obuild.guests import freebsd, linux, linux_agent, openbsd, targets, windows
from obuild.guests.profile import OSES, Card
from obuild.plan.planner import plan
from obuild.plan.steps import Base, Command


def last(ops: str, os: str = "linux") -> Command:
    found = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card(os=os))
    stage = spec.parse(f"((from b)\n {ops})".encode())
    action = plan(stage, source=Path(), bases={"b": found}, secrets=("s", "t")).actions[-1].action
    assert isinstance(action, Command)
    return action


def mounts(*paths: str, field: str = "cache", names: str = "stuvwx") -> str:
    """A field that has these targets."""
    items = (f'({name} (target "{path}"))' for name, path in zip(names, paths, strict=False))
    return f"({field} {' '.join(items)})"


def refused(ops: str, os: str = "linux") -> str:
    with pytest.raises(SpecError) as caught:
        last(ops, os)
    assert caught.value.line == 2
    assert caught.value.message.startswith("in (run …): ")
    return caught.value.message.removeprefix("in (run …): ")


LINUX = [
    ("/", "the root"),
    ("//", "the root"),
    ("/.", "the root"),
    (".", "the root"),
    ("", "the root"),
    ("..", "the root"),
    ("/a/..", "the root"),
    ("/a/../..", "the root"),
    ("/proc", "the kernel's"),
    ("/proc/sys/x", "the kernel's"),
    ("/sys", "the kernel's"),
    ("/sys/fs/cgroup", "the kernel's"),
    ("/dev", "the kernel's"),
    ("/dev/pts", "the kernel's"),
    ("/dev/shm", "the kernel's"),
    ("/dev/shm/../null", "the kernel's"),
    ("/a/../proc", "the kernel's"),
    ("/run", "obuild itself uses /run/obuild"),
    ("/run/obuild/x", "obuild itself uses /run/obuild"),
    ("/run/obuild-secrets", "obuild itself uses /run/obuild-secrets"),
    ("/var", "obuild itself uses /var/lib/obuild-scratch"),
    ("/var/lib", "obuild itself uses /var/lib/obuild-scratch"),
    ("/var/lib/obuild-scratch/0", "obuild itself uses /var/lib/obuild-scratch"),
    ("/usr", "programs are there"),
    ("/bin/", "programs are there"),
]
WINDOWS = [
    ("C:/", "the root"),
    (r"d:\\", "the root"),
    ("/", "the root"),
    (".", "the root"),
    ("/obuild-Scratch", "obuild itself uses C:/obuild-scratch"),
    (r"C:\\WINDOWS", "programs are there"),
]


@pytest.mark.parametrize(
    ("os", "path", "why"),
    [
        *(("linux", *case) for case in LINUX),
        *(("windows", *case) for case in WINDOWS),
        ("freebsd", "/dev/x", "the kernel's"),
        ("freebsd", "/var", "obuild itself uses /var/obuild-scratch"),
        ("openbsd", "/var/obuild-secrets", "obuild itself uses /var/obuild-secrets"),
        ("openbsd", "/usr/local", "programs are there"),
    ],
)
@pytest.mark.parametrize("field", ["cache", "secrets"])
def test_a_target_that_cannot_be_is_refused(os: str, path: str, why: str, field: str) -> None:
    what = "a cache" if field == "cache" else "a secret"
    said = refused(f"(run {mounts(path, field=field)} (shell x))", os)
    assert re.match(rf"{what} cannot be at \S+: .*{re.escape(why)}", said)


@pytest.mark.parametrize(
    "path", ["/run/x", "/dev/shm/x", "/var/cache", "/usr/local", "/etc", "/tmp", "/root", "/procs", "/usr/../srv"]
)
@pytest.mark.parametrize("field", ["cache", "secrets"])
def test_other_targets_may_be(path: str, field: str) -> None:
    last(f"(run {mounts(path, field=field)} (shell x))")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (mounts("/a", "/a"), "two caches or secrets cannot both be at /a"),
        (mounts("/a", "/b", "/c/../a"), "cannot both be at /"),
        (mounts("/a") + mounts("/a/", field="secrets"), "cannot both be at /a"),
        (mounts("/w/x", "x"), "cannot both be at /w/x"),
        (mounts("/s", "/s/t", field="secrets"), "nothing can be at /s/t: a secret is a file"),
        (mounts("/s/cache") + mounts("/s", field="secrets"), "nothing can be at /s/cache"),
        (mounts(".", field="secrets"), "that is the working folder"),
    ],
)
def test_no_two_may_be_in_one_place(fields: str, why: str) -> None:
    assert why in refused(f"(workdir /w) (run {fields} (shell x))")


def test_a_caches_name_must_fit_into_that_of_a_file() -> None:
    last(f"(run (cache ({'é' * 40} (target /c))) (shell x))")
    assert "80 bytes at most" in refused(f"(run (cache ({'é' * 41} (target /c))) (shell x))")


def test_windows_knows_no_case() -> None:
    assert "cannot both be at" in refused(f"(run {mounts('C:/a', 'c:/A')} (shell x))", "windows")
    assert "not on drive C:" in refused(f"(run {mounts('D:/s', field='secrets')} (shell x))", "windows")


def test_a_cache_that_lies_in_another_one_is_mounted_after_it() -> None:
    command = last(f"(run {mounts('/a/b/c', '/x', '/a', '/a/b', '/a/d/../y')} (shell x))")
    assert [cache.target for cache in command.caches] == ["/x", "/a", "/a/b", "/a/d/../y", "/a/b/c"]
    assert [cache.target for cache in last(f"(run {mounts('/c/d', '/b', '/a')} (shell x))").caches] == [
        "/c/d",
        "/b",
        "/a",
    ]


def test_many_caches_are_planned_quickly() -> None:
    began = time.process_time()
    items = " ".join(f"(c{number} (target /c/{number}/d))" for number in range(3000))
    assert len(last(f"(run (cache {items}) (shell x))").caches) == 3000
    assert time.process_time() - began < 5


def test_a_secret_may_lie_in_a_cache() -> None:
    last(f"(run {mounts('/a')} {mounts('/a/s', field='secrets')} (shell x))")


def test_obuilds_own_folders_are_those_that_guests_are_told_of() -> None:
    assert set(targets.OWN) == set(targets.KERNELS) == set(targets.PROGRAMS) == set(OSES)
    assert set(targets.OWN["linux"]) == {linux_agent.FOLDER, linux.SECRETS, linux.SCRATCH}
    assert set(targets.OWN["freebsd"]) == {freebsd.SECRETS, freebsd.SCRATCH}
    assert set(targets.OWN["openbsd"]) == {openbsd.SECRETS, openbsd.SCRATCH}
    own = {path.replace("\\", "/") for path in (windows.SECRETS, windows.SCRATCH, windows.TAKEN)}
    assert set(targets.OWN["windows"]) == own
