"""Specs with builds inside them, in real guests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.program import SAVED, Program, assert_clean, machines, running

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]

MAKE = r"""
set -e
mkdir -p /out/sub/empty '/out/a name' && cd /out
echo one >one; chmod 4750 one; ln one again; ln -s ../nowhere sub/link
echo x >"sub/$(printf 'long%.0s' $(seq 50))"; echo skip >sub/skip.o
truncate -s 100M sparse; echo end >>sparse
chmod 711 sub; printf %s "$1" >'a name/variant'
"""

LOOK = r"""
cd "$1"; find . -mindepth 1 -printf '%y %m %U:%G %n %l %P\n' | sort -k6
du -k sparse | cut -f1; tail -c4 sparse; cat 'a name/variant'
"""


def test_files_are_copied_from_a_build_unchanged(ready: Program, spec: Spec, source: Path) -> None:
    (source / "make").write_text(MAKE)
    (source / "look").write_text(LOOK)

    def text(variant: str, last: str) -> str:
        return f"""
            ((build dev
              ((from micro)
               (copy (src make) (dst /make))
               (run (shell "sh /make 1; echo {variant}"))))
             (from micro)
             (user (uid 3) (gid 4))
             (copy (src look) (dst /look))
             (copy (from (build dev)) (src /out) (dst /got/dir) (exclude skip.o))
             (copy (from (build dev)) (src out/one /bin/tar) (dst /many/))
             (copy (from (build dev)) (src out/one) (dst /many/uno))
             (run (shell "sh /look /got/dir; stat -c '%a %u:%g %n' /many/* /got; {last}")))"""

    first = ready.build(spec(text("first", "echo 1")), source)
    out = first.stdout
    assert '(build "dev" …)\n' in out
    assert '--> finished "dev"\n' in out
    for line in (
        "d 755 3:4 2  a name",
        "f 4750 3:4 2  again",
        "f 4750 3:4 2  one",
        "d 711 3:4 3  sub",
        "d 755 3:4 2  sub/empty",
        f"f 644 3:4 1  sub/{'long' * 50}",
        "l 777 3:4 1 ../nowhere sub/link",
    ):
        assert f"{line}\n" in out
    assert "skip" not in out.split("finished")[1].replace("skip.o)", "")
    kilobytes, _ = out.split("\nend\n1", 1)
    assert int(kilobytes.rpartition("\n")[2]) < 1000  # still sparse
    assert "4750 3:4 /many/one\n755 3:4 /many/tar\n4750 3:4 /many/uno\n755 3:4 /got\n" in out
    assert_clean(ready)

    again = ready.build(spec(text("first", "echo 1")), source, "-v")
    assert "Exec" not in again.stderr  # the manifest is remembered: nothing boots
    assert not SAVED.findall(again.stdout)

    other = ready.build(spec(text("second", "echo 1")), source)
    assert len(SAVED.findall(other.stdout)) == 1  # only the inner build: its files are the same


def test_all_stages_are_built_in_parallel(ready: Program, spec: Spec, source: Path) -> None:
    path = spec("""
        ((build a ((from micro) (run (shell "echo I am a >/a; cat /a"))))
         (build b ((from micro) (run (shell "echo I am b >/b; cat /b"))))
         (build c ((build a ((from micro) (run (shell "echo inner >/a"))))
                   (from micro) (copy (from (build a)) (src /a) (dst /c))))
         (from micro)
         (copy (from (build c)) (src /c) (dst /from/))
         (copy (from (build a)) (src /a) (dst /from/))
         (workdir /whole)
         (copy (from (build a)) (src .) (dst ./) (exclude bin boot lib usr var))
         (run (shell "head /from/*; ls; ls -A proc sys dev; cat a; find / -xdev -name image.qcow2")))
    """)
    out = ready.build(path, source, "--jobs", "3").stdout
    assert "==> /from/a <==\nI am a\n\n==> /from/c <==\ninner\n" in out
    assert "I am b\n" in out  # built although nothing needs it
    whole, machines_own = out.partition("inner\n")[2].split("\ndev:\n")
    assert {"a", "dev", "etc", "proc", "root", "sys"} < set(whole.split())  # the build's file system from its root
    assert not {"bin", "boot", "lib", "usr", "var"} & set(whole.split())
    assert machines_own.startswith("\nproc:\n\nsys:\nI am a\n---> saved")  # without what its guest mounts
    lines = [line for line in out.splitlines() if not line.startswith("KVM cannot be used")]
    for name in ("a", "b"):  # each stage's output is in one piece
        assert lines[lines.index(f'(build "{name}" …)') + 1] == "(from micro)"
    assert_clean(ready)


def test_a_failing_stage_ends_the_others(ready: Program, spec: Spec, source: Path) -> None:
    path = spec("""
        ((build slow ((from micro) (run (shell "sleep 100000"))))
         (build bad ((from micro) (run (shell "echo bad; exit 7"))))
         (from micro))
    """)
    done = ready.build(path, source, "--jobs", "2", code=1)
    assert "failed with exit status 7" in done.stderr
    assert_clean(ready)


def test_an_interrupt_ends_all_stages(ready: Program, spec: Spec, source: Path) -> None:
    stage = '((from micro) (run (shell "echo started; sleep 100000 # {}")))'
    path = spec(f"((build a {stage.format(1)}) (build b {stage.format(2)}) (from micro))")
    with running(ready, path, source, "started", "--jobs", "2") as child:
        assert machines(ready.store)
        child.terminate()
        _, errors = child.communicate()
    assert child.returncode == 130
    assert b"Traceback" not in errors
    assert_clean(ready)


def test_a_file_missing_in_a_build_is_reported(shared: Program, spec: Spec, source: Path) -> None:
    path = spec("((build a ((from micro))) (from micro) (copy (from (build a)) (src /nosuch) (dst /x)))")
    done = shared.build(path, source, code=1)
    assert "nosuch" in done.stderr
    assert "copying from the build a" in done.stderr
    assert_clean(shared)
