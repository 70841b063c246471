"""The memory of another process that maps a file privately, as QEMU does: what differs, saved and restored."""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from obuild.executors.qemu import memory as ram
from obuild.executors.qemu.memory import PAGE, Ram
from tests.support.fakes import other_process

PAGES = 2048
SIZE = PAGES * PAGE

#: A page that is read and not written to.
READ = 1500

#: Maps `file`, or zeros, privately; fills the pages of each run, only reads one page, and then follows commands:
#: `dump PATH` writes the whole memory to a file.
CHILD = """
import mmap, sys
path, size, page, runs = {path!r}, {size}, {page}, {runs}
if path:
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
else:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # nor is it one with what is mapped beside it then
for first, pages, byte in runs:
    memory[first * page : (first + pages) * page] = bytes([byte]) * (pages * page)
memory[{read} * page]
print("ready", flush=True)
for line in sys.stdin:
    with open(line.strip(), "wb") as out:
        out.write(memory)
    print("done", flush=True)
"""

#: First page, number of pages, value of their bytes. One run is longer than a chunk, one ends at the end of the
#: memory, and one writes zeros over something else.
RUNS = [(0, 1, 0x11), (3, 2, 0x22), (100, 1100, 0x33), (1300, 1, 0), (PAGES - 2, 2, 0x44)]
CHANGED = [(first, pages) for first, pages, _ in RUNS]


@dataclass
class Other:
    """Another process with such a memory."""

    pid: int
    dump: Callable[[], bytes]
    end: Callable[[], object]


