"""Layers that one executor makes and the other one uses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.builder.provision import base_below
from obuild.exports import layer_tree
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support.program import SAVED, Program, assert_clean, base_images, booted_store, layers, new_store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.long,
    pytest.mark.usefixtures("alone"),
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]

MAKE = r"""
set -e
mkdir -p sub/empty 'a name'; echo one >one; chmod 4750 one; ln one again; ln -s ../nowhere sub/link
echo x >"sub/$(printf 'long%.0s' $(seq 50))"; echo y >"$(printf 'new\nline')"; : >nothing
truncate -s 100M sparse; echo end >>sparse; chmod 1711 sub; chmod 2755 'a name'
find . -exec touch -h -d @1000000000.5 {} +
"""

SPEC = """
((build dev
  ((from micro)
   (workdir /out)
   (copy (src make) (dst /make))
   (run (shell "sh /make; echo {word}"))))
 (from micro)
 (user (uid 3) (gid 4))
 (copy (src tree) (dst /copied/tree))
 (copy (from (build dev)) (src /out) (dst /grafted))
 (run (shell "test -u /copied/tree/one && echo {word}")))
"""


def files(store: Path, layer: str, *tops: str) -> dict[str, object]:
    """What a layer has at and below `tops`: by path, all that a copy promises to keep."""
    opened, id = Store.open(store), LayerId(layer)
    found: dict[str, object] = {}
    first: dict[int, str] = {}
    with layer_tree.opened(opened, id, base_below(opened, id).card) as (_, tree):
        for node in tree.walk():
            if node.path.split("/")[0] in tops:
                data = list(node.source.pieces(node)) if node.is_file else None
                target = node.source.target(node) if node.is_link else None
                same_as = first.setdefault(node.inode, node.path)
                mtime = node.mtime if node.path != "copied" else None  # made for the copy
                found[node.path] = (
                    node.mode,
                    node.uid,
                    node.gid,
                    node.size,
                    mtime,
                    node.links,
                    data,
                    target,
                    same_as,
                    node.source.xattrs(node),
                )
    return found


@pytest.fixture
def machines(tmp_path: Path, whole_run: Path) -> Program:
    """A store with a saved machine on the layer of micro."""
    return Program(booted_store(tmp_path / "store", base_images("micro"), whole_run))


def test_copies_are_the_same_and_shared(
    machines: Program, spec: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    native = Program(new_store(tmp_path / "native", base_images("micro")), "native")
    (source / "make").write_text(MAKE)
    (source / "tree").mkdir()
    subprocess.run(["sh", source / "make"], cwd=source / "tree", check=True)

    one = native.build(spec(SPEC.format(word="ran")), source)
    two = machines.build(spec(SPEC.format(word="ran")), source)
    *_, copied, grafted, ran = layers(one.stdout)
    *_, also_copied, also_grafted, also_ran = layers(two.stdout)
    assert (copied, grafted) == (also_copied, also_grafted)
    assert ran != also_ran
    made = files(native.store, grafted, "copied", "grafted")
    assert len(made) == 1 + 2 * 11
    assert made == files(machines.store, grafted, "copied", "grafted")

    # one store, both executors: each makes its commands, and takes all else from the other
    third = Program(machines.store, "native").build(spec(SPEC.format(word="ran")), source)
    assert layers(third.stdout) == layers(one.stdout)
    assert len(SAVED.findall(third.stdout)) == 2
    assert_clean(machines)


def test_each_runs_on_layers_of_the_other(machines: Program, spec: Callable[[str], Path], source: Path) -> None:
    native = Program(machines.store, "native")
    text = spec('((from micro) (workdir /here) (env WORD made) (run (shell "echo $WORD >file; sync")))')
    for maker, user in ((native, machines), (machines, native)):
        layer = SAVED.findall(maker.build(text, source).stdout)[-1]
        looked = user("run", layer, "--", "sh", "-c", 'cat file; echo "$WORD $PWD"; echo gone >file')
        assert looked.stdout == "made\nmade /here\n"
        assert user("run", layer, "--", "cat", "/here/file").stdout == "made\n"
    assert machines("fsck", "--read-data").stdout.startswith("clean: ")
    assert_clean(machines)
