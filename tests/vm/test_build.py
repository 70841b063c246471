"""Builds in real guests."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.program import SAVED, Program, boots, extents, layers, rename_base

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]

USING = re.compile(r'^---> using "([0-9a-f]{64})" from cache$', re.MULTILINE)


def info(image: Path) -> dict[str, object]:
    out = subprocess.run(["qemu-img", "info", "--output=json", image], check=True, capture_output=True).stdout
    parsed: dict[str, object] = json.loads(out)
    return parsed


def test_a_spec_is_built_and_then_comes_from_the_cache(ready: Program, spec: Spec, source: Path) -> None:
    (source / "hello.sh").write_text("echo hello $WHO\n")
    path = spec("""
        ((from micro)
         (workdir /src)
         (copy (src hello.sh) (dst ./))
         (env WHO world)
         (run (shell "sh hello.sh >greeting; cat greeting; echo to stderr >&2; printf no-newline")))
    """)
    first = ready.build(path, source)
    ids = layers(first.stdout)
    assert SAVED.findall(first.stdout) == ids[1:]  # the store had the first, the base
    assert len(ids) == 3
    assert "hello world\nto stderr\nno-newline\n---> saved" in first.stdout
    assert first.stdout.endswith(f'Got: "{ids[-1]}"\n')

    result = ready.store / "result"
    assert {entry.name for entry in result.iterdir()} == set(ids)
    base_layer = info(result / ids[0] / "rootfs/image.qcow2")
    for parent, child in itertools.pairwise(ids):
        layer = info(result / child / "rootfs/image.qcow2")
        assert layer["backing-filename"] == f"../../../result/{parent}/rootfs/image.qcow2"
        assert layer["virtual-size"] == base_layer["virtual-size"]
        subprocess.run(["qemu-img", "check", "-q", result / child / "rootfs/image.qcow2"], check=True)
    assert (result / ids[-1] / "log").read_text() == "hello world\nto stderr\nno-newline"

    again = ready.build(path, source, "-v")
    assert USING.findall(again.stdout) == ids
    assert not SAVED.findall(again.stdout)
    assert "Exec" not in again.stderr  # no QEMU, no qemu-img: no program was started
    assert "hello world\n" in again.stdout  # the old output is shown again

    path.write_text(path.read_text().replace("WHO world", "WHO moon"))
    changed = ready.build(path, source)
    assert USING.findall(changed.stdout) == ids[:2]
    assert len(SAVED.findall(changed.stdout)) == 1
    assert "hello moon" in changed.stdout

    assert not any((ready.store / "result-tmp").iterdir())
    assert not any((ready.store / "state/locks").iterdir())
    listed = ready("ls").stdout
    assert all(id[:12] in listed for id in ids)
    assert ready("logs", ids[-1][:10]).stdout == "hello world\nto stderr\nno-newline"


def test_a_failing_commands_output_is_shown_and_it_is_not_saved(ready: Program, spec: Spec, source: Path) -> None:
    path = spec("""
        ((from micro)
         (run (shell "echo kept"))
         (run (cache (c (target /cache))) (shell "date +%N >/cache/mark; echo out; echo err >&2; exit 3")))
    """)
    done = ready.build(path, source, code=1)
    assert 'Build step failed: "date +%N' in done.stderr
    assert "failed with exit status 3" in done.stderr
    assert "out\nerr\n" in done.stdout
    assert len(SAVED.findall(done.stdout)) == 1  # only the step that succeeded
    assert not any((ready.store / "result-tmp").iterdir())
    assert not any((ready.store / "cache-tmp").iterdir())
    saved = subprocess.run(
        ["tar", "-tf", ready.store / "cache/c-c/cache.tar"], check=True, capture_output=True, text=True
    ).stdout
    assert "./mark" in saved.splitlines()  # kept, as OBuilder does
    assert len(USING.findall(ready.build(path, source, code=1).stdout)) == 2


def test_user_env_shell_and_workdir_apply_to_commands(shared: Program, spec: Spec, source: Path) -> None:
    (source / "say").write_text(r"""
        id; pwd; stat -c %u:%g . /deep; printf '[%s]\n' "$PATH" "$HOME" "$QUOTED" "$0"
        touch /root/x || echo denied; stat -c '%u:%g %n' /home /home/new /home/new/src/say
    """)
    path = spec(r"""
        ((from micro)
         (env PATH /opt/none:/usr/bin:/bin)
         (env HOME "/a home")
         (env QUOTED "it's \"$HOME\" `id`\nsecond line")
         (user (uid 1234) (gid 4321))
         (workdir /home/new)
         (copy (src .) (dst ./src/))
         (workdir "/deep/er/with space")
         (workdir sub)
         (shell /bin/sh -c)
         (run (shell ". /home/new/src/say; echo one; echo two")))
    """)
    out = shared.build(path, source).stdout
    assert "uid=1234 gid=4321 groups=4321\n/deep/er/with space/sub\n1234:4321\n1234:4321\n" in out
    assert "[/opt/none:/usr/bin:/bin]\n[/a home]\n" in out
    assert '[it\'s "$HOME" `id`\nsecond line]\n[/bin/sh]\n' in out
    assert "denied\n0:0 /home\n1234:4321 /home/new\n1234:4321 /home/new/src/say\none\ntwo\n" in out


def test_loader_variables_exist_only_in_the_guest(shared: Program, spec: Spec, source: Path) -> None:
    path = spec("""((from micro) (env LD_PRELOAD /no/such.so) (env LD_DEBUG files)
                   (run (shell "env | grep ^LD_")))""")
    done = shared.build(path, source, "-v")
    assert "LD_PRELOAD=/no/such.so\n" in done.stdout
    assert "ld.so: object '/no/such.so'" in done.stdout  # it reached the command's own programs
    assert "/no/such.so" not in done.stderr  # but no program on the host
    assert "LD_DEBUG=files\n" in done.stdout
    assert "calling init: " in done.stdout
    assert "calling init: " not in done.stderr


def test_a_workdir_that_cannot_be_entered_fails_the_step(shared: Program, spec: Spec, source: Path) -> None:
    done = shared.build(spec('((from micro) (workdir /etc/passwd) (run (shell "echo one")))'), source, code=1)
    assert "failed with exit status 125" in done.stderr
    assert "one\n" not in done.stdout


@pytest.fixture
def web() -> Iterator[int]:
    """A server on the host's 127.0.0.1."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"reached the host\n")

        def log_message(self, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_step_has_no_network_unless_it_asks_for_one(shared: Program, spec: Spec, source: Path, web: int) -> None:
    fetch = f"exec 3<>/dev/tcp/10.0.2.2/{web} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    (source / "fetch.sh").write_text(fetch)
    closed_spec = spec(
        "((from micro) (copy (src fetch.sh) (dst /fetch.sh)) "
        '(run (shell "timeout 20 bash /fetch.sh || echo closed")))'
    )
    assert "closed\n" in shared.build(closed_spec, source).stdout
    other_spec = spec(closed_spec.read_text().replace("(run (shell", "(run (network bridge) (shell"))
    other = shared.build(other_spec, source)
    assert not SAVED.findall(other.stdout)  # any other network is none: it is the same step
    assert "closed\n" in other.stdout
    open_spec = spec(
        "((from micro) (copy (src fetch.sh) (dst /fetch.sh)) "
        '(run (network host) (shell "timeout 20 bash /fetch.sh")))'
    )
    assert "reached the host" in shared.build(open_spec, source).stdout


def test_a_copy_keeps_modes_times_and_links_and_belongs_to_the_user(
    shared: Program, spec: Spec, source: Path
) -> None:
    tree = source / "tree"
    (tree / "sub/deep").mkdir(parents=True)
    (tree / "sub/exec").write_text("x")
    (tree / "sub/exec").chmod(0o750)
    (tree / "sub/deep" / ("long" * 50)).write_text("long name")
    (tree / "link").symlink_to("../nowhere")
    os.link(tree / "sub/exec", tree / "again")
    (tree / "skip.o").write_text("not wanted")
    (tree / "sub/skip.o").write_text("nor this")
    (tree / "spa ce\nline").write_text("odd name")
    (source / "one").write_text("1")
    path = spec("""
        ((from micro)
         (run (shell "mkdir -m 711 /target && ln -s target /alias"))
         (user (uid 7) (gid 8))
         (copy (src tree one) (dst /alias/) (exclude skip.o))
         (copy (src tree) (dst /renamed/dir) (exclude skip.o))
         (copy (src one) (dst /etc/uno))
         (run (shell "stat -c '%A %u:%g %n' /target /target/tree/sub/exec /target/one /renamed /etc /etc/uno; \
stat -c %h /target/tree/again; readlink /target/tree/link /alias; cat /renamed/dir/sub/deep/*; \
find /target/tree /renamed -name 'skip*'; cat /target/tree/spa*")))
    """)
    out = shared.build(path, source).stdout
    assert "drwx--x--x 0:0 /target\n" in out  # an existing folder keeps its owner and mode
    assert "-rwxr-x--- 7:8 /target/tree/sub/exec\n" in out
    assert "-rw-r--r-- 7:8 /target/one\n" in out
    assert "drwxr-xr-x 7:8 /renamed\n" in out
    assert "drwxr-xr-x 0:0 /etc\n" in out
    assert "-rw-r--r-- 7:8 /etc/uno\n" in out
    assert "2\n../nowhere\ntarget\nlong nameodd name" in out


def test_a_folder_keeps_its_mode_under_a_new_name(shared: Program, spec: Spec, source: Path) -> None:
    (source / "secret/in").mkdir(parents=True)
    (source / "secret/in").chmod(0o750)
    (source / "secret").chmod(0o700)
    source.chmod(0o700)
    path = spec("""
        ((build b ((from micro) (run (shell "mkdir -m 700 /secret && mkdir -m 750 /secret/in"))))
         (from micro)
         (run (shell "mkdir -m 711 /there"))
         (user (uid 7) (gid 8))
         (copy (src secret) (dst /a))
         (copy (src secret) (dst /b/))
         (copy (from (build b)) (src /secret) (dst /c))
         (copy (src secret) (dst /new/d))
         (copy (src secret) (dst /there))
         (copy (from (build b)) (src /secret) (dst /there))
         (copy (src .) (dst /e))
         (copy (src .) (dst /))
         (user (uid 0) (gid 0))
         (run (shell "stat -c '%a %u:%g %n' /a /a/in /b/secret /c /c/in /new /new/d \
/there /there/in /e /e/secret /")))
    """)
    out = shared.build(path, source).stdout
    assert (
        """
700 7:8 /a
750 7:8 /a/in
700 7:8 /b/secret
700 7:8 /c
750 7:8 /c/in
755 7:8 /new
700 7:8 /new/d
711 0:0 /there
750 7:8 /there/in
755 7:8 /e
700 7:8 /e/secret
755 0:0 /
"""
        in out
    )


def test_caches_outlive_steps_and_stay_out_of_layers(shared: Program, spec: Spec, source: Path) -> None:
    def run(command: str) -> str:
        path = spec(f"""((from micro) (user (uid 5) (gid 5))
            (run (cache (one (target /var/one)) (../two (target /two))) (shell "{command}")))""")
        return shared.build(path, source).stdout

    run("echo 1 >/var/one/file; ln -s file /var/one/link; echo 2 >/two/file; chmod 600 /two/file")
    out = run("cat /var/one/link; stat -c '%A %u' /two/file; echo V >/two/file")
    assert "1\n-rw------- 5\n" in out
    assert "\nV\n" in run("cat /two/file; rm /var/one/file")  # overwritten in place: nothing grew
    after = shared.build(
        spec("""((from micro) (run (cache (one (target /var/one))) (shell "test -e /var/one/file || echo gone"))
                (run (shell "ls -A /var/one")))"""),
        source,
    )
    assert "gone\n" in after.stdout
    assert "link" not in after.stdout
    assert sorted(entry.name for entry in (shared.store / "cache").iterdir()) == ["c-..%2Ftwo", "c-one"]


@pytest.mark.long
def test_nested_caches_work_in_any_order(shared: Program, spec: Spec, source: Path) -> None:
    def run(command: str) -> str:
        path = spec(f"""((from micro) (run (cache (inner (target /outer/inner)) (outer (target /outer)))
            (shell "{command}")))""")
        return shared.build(path, source).stdout

    run("echo 1 >/outer/inner/one; echo 2 >/outer/two")
    assert "./inner\n./inner/one\n./two\n" in run("cd /outer && find . | sort")
    alone = spec('((from micro) (run (cache (outer (target /outer))) (shell "find /outer -type f")))')
    assert "/outer/two\n" in shared.build(alone, source).stdout
    assert "inner/one" not in shared.build(alone, source).stdout


def test_a_cache_over_a_link_to_the_root_is_refused(shared: Program, spec: Spec, source: Path) -> None:
    path = spec("""((from micro) (run (shell "ln -s / /link"))
                    (run (cache (c (target /link))) (shell "echo x >/lands-in-the-layer")))""")
    assert "mounting cache c failed in the guest: /link is the root" in shared.build(path, source, code=1).stderr


def test_a_background_process_does_not_delay_a_step(shared: Program, spec: Spec, source: Path) -> None:
    path = spec('((from micro) (run (shell "sleep 100000 & echo started")))')
    assert "started\n" in shared.build(path, source).stdout


def test_a_base_is_identified_by_its_content_and_can_be_pinned(fresh: Program, spec: Spec, source: Path) -> None:
    wrong = fresh.build(spec(f"((from micro@sha256:{'0' * 64}))"), source, code=2)
    digest = re.search(r"micro@(sha256:[0-9a-f]{64})", wrong.stderr)
    assert digest
    first = fresh.build(spec(f"((from micro@{digest[1]}))"), source).stdout
    rename_base(fresh.store, "micro", "other")
    second = fresh.build(spec("((from other))"), source).stdout
    assert USING.findall(second) == SAVED.findall(first)


def test_healthcheck_passes_and_leaves_no_layer(ready: Program) -> None:
    done = ready("healthcheck")
    assert done.stdout.endswith("Healthcheck passed\n")
    assert len(list((ready.store / "result").iterdir())) == 1  # the base


def test_delete_removes_a_layer_with_its_children_and_clean_removes_all(
    ready: Program, spec: Spec, source: Path
) -> None:
    out = ready.build(spec('((from micro) (run (shell "true")) (run (shell "echo 2")))'), source).stdout
    ids = layers(out)
    gone = ready("rm", ids[1][:12]).stdout
    assert gone == f"Removing {ids[2]}\nRemoving {ids[1]}\n"
    assert [entry.name for entry in (ready.store / "result").iterdir()] == [ids[0]]
    assert ready("clean").stdout == f"Removing {ids[0]}\nRemoved 1 item\n"
    assert "no layer has the id" in ready("logs", ids[0], code=2).stderr


def test_a_secret_exists_for_one_command_and_leaves_no_trace(
    ready: Program, spec: Spec, source: Path, tmp_path: Path, kept_warm: bool
) -> None:
    value = b"tH3-s3cr3t-v4lu3-0f-th1s-t3st"
    (tmp_path / "token").write_bytes(value + b"\n")
    path = spec("""
        ((from micro)
         (user (uid 9) (gid 9))
         (run (secrets (token (target /new/folder/token)) (other (target /etc/hostname)))
              (shell "cat /proc/sys/kernel/random/boot_id
cd /new/folder; stat -c '%u %a' token; echo x 2>/dev/null >>token || echo read-only; \
wc -c </new/folder/token; cat /new/folder/token /etc/hostname"))
         (user (uid 0) (gid 0))
         (run (shell "ls -d /new /run/obuild-secrets || echo gone
cat /etc/hostname /proc/sys/kernel/random/boot_id")))
    """)
    assert "--secret token:FILE" in ready.build(path, source, code=2).stderr
    options = ("--secret", f"token:{tmp_path / 'token'}", "--secret", f"other:{tmp_path / 'token'}", "-v")
    done = ready.build(path, source, *options)
    assert "9 400\nread-only\n30\n***\n***\n" in done.stdout
    assert "\ngone\nmicro\n" in done.stdout
    # The machine that saw the secret is neither saved nor continued: another one was booted from the layer's disk.
    assert len({*boots(done)}) == 2
    with_secret, after = layers(done.stdout)[-2:]
    if kept_warm:
        assert (ready.store / "warm" / after).is_dir()
        assert (ready.store / "warm" / with_secret / "disk.qcow2").is_file()
    assert value.decode() not in done.stdout + done.stderr
    for found in ready.store.rglob("*"):
        if found.suffix == ".qcow2" and "result" in found.parts:
            raw = tmp_path / "raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", found, raw], check=True)
            assert all(value not in data for data in extents(raw)), found
        elif found.is_file():
            assert all(value not in data for data in extents(found)), found