Start = Callable[..., Other]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The initial content of memories, without zeros."""
    path = tmp_path / "ram"
    path.write_bytes(random.Random(1).randbytes(SIZE).replace(b"\0", b"x"))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(file: Path | None, *runs: tuple[int, int, int]) -> Other:
            code = CHILD.format(path=str(file or ""), size=SIZE, page=PAGE, runs=runs, read=READ)
            child = stack.enter_context(other_process(code))
            stdin, stdout = child.stdin, child.stdout
            assert stdin is not None
            assert stdout is not None
            assert stdout.readline() == "ready\n"

            def dump() -> bytes:
                print(tmp_path / "dump", file=stdin, flush=True)
                assert stdout.readline() == "done\n"
                return (tmp_path / "dump").read_bytes()

            def end() -> None:
                child.kill()
                child.wait()

            return Other(child.pid, dump, end)

        yield begin


def filled(data: bytes, *runs: tuple[int, int, int]) -> bytes:
    """Return the content of a memory that started as `data`."""
    memory = bytearray(data)
    for first, pages, byte in runs:
        memory[first * PAGE : (first + pages) * PAGE] = bytes([byte]) * (pages * PAGE)
    return bytes(memory)


def test_written_pages_have_changed_and_read_pages_have_not(file: Path, start: Start) -> None:
    assert ram.of(start(file).pid, file, SIZE).changed() == []
    assert ram.of(start(file, *RUNS).pid, file, SIZE).changed() == CHANGED


def test_a_memory_of_zeros_has_changed_where_it_was_written(start: Start) -> None:
    found = ram.of(start(None, *RUNS).pid, None, SIZE).changed()
    assert [run for run in found if run != (READ, 1)] == CHANGED  # a zero page that was read may count


def test_a_delta_makes_another_memory_equal(file: Path, start: Start, tmp_path: Path) -> None:
    one, other = start(file, *RUNS), start(file)
    memory = ram.of(one.pid, file, SIZE)
    memory.write_delta(memory.changed(), tmp_path / "delta")
    assert (tmp_path / "delta").stat().st_size == 16 + sum(16 + pages * PAGE for _, pages in CHANGED)
    copy = ram.of(other.pid, file, SIZE)
    copy.apply(tmp_path / "delta")
    assert other.dump() == one.dump() == filled(file.read_bytes(), *RUNS)
    assert copy.changed() == CHANGED  # so it can be saved again
    assert file.read_bytes() == filled(file.read_bytes())


def test_an_empty_delta_changes_nothing(file: Path, start: Start, tmp_path: Path) -> None:
    memory = ram.of(start(file).pid, file, SIZE)
    memory.write_delta([], tmp_path / "delta")
    memory.apply(tmp_path / "delta")
    assert memory.changed() == []


def test_a_saved_memory_is_its_file_with_the_changed_pages(file: Path, start: Start, tmp_path: Path) -> None:
    one = start(file, *RUNS)
    memory = ram.of(one.pid, file, SIZE)
    memory.write_all(memory.changed(), file, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == one.dump() == filled(file.read_bytes(), *RUNS)


def test_a_saved_memory_that_started_as_zeros_has_holes(start: Start, tmp_path: Path) -> None:
    one = start(None, *RUNS)
    memory = ram.of(one.pid, None, SIZE)
    memory.write_all(memory.changed(), None, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == one.dump() == filled(bytes(SIZE), *RUNS)
    written = sum(pages for _, pages, byte in RUNS if byte) * PAGE
    assert written <= (tmp_path / "whole").stat().st_blocks * 512 < written + (1 << 20)


# -- damaged deltas


def delta(*runs: tuple[int, int], magic: bytes = b"OBUILDR1", count: int | None = None, pages: int = 2) -> bytes:
    head = magic + struct.pack("<Q", len(runs) if count is None else count)
    return head + b"".join(struct.pack("<QQ", *run) for run in runs) + b"\x55" * (pages * PAGE)


GOOD = delta((1, 1), (7, 1))


BAD = {
    "nothing": (b"", "not a delta"),
    "a foreign one": (delta((0, 1), magic=b"OBUILDR2"), "not a delta"),
    "zeros": (bytes(PAGE), "not a delta"),
    "fewer runs than it says": (delta((0, 1), count=2, pages=0), "truncated"),
    "more runs than there are pages": (delta((0, 1), count=PAGES + 1), "truncated"),
    "more runs than there can be": (delta((0, 1), count=(1 << 64) - 1), "truncated"),
    "too long a run": (delta((0, PAGES + 1)), "belongs to a larger memory"),
    "a run behind the end": (delta((PAGES, 1)), "belongs to a larger memory"),
    "a run over the end": (delta((PAGES - 1, 2)), "belongs to a larger memory"),
    "a run far away": (delta(((1 << 64) - 1, 1)), "belongs to a larger memory"),
    "a run without an end": (delta((1, (1 << 64) - 1)), "belongs to a larger memory"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_delta_is_refused(file: Path, start: Start, tmp_path: Path, name: str) -> None:
    content, why = BAD[name]
    (tmp_path / "delta").write_bytes(content)
    memory = ram.of(start(file).pid, file, SIZE)
    with pytest.raises(ValueError, match=why):
        memory.apply(tmp_path / "delta")


def test_a_truncated_delta_is_refused(file: Path, start: Start, tmp_path: Path) -> None:
    memory = ram.of(start(file).pid, file, SIZE)
    table = 16 + 2 * 16
    for size in (*range(table + 2), table + PAGE - 1, table + PAGE, len(GOOD) - 1):
        (tmp_path / "delta").write_bytes(GOOD[:size])
        with pytest.raises(ValueError, match="not a delta" if size < 16 else "truncated"):
            memory.apply(tmp_path / "delta")


def test_an_undamaged_delta_is_applied(file: Path, start: Start, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(GOOD)
    one = start(file)
    ram.of(one.pid, file, SIZE).apply(tmp_path / "delta")
    assert one.dump() == filled(file.read_bytes(), (1, 1, 0x55), (7, 1, 0x55))


# -- memories that do not exist


def test_a_memory_mapped_in_another_way_is_not_found(file: Path, start: Start, tmp_path: Path) -> None:
    pid = start(file).pid
    (tmp_path / "other").write_bytes(file.read_bytes())
    for path, size in ((file, SIZE - PAGE), (file, 2 * SIZE), (tmp_path / "other", SIZE), (None, SIZE - PAGE)):
        with pytest.raises(FileNotFoundError, match="mapped its memory"):
            ram.of(pid, path, size)


def test_a_process_that_is_gone_has_no_memory(file: Path, start: Start, tmp_path: Path) -> None:
    one = start(file, *RUNS)
    memory = ram.of(one.pid, file, SIZE)
    (tmp_path / "delta").write_bytes(GOOD)
    one.end()
    actions: list[Callable[[], object]] = [
        lambda: ram.of(one.pid, file, SIZE),
        memory.changed,
        lambda: memory.write_delta(CHANGED, tmp_path / "new"),
        lambda: memory.write_all(CHANGED, file, tmp_path / "new"),
        lambda: memory.apply(tmp_path / "delta"),
    ]
    for action in actions:
        with pytest.raises(OSError, match=r"No such (file|process)"):
            action()


def test_an_unmapped_address_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot copy the memory of QEMU: Bad address"):
        Ram(os.getpid(), mmap.PAGESIZE, SIZE).write_delta([(0, 1)], tmp_path / "delta")


def test_a_full_disk_is_an_error(file: Path, start: Start) -> None:
    memory = ram.of(start(file, *RUNS).pid, file, SIZE)
    with pytest.raises(OSError, match="No space left"):
        memory.write_delta(CHANGED, Path("/dev/full"))
