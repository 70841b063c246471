"""What a step can leave behind in a machine that goes on: the next step finds none of it, as after a boot.

One table for all, left_behind.toml: each row leaves something, and looks for it. What can be undone is undone
while the machine goes on; after all else the next step gets a machine that has just booted.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.program import Program, assert_clean, base_images, new_store

pytestmark = pytest.mark.vm


#: What a row looks for that leaves a process.
SLEEPERS = "ps ax -o args | grep -E '(^|/)[s]leep 99[0-9]{2}$'"


@dataclass(frozen=True)
class Row:
    """`leave` and `look` are commands of a POSIX shell; what `look` prints is to be as after a boot."""

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

#: What begins a row's output.
MARK = "=== "


def rows_of(base: str) -> list[Row]:
    return ROWS if base == "micro" else [*ROWS, *SYSTEMD_ROWS]


def step(*commands: str) -> str:
    """A `run` of a few commands, whatever their status."""
    text = "\n".join(commands).replace("\\", "\\\\").replace('"', '\\"')
    return f'(run (shell "{text}"))'


def looks(*rows: Row) -> list[str]:
    return [f"echo {shlex.quote(MARK + row.name)}; {{ {row.look}; }} 2>&1 || :" for row in rows]


def seen(text: str) -> list[dict[str, str]]:
    """What each step of a build's output has printed, by rows."""
    found = []
    for part in text.split("---> saved as"):
        rows = re.split(rf"^{MARK}(.*)\n", part, flags=re.MULTILINE)
        if len(rows) > 1:
            found.append(dict(zip(rows[1::2], rows[2::2], strict=True)))
    return found


def leave(row: Row) -> str:
    """A step that leaves something, and sees that it is there."""
    return step(f"{{ {row.leave}\n}} >&2 || exit 1", *looks(row))


@dataclass
class Guest:
    """A base image in a store, and what each row sees in it when all was left and then the guest was booted."""

    base: str
    program: Program
    source: Path
    cold: dict[str, str] = field(default_factory=dict)

    def build(self, stages: str, *options: str) -> str:
        """What a build prints."""
        path = self.source.with_name("test.spec")
        path.write_text(stages)
        return self.program.build(path, self.source, *options).stdout

    def check_left(self, row: Row, before: str, why: list[str]) -> None:
        """See that a row has left something, and has been taken for what it is."""
        if row.name != "nothing":
            assert before != self.cold[row.name], f"{row.name}: it leaves nothing that can be seen"
        assert (bool(why), all(why)) == (row.boots, True), (row.name, why)


def guest_of(base: str, folder: Path) -> Guest:
    guest = Guest(base, Program(new_store(folder / "store", base_images(base))), folder / "source")
    guest.source.mkdir()
    # what would end the connection over which cold steps are told what to do is left out
    harmless = [row for row in rows_of(base) if "lo down" not in row.leave and "/dev/null" not in row.leave]
    all_left = step(*(f"( {row.leave}\n) >/dev/null 2>&1 || :" for row in harmless))
    output = guest.build(f"((from {base}) {all_left} {step(*looks(*rows_of(base)))})", "--vm", "boot")
    (guest.cold,) = seen(output)
    return guest


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return guest_of("micro", tmp_path_factory.mktemp("micro"))


def reasons(text: str) -> list[str]:
    """Why the next steps need a boot."""
    return re.findall(r"^the next step needs a boot: (.*)$", text, re.MULTILINE)


def check_chain(guest: Guest, rows: Sequence[Row]) -> None:
    """Have each row leave something and a step of its own look for it, one after the other in one chain."""
    steps = " ".join(f"{leave(row)} {step(*looks(row), 'echo')}" for row in rows)
    output = guest.build(f"((from {guest.base}) {steps})", "--vm", "warm")
    saw = seen(output)
    parts = output.split(f"{MARK}")
    for number, row in enumerate(rows):
        before, after = saw[2 * number], saw[2 * number + 1]
        guest.check_left(row, before[row.name], reasons(parts[2 * number + 1]))
        assert after[row.name].rstrip("\n") == guest.cold[row.name].rstrip("\n"), row.name
    assert_clean(guest.program)


def test_what_is_undone_is_not_there_for_the_next_step(micro: Guest) -> None:
    check_chain(micro, [row for row in ROWS if not row.boots])


def test_what_cannot_be_undone_makes_the_next_step_boot(micro: Guest) -> None:
    rows = [row for row in ROWS if row.boots and not row.long]
    stages = " ".join(f'(build "s{number}" ((from micro) {leave(row)}))' for number, row in enumerate(rows))
    output = micro.build(f"({stages} (from micro) (run (shell true)))", "--vm", "warm")
    found = re.split(rf"^{MARK}(.*)\n", output, flags=re.MULTILINE)
    assert found[1::2] == [row.name for row in rows]
    for row, after in zip(rows, found[2::2], strict=True):
        before = after.partition("the next step needs")[0].partition("---> saved as")[0]
        micro.check_left(row, before, reasons(after))
    assert_clean(micro.program)


@pytest.mark.long
@pytest.mark.parametrize("base", ["micro", "debian-12"])
def test_each_step_finds_what_a_boot_would(base: str, tmp_path: Path) -> None:
    check_chain(guest_of(base, tmp_path), rows_of(base))
