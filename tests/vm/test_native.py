"""Native steps: real containers on real file systems, and what is left when they end in any way."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from obuild.store.layers import Store
from tests.support.disks import ext4_disk
from tests.support.native import wait_for_nothing
from tests.support.program import Program, assert_clean, base_images, layers, new_store
from tests.support.victim import Victim

pytestmark = [
    pytest.mark.vm,
    pytest.mark.usefixtures("alone"),
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]

Spec = Callable[[str], Path]

POINTS = ("native.mounted", "native.running", "step.done", "native.unmounted", "native.sealed", "commit.sealed")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A store that tests share: each builds its own steps."""
    return Program(new_store(tmp_path_factory.mktemp("native") / "store", base_images("micro")), "native")


@pytest.fixture
def run(shared: Program, spec: Spec, source: Path) -> Callable[..., str]:
    """Build ops on micro, each test with a step of its own first; returns what the build prints."""

    def build(*ops: str, code: int = 0) -> str:
        own = f'(run (shell "true {source}"))'
        done = shared.build(spec(f"((from micro) {own} {' '.join(ops)})"), source, code=code)
        return done.stdout + done.stderr

    return build


def shell(text: str, *fields: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'(run {" ".join(fields)} (shell "{quoted}"))'


def test_a_step_leaves_only_files(run: Callable[..., str]) -> None:
    out = run(
        shell(
            "echo kept >/kept; echo lost >/run/lost; mkdir /dev/shm/lost; exec 3>/held; echo held >&3;"
            " (trap '' HUP TERM; exec setsid sleep 9990) & ls -d /proc/1"
        ),
        shell("cat /kept; ls /run/lost /dev/shm/lost; ps ax -o args | grep '[s]leep 9990' || cat /held"),
    )
    assert "\nkept\n" in out
    assert "/run/lost" in out.partition("\nkept\n")[2]
    assert "\nheld\n" in out


def test_what_a_step_is_not_allowed_to_do(run: Callable[..., str]) -> None:
    tries = (
        "mount -t tmpfs x /mnt",
        "unshare -m true",
        "dd if=/dev/loop0 count=1",
        "echo 1 >/proc/sys/kernel/panic",
    )
    node = "mknod /disk b 7 0 && dd if=/disk of=/dev/null count=1"
    module = "insmod $(find /usr/lib/modules -name '*.ko*' | grep -m 1 .)"
    text = "; ".join(f"({each}) 2>/dev/null && echo did" for each in (*tries, node, module))
    assert "\ndid" not in run(shell(f"{text}; echo tried")).replace("echo did", "")


def test_only_the_end_of_a_step_flushes_its_disk(run: Callable[..., str]) -> None:
    # The kernel refuses to flush /dev/null; the file arrives all the same.
    out = run(
        shell("sync; echo here >/flushed; dd if=/flushed of=/dev/null conv=fsync 2>/dev/null && echo no flush"),
        shell("cat /flushed"),
    )
    assert out.count("\nno flush\n") == 1
    assert "\nhere\n" in out


def test_links_of_the_guest_lead_nowhere_on_the_host(run: Callable[..., str], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = run(
        shell(
            f"ln -s {outside} /cache; ln -s {outside}/etc /moved; mkdir -p {outside}/etc; mv /etc /etc.old; "
            f"cp -a /etc.old/. {outside}/etc; ln -s /moved /etc"
        ),
        shell("echo in >/cache/file", "(cache (c (target /cache)))", "(network host)"),
        shell(f"ls {outside}; cat /etc/hostname", "(cache (c (target /cache/deeper)))"),
    )
    assert list(outside.iterdir()) == []
    assert "\netc\n" in out


@pytest.mark.parametrize("name", ["proc", "dev"])
def test_a_base_whose_own_folders_lead_to_the_host(name: str, spec: Spec, source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    busybox = shutil.which("busybox")
    folders = ("mkdir bin", f"write {busybox} bin/sh", "sif /bin/sh mode 0100755", f"symlink etc {outside}")
    links = [f"symlink {each} {outside}" for each in (name, "usr", "var")]
    disk = ext4_disk(tmp_path / "odd.img", *folders, *links)
    program = Program(Store.open(tmp_path / "store").root, "native")
    program("base", "add", disk, "--name", "odd")
    path = spec('((from odd) (shell sh -c) (run (network host) (cache (c (target /var/c))) (shell "echo ran")))')
    done = program.build(path, source, code=1)
    assert f"nothing can be mounted on /{name} in the guest: it is not a folder" in done.stderr
    assert list(outside.iterdir()) == []


def test_resolv_conf_is_the_hosts_and_comes_back(run: Callable[..., str]) -> None:
    out = run(
        shell("echo guest >/etc/resolv.conf"),
        shell("grep -c . /etc/resolv.conf; cmp /etc/resolv.conf /etc/resolv.conf && echo there", "(network host)"),
        shell("echo now $(cat /etc/resolv.conf); ls -A /etc | grep obuild"),
        code=1,
    )
    assert "\nthere\n" in out
    assert "\nnow guest\n" in out
    changed = run(
        shell("echo changed >/etc/resolv.conf", "(network host)"),
        shell("echo now $(cat /etc/resolv.conf)"),
    )
    assert "\nnow changed\n" in changed


def test_secrets_and_caches_leave_nothing_in_the_layer(
    shared: Program, spec: Spec, source: Path, tmp_path: Path
) -> None:
    value = tmp_path / "value"
    value.write_text("hidden")
    command = f"cat /deep/er/secret | tr h H; echo {source} >>/cached/c/words; echo d >/cached/d; ls -a /cached"
    text = spec(
        "((from micro)"
        f" (run (secrets (s (target /deep/er/secret))) (cache (c (target /cached/c)) (d (target /cached)))"
        f' (shell "{command}"))'
        ' (run (shell "ls -a / /cached")))'
    )
    out = shared.build(text, source, "--secret", f"s:{value}").stdout
    assert "Hidden" in out
    assert "hidden" not in out
    after = out.rpartition("ls -a / /cached")[2]
    assert "deep" not in after
    assert "cached" in after
    for path in shared.store.rglob("*"):
        if path.is_file() and path.stat().st_size < 1 << 26:
            assert b"hidden" not in path.read_bytes(), path


def test_a_cache_is_unpacked_once(shared: Program, run: Callable[..., str]) -> None:
    field = "(cache (kept (target /kept)))"
    look = "cd /kept && stat -c '%n %i %a %u' *"
    out = run(
        shell("cd /kept && touch plain setuid && chown 1234 setuid && chmod 4755 setuid", field),
        shell(f"{look}", field),
        shell(f"{look}; echo more >more; mkdir -m 700 deep", field),
        shell(f"{look}; rm more", field),
    )
    shown = [line for line in out.splitlines() if line.startswith(("plain ", "setuid "))]
    assert len(shown) == 6
    assert len(set(shown)) == 2  # the same inodes, so nobody has unpacked them
    assert any(line.startswith("setuid ") and line.endswith(" 4755 1234") for line in shown)
    archive = subprocess.check_output(["tar", "-tf", shared.store / "cache/c-kept/cache.tar"], text=True)
    assert sorted(archive.split()) == ["./", "./deep/", "./plain", "./setuid"]
    shared("cache", "rm", "kept")
    assert not (shared.store / "cache/c-kept").exists()


def test_builds_in_two_stores_at_once(spec: Spec, source: Path, tmp_path: Path) -> None:
    """The kernel must not take the container of one for that of the other."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        meet = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}; cat <&3"
        path = spec(f"((from micro) {shell(meet, '(network host)')} {shell('echo met')})")
        builds, guests = [], []
        for name in ("one", "two"):
            program = Program(new_store(tmp_path / name, base_images("micro")), "native")
            argv = program.argv("build", "-f", path, source)
            builds.append(stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)))
        server.settimeout(120)
        for _ in builds:
            guests.append(stack.enter_context(server.accept()[0]))
        groups = subprocess.check_output("find /sys/fs/cgroup -path '*pids*/obuild/*' -type d", shell=True)
        assert len(groups.split()) in (0, 2)  # none: cgroups of version 2 have no such folder
        for guest in guests:
            guest.shutdown(socket.SHUT_RDWR)
        for build in builds:
            assert "\nmet\n" in build.communicate()[0]
            assert build.returncode == 0


def test_builds_inside_a_build_run_at_once(shared: Program, spec: Spec, source: Path) -> None:
    """With --jobs, each has a chain of its own; only at once can the two meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        meet = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}; cat <&3; echo $$ >/met"
        inner = "".join(
            f"(build {name} ((from micro) {shell(f'{meet} # {name} {source}', '(network host)')}))"
            for name in ("one", "two")
        )
        copies = "".join(f"(copy (from (build {name})) (src /met) (dst /{name}))" for name in ("one", "two"))
        path = spec(f"({inner} (from micro) {copies} {shell('cat /one /two && echo both')})")
        argv = shared.argv("build", "--jobs=2", "-f", path, source)
        server.settimeout(120)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as build, ExitStack() as stack:
            guests = [stack.enter_context(server.accept()[0]) for _ in range(2)]
            for guest in guests:
                guest.shutdown(socket.SHUT_RDWR)
            assert "\nboth\n" in build.communicate()[0]
            assert build.returncode == 0


def test_a_full_disk_fails_the_step(run: Callable[..., str]) -> None:
    assert "No space left" in run(shell("fallocate -l 9G /big"), code=1)


def test_a_full_store_is_reported_and_the_build_works_once_there_is_room(
    spec: Spec, source: Path, tmp_path: Path
) -> None:
    bases = base_images("micro")
    image = sum(path.stat().st_blocks * 512 for path in (bases / "base-image").iterdir())
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * image + (40 << 20)}", "tmpfs", mount], check=True)
    try:
        program = Program(new_store(mount / "store", bases), "native")
        text = spec("((from micro) " + shell("head -c 80000000 /dev/urandom >/big && sync && echo written") + ")")
        done = program.build(text, source, code=1)
        assert "No space left on device" in done.stderr
        assert "obuild prune --keep-bytes" in done.stderr
        wait_for_nothing()
        assert_clean(program)
        subprocess.run(["mount", "-o", "remount,size=600M", mount], check=True)
        assert "written\n" in program.build(text, source).stdout
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_copy_is_shared_with_virtual_machines(shared: Program, spec: Spec, source: Path) -> None:
    (source / "file").write_text("content")
    text = '((from micro) (copy (src file) (dst /copied)) (run (shell "cat /copied")))'
    made = layers(shared.build(spec(text), source).stdout)
    plan = Program(shared.store)("plan", "-f", spec(text), source).stdout
    assert made[1][:12] in plan
    assert "2 of 3 steps are in the store" in plan
    assert "the executor changed: native → qemu" in plan
    assert "3 of 3 steps are in the store" in shared("plan", "-f", spec(text), source).stdout


class Native(Victim):
    """The real program, with native steps."""

    module = "obuild"
    executor = "native"


SPEC = """
((from micro)
 (run (cache (c (target /c))) (shell "echo {word} >>/c/words; echo {word} >/made"))
 (copy (src file) (dst /copied))
 (run (network host) (shell "cat /made /copied; sleep 9999 & echo {word} >/again")))
"""


@pytest.fixture
def victim(tmp_path: Path, source: Path) -> Native:
    (source / "file").write_text("copied")
    store = new_store(tmp_path / "store", base_images("micro"))
    return Native(store, {"SPEC": tmp_path / "test.spec", "SOURCE": source})


@pytest.mark.parametrize("point", POINTS)
def test_a_build_that_is_killed_at_a_point_leaves_nothing(victim: Native, point: str) -> None:
    victim.words["SPEC"].write_text(SPEC.format(word="word"))
    assert victim.run("build", "-f", "SPEC", "SOURCE", kill_at=point) == -signal.SIGKILL
    wait_for_nothing()
    victim.check()
    assert victim.run("build", "-f", "SPEC", "SOURCE") == 0
    victim.check()


@pytest.mark.crash
def test_killed_at_any_moment(victim: Native) -> None:
    """OBUILD_TEST_KILLS times, default 100, with two builds at once."""
    count = int(os.environ.get("OBUILD_TEST_KILLS", "100"))
    chance = random.Random(count)
    for number in range(count):
        children = []
        for word in (f"w{number // 2}", f"v{number // 3}"):
            path = victim.words["SPEC"].with_name(f"{word}.spec")
            path.write_text(SPEC.format(word=word))
            children.append(victim.start("build", "-f", str(path), "SOURCE"))
        for child in children:
            try:
                child.wait(chance.uniform(0.0, 1.5))
            except subprocess.TimeoutExpired:
                child.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        for child in children:
            _, errors = child.communicate()
            assert "Traceback" not in errors
        wait_for_nothing()
        victim.check()
    victim.words["SPEC"].write_text(SPEC.format(word="last"))
    assert victim.run("build", "-f", "SPEC", "SOURCE") == 0


# -- hosts that cannot


def test_who_is_not_root_is_told_before_anything_is_made(enterable: Path, spec: Spec) -> None:
    store = new_store(enterable / "store", base_images("micro"))
    path = enterable / "test.spec"
    path.write_text('((from micro) (run (shell "true")))')
    subprocess.run(["chown", "-R", "65534:65534", enterable], check=True)
    program = Program(store, "native")
    done = subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            *program.argv("build", "-f", path, enterable),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(enterable)},
    )
    assert done.returncode == 2, done.stderr
    assert "only root can: you are not root" in done.stderr
    assert "--store=qemu" in done.stderr
    assert list((store / "result").iterdir()) == []


