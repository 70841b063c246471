"""`obuild watch`, in a process of its own, on builds that run in this one."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.builder.recorder import Recorder
from obuild.errors import StepFailed
from obuild.executors.settings import Settings
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support import odd
from tests.support.fakes import FakeExecutor, Run
from tests.support.tmux import terminal

pytestmark = pytest.mark.usefixtures("tiny", "guests")

Build = Callable[[str], LayerId]
Child = subprocess.Popen[str]


@pytest.fixture
def build(store: Store, tmp_path: Path) -> Build:
    def run(ops: str) -> LayerId:
        with Recorder(store, lambda event: None, spec=tmp_path / "s.spec", source=tmp_path) as recorder:
            return Engine(tmp_path, store, Settings(accel="tcg"), recorder).build(spec.parse(ops.encode()))

    return run


def watch(store: Store, *options: str) -> Child:
    argv = [sys.executable, "-m", "obuild", "watch", *options, f"--store=qemu:{store.root}"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(child: Child, text: str) -> str:
    """Read lines up to one that has `text` in it."""
    assert child.stdout
    read = ""
    for line in child.stdout:
        read += line
        if text in line:
            return read
    pytest.fail(f"it ended without {text}: {read}")


def test_a_late_watcher_sees_the_rest_of_a_build(store: Store, build: Build, executor: FakeExecutor) -> None:
    children = []

    def act(run: Run) -> int:
        run.output(b"before\n")
        children.append(watch(store))
        said.append(until(children[0], "before"))
        run.output(b"after\n")
        return 0

    said: list[str] = []
    executor.script = {"b": act}
    last = build("((from tiny) (run (shell a)) (run (shell b)) (run (shell c)))")
    with children[0] as child:
        out, err = child.communicate()
    assert (child.returncode, err) == (0, "")
    name = store.builds.names()[0]
    path = store.root.parent / "s.spec"
    assert said[0] == f"== build {name} of {path}\n2 of 4 steps are done\n/: (run (shell b))\nbefore\n"
    made = store.parents()[last]
    assert out == f'after\n---> saved as "{made}"\n/: (run (shell c))\nc\n---> saved as "{last}"\nGot: "{last}"\n'


def test_ctrl_c_leaves_and_the_build_goes_on(store: Store, build: Build, executor: FakeExecutor) -> None:
    left = []

    def act(run: Run) -> int:
        with watch(store) as child:
            until(child, "(run (shell a))")
            child.send_signal(signal.SIGINT)
            _, err = child.communicate()  # what was just written may come twice
            left.append((err, child.returncode))
        return 0

    executor.script = {"a": act}
    assert build("((from tiny) (run (shell a)))") in store.ids()
    assert left == [("", 0)]


def test_records_name_their_build(store: Store, build: Build, executor: FakeExecutor) -> None:
    children = []

    def act(run: Run) -> int:
        children.append(watch(store, "--progress=json"))
        until(children[0], '"started"')
        return 0

    executor.script = {"a": act}
    last = build("((from tiny) (run (shell a)))")
    with children[0] as child:
        out, _ = child.communicate()
    end = json.loads(out.splitlines()[-1])
    assert (end["build"], end["event"], end["id"]) == (store.builds.names()[0], "done", last)


def test_without_a_build_it_ends(store: Store) -> None:
    assert odd.run(["watch", f"--store=qemu:{store.root}"]) == (0, "no build is running\n", "")


def test_on_a_terminal_it_is_the_live_view(
    store: Store, build: Build, executor: FakeExecutor, tmp_path: Path
) -> None:
    command = shlex.join([sys.executable, "-m", "obuild", "watch", f"--store=qemu:{store.root}"])
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "LANG": "C.UTF-8"}
    with terminal(tmp_path, 80, 20, env) as found:

        def act(run: Run) -> int:
            run.output(b"at work\n")
            found.type(f"{command}; echo code=$?.")
            found.expect("3/4", "(run (shell b))", "| at work", "1 cached")
            return 0

        def fail(run: Run) -> int:
            run.output(b"oh\n")
            return 3

        build("((from tiny))")
        executor.script = {"b": act, "c": fail}
        with pytest.raises(StepFailed):
            build("((from tiny) (run (shell a)) (run (shell b)) (run (shell c)))")
        seen = found.expect("oh", 'the build failed: "c" failed with exit status 3', "code=0.")
        assert "at work" in found.all
        assert found.tell("cursor_flag") == "1"
        assert "| at work" not in seen


def test_builds_that_begin_later_have_a_label(store: Store, build: Build, executor: FakeExecutor) -> None:
    children = []
    said = []

    def outer(run: Run) -> int:
        children.append(watch(store, "--progress=plain"))
        until(children[0], "(run (shell outer))")
        build("((from tiny) (run (shell inner)))")
        return 0

    def inner(run: Run) -> int:
        said.append(until(children[0], "(run (shell inner))"))
        return 0

    executor.script = {"outer": outer, "inner": inner}
    last = build("((from tiny) (run (shell outer)))")
    with children[0] as child:
        out, _ = child.communicate()
    _, second = store.builds.names()
    assert re.search(rf"== build {second} of ", said[0])
    assert re.search(r"\] s: /: \(run \(shell inner\)\)", said[0])
    assert re.search(r"\] s: s: done: [0-9a-f]{64}\n", out)
    assert f'Got: "{last}"' in out
