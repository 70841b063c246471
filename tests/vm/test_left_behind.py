"""What a step can leave behind in a machine that continues: the next step finds none of it, as after a boot.

Each row of the table left_behind.toml leaves something, and looks for it. What can be undone is undone while the
machine continues; after anything else, the next step gets a freshly booted machine.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.program import Program, assert_clean, base_images, booted_store, new_store

pytestmark = pytest.mark.vm


#: What a row looks for if it leaves a process.
SLEEPERS = "ps ax -o args | grep -E '(^|/)[s]leep 99[0-9]{2}$'"


@dataclass(frozen=True)
class Row:
    """`leave` and `look` are commands of a POSIX shell. `look` must print the same as after a boot."""

    name: str
    leave: str
    look: str
    boots: bool
    long: bool = False


def row(
    name: str, leave: str, look: str = "", sleeps: bool = False, boots: bool = False, long: bool = False
) -> Row:
    if sleeps:
        leave, look = f"{leave}\nuntil {SLEEPERS}; do sleep 0.05; done", f"{SLEEPERS} || echo none"
    return Row(name, leave, look, boots, long)


TABLE = tomllib.loads(Path(__file__).with_name("left_behind.toml").read_text())
ROWS = [row(**about) for about in TABLE["row"]]
SYSTEMD_ROWS = [row(**about) for about in TABLE["systemd"]]

#: The start of a row's output.
MARK = "=== "


def rows_of(base: str) -> list[Row]:
    return ROWS if base == "micro" else [*ROWS, *SYSTEMD_ROWS]


def step(*commands: str) -> str:
    """Return a `run` of several commands, whatever their status."""
    text = "\n".join(commands).replace("\\", "\\\\").replace('"', '\\"')
    return f'(run (shell "{text}"))'


def looks(*rows: Row) -> list[str]:
    return [f"echo {shlex.quote(MARK + row.name)}; {{ {row.look}; }} 2>&1 || :" for row in rows]


def seen(text: str) -> list[dict[str, str]]:
    """Split the output of each step of a build by rows."""
    found = []
    for part in text.split("---> saved as"):
        rows = re.split(rf"^{MARK}(.*)\n", part, flags=re.MULTILINE)
        if len(rows) > 1:
            found.append(dict(zip(rows[1::2], rows[2::2], strict=True)))
    return found


def leave(row: Row, *before: str) -> str:
    """Return a step that leaves something, after some commands, and checks that it is there."""
    return step(*before, f"{{ {row.leave}\n}} >&2 || exit 1", *looks(row))


@dataclass
class Guest:
    """A base image in a store, and what each row prints there after all of it was left and the guest booted."""

    base: str
    program: Program
    source: Path
    cold: dict[str, str] = field(default_factory=dict)

    def build(self, stages: str, *options: str) -> str:
        """Return what a build prints."""
        path = self.source.with_name("test.spec")
        path.write_text(stages)
        return self.program.build(path, self.source, *options).stdout

    def check_left(self, row: Row, before: str, why: list[str]) -> None:
        """Check that a row has left something, and that obuild treated it as expected."""
        if row.name != "nothing":
            assert before != self.cold[row.name], f"{row.name}: it leaves nothing that can be seen"
        assert (bool(why), all(why)) == (row.boots, True), (row.name, why)


def guest_of(base: str, store: Path, rows: Sequence[Row]) -> Guest:
    guest = Guest(base, Program(store), store.with_name("source"))
    guest.source.mkdir()
    # leave out what would end the SSH connection of cold steps
    harmless = [row for row in rows if "lo down" not in row.leave and "/dev/null" not in row.leave]
    all_left = step(*(f"( {row.leave}\n) >/dev/null 2>&1 || :" for row in harmless))
    output = guest.build(f"((from {base}) {all_left} {step(*looks(*rows))})", "--vm", "boot")
    (guest.cold,) = seen(output)
    return guest


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory, whole_run: Path) -> Guest:
    store = tmp_path_factory.mktemp("micro") / "store"
    booted_store(store, base_images("micro"), whole_run)
    return guest_of("micro", store, [row for row in ROWS if not row.long])


def reasons(text: str) -> list[str]:
    """Return the reasons why the next steps need a boot."""
    return re.findall(r"^the next step needs a boot: (.*)$", text, re.MULTILINE)


def check_chain(guest: Guest, rows: Sequence[Row]) -> None:
    """Have each row leave something and the next step look for it, all in one chain.

    The step that looks for what one row has left then leaves what the next row says.
    """
    steps = [leave(rows[0])]
    steps += [leave(row, *looks(before), f"echo '{MARK}'") for before, row in pairwise(rows)]
    steps.append(step(*looks(rows[-1])))
    output = guest.build(f"((from {guest.base}) {' '.join(steps)})", "--vm", "warm")
    found = re.split(rf"^{MARK}(.+)\n", output, flags=re.MULTILINE)
    assert found[1::2] == [row.name for row in rows for _ in ("leave", "look")]
    for row, before, after in zip(rows, found[2::4], found[4::4], strict=True):
        guest.check_left(row, printed(before), reasons(before))
        assert printed(after).rstrip("\n") == guest.cold[row.name].rstrip("\n"), row.name
    assert_clean(guest.program)


def printed(text: str) -> str:
    """Return what the look of a row has printed, without what obuild and later commands print after it."""
    return re.split(rf"^(?:the next step needs a boot|---> saved as|{MARK}$)", text, flags=re.MULTILINE)[0]


def test_what_can_be_undone_is_gone_in_the_next_step(micro: Guest) -> None:
    check_chain(micro, [row for row in ROWS if not row.boots and not row.long])


def test_what_cannot_be_undone_makes_the_next_step_boot(micro: Guest) -> None:
    rows = [row for row in ROWS if row.boots and not row.long]
    stages = " ".join(f'(build "s{number}" ((from micro) {leave(row)}))' for number, row in enumerate(rows))
    output = micro.build(f"({stages} (from micro) (run (shell true)))", "--vm", "warm")
    found = re.split(rf"^{MARK}(.*)\n", output, flags=re.MULTILINE)
    assert found[1::2] == [row.name for row in rows]
    for row, after in zip(rows, found[2::2], strict=True):
        micro.check_left(row, printed(after), reasons(after))
    assert_clean(micro.program)


@pytest.mark.long
@pytest.mark.parametrize("base", ["micro", "debian-12"])
def test_each_step_finds_the_state_after_a_boot(base: str, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", base_images(base))
    check_chain(guest_of(base, store, rows_of(base)), rows_of(base))