#: What makes a place like a container without rights of a script in a mount namespace, and what is said there.
PLACES = {
    "fuse": ("", "native steps need /dev/fuse, which is missing"),
    "loop-control": ("mknod /dev/fuse c 10 229", "native steps need /dev/loop-control, which is missing"),
    "loop": (
        "mknod /dev/fuse c 10 229; mknod /dev/loop-control c 10 237",
        "native steps need /dev/loop[0-9]+, which is missing",
    ),
    "cgroups": (
        "for place in /sys/fs/cgroup /sys/fs/cgroup/memory; do mount -o remount,bind,ro $place; done",
        "native steps need cgroups, and /sys/fs/cgroup.* is read-only",
    ),
    "chroot": ("mkdir /dev/top; mount --rbind / /dev/top; exec chroot /dev/top", "do not work in a chroot"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_container_without_rights_is_told_what_is_missing(
    place: str, spec: Spec, source: Path, tmp_path: Path
) -> None:
    program = Program(new_store(tmp_path / "store", base_images("micro")), "native")
    setup, said = PLACES[place]
    nodes = "mount -t tmpfs dev /dev; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9"
    argv = program.argv("build", "-f", spec('((from micro) (run (shell "true")))'), source)
    script = f'{nodes}; {setup} "$@"' if "exec" in setup else f'{nodes}; {setup or ":"}; exec "$@"'
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", *argv], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.search(said, done.stderr)
    assert "--store=qemu" in done.stderr
    assert list((program.store / "result").iterdir()) == []


def test_a_missing_program_is_named_with_its_package(victim: Native, tmp_path: Path) -> None:
    program = "qemu-storage-daemon"
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in ("/usr/sbin", "/usr/bin"):
        for path in Path(folder).iterdir():
            if path.name != program:
                (tools / path.name).unlink(missing_ok=True)
                (tools / path.name).symlink_to(path)
    victim.words["SPEC"].write_text(SPEC.format(word="x"))
    done = Program(victim.root, "native").build(
        victim.words["SPEC"], victim.words["SOURCE"], code=2, env={"PATH": str(tools)}
    )
    assert f"{program} is not installed" in done.stderr
    assert "apt install qemu-system-common" in done.stderr


@pytest.mark.parametrize("os_name", ["windows", "freebsd", "openbsd"])
def test_other_systems_are_refused(os_name: str, victim: Native) -> None:
    text = victim.words["SPEC"].with_name("other.spec")
    text.write_text('((from micro) (shell sh -c) (run (shell "true")))')
    done = Program(victim.root, "native").build(text, victim.words["SOURCE"], "--qemu-guest-os", os_name, code=2)
    assert f"native steps run on Linux only, and this base is {os_name}" in done.stderr
