"""Cleaning a copy of a layer: what the machine is asked, and what users see."""

from __future__ import annotations

from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.builder.provision import Machines
from obuild.builder.sysprep import Cleaner
from obuild.errors import ObuildError, UsageError
from obuild.events import SILENT
from obuild.executors.settings import Settings
from obuild.exports.cleaning.operations import pick
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support import odd
from tests.support.fakes import Act, FakeExecutor, Heard, Run


class Always(dict[str, Act]):
    """A script for FakeExecutor that answers every command in one way."""

    def __init__(self, answer: Act) -> None:
        self.answer = answer

    def get(self, text: str, default: object = None) -> Act:
        return self.answer


@pytest.fixture
def layer(store: Store, tiny: Path, tmp_path: Path, executor: FakeExecutor) -> LayerId:
    stage = spec.parse(b"((from tiny) (user (uid 7) (gid 8)) (workdir /w) (env A 1) (run (shell made)))")
    made = Engine(tmp_path, store, Settings(accel="tcg"), Heard()).build(stage)
    executor.seen.clear()
    executor.commands.clear()
    return made


def cleaner(store: Store, layer: LayerId, os: str = "") -> Cleaner:
    return Cleaner(store, Machines(store, Settings(accel="tcg", os=os)), layer, pick(""), SILENT)


def test_a_copy_is_cleaned_by_root_and_frozen(store: Store, layer: LayerId, executor: FakeExecutor) -> None:
    with cleaner(store, layer).cleaned() as image:
        assert image.is_file()
        assert not image.is_relative_to(store.result)
    assert not image.exists()
    (command,) = executor.commands
    assert (command.user, command.cwd, command.env, command.network) == (spec.UnixUser(0, 0), "/", (), False)
    assert executor.seen[0] == "open"
    assert executor.seen[2:] == ["finished", "sealed"]
    assert list(store.cache_tmp.iterdir()) == []


def test_a_dry_run_lists_what_would_go(store: Store, layer: LayerId, executor: FakeExecutor) -> None:
    def answer(run: Run) -> int:
        assert "dry=yes" in run.command.argv[-1]
        run.output(b"tmp\tremove /tmp/a\nsome noise\nlogs\tempty /var/log/b\n")
        return 0

    executor.script = Always(answer)
    assert cleaner(store, layer).listed() == [("tmp", "remove /tmp/a"), ("logs", "empty /var/log/b")]
    assert "finished" not in executor.seen


def test_an_operation_that_fails_is_named(store: Store, layer: LayerId, executor: FakeExecutor) -> None:
    def answer(run: Run) -> int:
        run.output(b"logs: its last command failed with status 1\n")
        return 1

    executor.script = Always(answer)
    with pytest.raises(ObuildError) as caught, cleaner(store, layer).cleaned():
        pass
    assert caught.value.message == (
        f"the layer {layer[:12]} could not be cleaned: logs: its last command failed with status 1"
    )
    assert list(store.cache_tmp.iterdir()) == []


@pytest.mark.parametrize("os", ["windows", "freebsd", "openbsd"])
def test_obuild_says_which_systems_it_cannot_clean(
    store: Store, layer: LayerId, executor: FakeExecutor, os: str
) -> None:
    with pytest.raises(UsageError) as caught:
        cleaner(store, layer, os).listed()
    assert caught.value.message.startswith("obuild does not know how to clean ")
    assert caught.value.hint == "export it without --sysprep"
    assert executor.seen == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--keep-user"], "--keep-user needs --sysprep"),
        (["--dry-run"], "--dry-run needs --sysprep"),
        (["--sysprep=-tpm"], "--sysprep: there is no operation 'tpm'"),
    ],
)
def test_wrong_wishes_are_refused_before_a_machine_starts(
    store: Store, layer: LayerId, tmp_path: Path, args: list[str], said: str
) -> None:
    out = tmp_path / "out"
    code, _, err = odd.run(["export", layer, f"--store=qemu:{store.root}", "--type=raw", f"-o{out}", *args])
    assert (code, said in err, out.exists()) == (2, True, False), err


def test_sysprep_may_stand_alone_before_the_layer(store: Store, layer: LayerId, tmp_path: Path) -> None:
    where = [f"--store=qemu:{store.root}", f"-o{tmp_path / 'out'}", "--qemu-accel=tcg"]
    code, out, err = odd.run(["export", *where, "--type=raw", "--sysprep", layer])
    assert (code, out) == (0, f"{tmp_path / 'out' / layer[:12]}.raw\n"), err
    assert "obuild: cleaning: ssh-hostkeys, machine-id" in err
