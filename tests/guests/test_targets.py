"""The targets of caches and secrets: checked when planned, with the op's position in errors."""

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
    """A field with these targets."""
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
    ("/proc", "belongs to the kernel"),
    ("/proc/sys/x", "belongs to the kernel"),
    ("/sys", "belongs to the kernel"),
    ("/sys/fs/cgroup", "belongs to the kernel"),
    ("/dev", "belongs to the kernel"),
    ("/dev/pts", "belongs to the kernel"),
    ("/dev/shm", "belongs to the kernel"),
    ("/dev/shm/../null", "belongs to the kernel"),
    ("/a/../proc", "belongs to the kernel"),
    ("/run", "obuild uses /run/obuild"),
    ("/run/obuild/x", "obuild uses /run/obuild"),
    ("/run/obuild-secrets", "obuild uses /run/obuild-secrets"),
    ("/var", "obuild uses /var/lib/obuild-scratch"),
    ("/var/lib", "obuild uses /var/lib/obuild-scratch"),
    ("/var/lib/obuild-scratch/0", "obuild uses /var/lib/obuild-scratch"),
    ("/usr", "programs are there"),
    ("/bin/", "programs are there"),
]
WINDOWS = [
    ("C:/", "the root"),
    (r"d:\\", "the root"),
    ("/", "the root"),
    (".", "the root"),
    ("/obuild-Scratch", "obuild uses C:/obuild-scratch"),
    (r"C:\\WINDOWS", "programs are there"),
]


@pytest.mark.parametrize(
    ("os", "path", "why"),
    [
        *(("linux", *case) for case in LINUX),
        *(("windows", *case) for case in WINDOWS),
        ("freebsd", "/dev/x", "belongs to the kernel"),
        ("freebsd", "/var", "obuild uses /var/obuild-scratch"),
        ("openbsd", "/var/obuild-secrets", "obuild uses /var/obuild-secrets"),
        ("openbsd", "/usr/local", "programs are there"),
    ],
)
@pytest.mark.parametrize("field", ["cache", "secrets"])
def test_an_impossible_target_is_refused(os: str, path: str, why: str, field: str) -> None:
    what = "a cache" if field == "cache" else "a secret"
    said = refused(f"(run {mounts(path, field=field)} (shell x))", os)
    assert re.match(rf"{what} cannot be at \S+: .*{re.escape(why)}", said)


@pytest.mark.parametrize(
    "path", ["/run/x", "/dev/shm/x", "/var/cache", "/usr/local", "/etc", "/tmp", "/root", "/procs", "/usr/../srv"]
)
@pytest.mark.parametrize("field", ["cache", "secrets"])
def test_other_targets_are_accepted(path: str, field: str) -> None:
    last(f"(run {mounts(path, field=field)} (shell x))")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (mounts("/a", "/a"), "two caches or secrets cannot both be at /a"),
        (mounts("/a", "/b", "/c/../a"), "cannot both be at /"),
        (mounts("/a") + mounts("/a/", field="secrets"), "cannot both be at /a"),
        (mounts("/w/x", "x"), "cannot both be at /w/x"),
        (mounts("/s", "/s/t", field="secrets"), "nothing can be at /s/t: it is below a secret"),
        (mounts("/s/cache") + mounts("/s", field="secrets"), "nothing can be at /s/cache"),
        (mounts(".", field="secrets"), "that is the working folder"),
    ],
)
def test_two_cannot_have_one_target(fields: str, why: str) -> None:
    assert why in refused(f"(workdir /w) (run {fields} (shell x))")


def test_a_caches_name_must_fit_into_a_file_name() -> None:
    last(f"(run (cache ({'é' * 40} (target /c))) (shell x))")
    assert "at most 80 bytes" in refused(f"(run (cache ({'é' * 41} (target /c))) (shell x))")


def test_windows_paths_ignore_case() -> None:
    assert "cannot both be at" in refused(f"(run {mounts('C:/a', 'c:/A')} (shell x))", "windows")
    assert "not on drive C:" in refused(f"(run {mounts('D:/s', field='secrets')} (shell x))", "windows")


def test_a_cache_inside_another_is_mounted_after_it() -> None:
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


def test_a_secret_may_be_inside_a_cache() -> None:
    last(f"(run {mounts('/a')} {mounts('/a/s', field='secrets')} (shell x))")


def test_obuilds_own_folders_are_those_in_the_guests_modules() -> None:
    assert set(targets.OWN) == set(targets.KERNELS) == set(targets.PROGRAMS) == set(OSES)
    assert set(targets.OWN["linux"]) == {linux_agent.FOLDER, linux.SECRETS, linux.SCRATCH}
    assert set(targets.OWN["freebsd"]) == {freebsd.SECRETS, freebsd.SCRATCH}
    assert set(targets.OWN["openbsd"]) == {openbsd.SECRETS, openbsd.SCRATCH}
    own = {path.replace("\\", "/") for path in (windows.SECRETS, windows.SCRATCH, windows.TAKEN)}
    assert set(targets.OWN["windows"]) == own
