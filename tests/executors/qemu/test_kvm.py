"""The choice of the accelerator: probed once for each boot of the host, noted once, never guessed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import pytest

from obuild.errors import UsageError
from obuild.executors.qemu import kvm
from obuild.host import process, stamp
from tests.support.fakes import HALT, boot_disk

needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-system-x86_64") and shutil.which("setpriv")), reason="needs QEMU and setpriv"
)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def choose(tmp_path: Path, notes: list[str]) -> Callable[[str], str]:
    """`kvm.choose` with the test's own memo."""
    return lambda wanted: kvm.choose(wanted, "x86_64", memo=tmp_path / "accel.json", note=notes.append)


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Make the probe return this; return the list of its runs."""

    def answer(problem: str) -> list[str]:
        runs: list[str] = []

        def probe(arch: str) -> str:
            runs.append(arch)
            return problem

        monkeypatch.setattr(kvm, "probe", probe)
        monkeypatch.setattr(kvm, "_qemu_stamp", lambda arch: "stamp")
        return runs

    return answer


Choose = Callable[[str], str]
Verdict = Callable[[str], list[str]]


def test_tcg_is_chosen_without_a_probe(choose: Choose, verdict: Verdict) -> None:
    runs = verdict("")
    assert choose("tcg") == "tcg"
    assert runs == []


@pytest.mark.parametrize("wanted", ["auto", "kvm"])
def test_a_working_kvm_is_chosen_without_a_note(
    choose: Choose, verdict: Verdict, notes: list[str], wanted: str
) -> None:
    verdict("")
    assert choose(wanted) == "kvm"
    assert notes == []


def test_auto_falls_back_and_notes_why_once(choose: Choose, verdict: Verdict, notes: list[str]) -> None:
    runs = verdict("it is broken")
    assert [choose("auto"), choose("auto")] == ["tcg", "tcg"]
    assert runs == ["x86_64"]
    assert len(notes) == 1
    assert "it is broken" in notes[0]


def test_a_requested_kvm_that_does_not_work_is_an_error(choose: Choose, verdict: Verdict) -> None:
    verdict("it is broken")
    with pytest.raises(UsageError, match="it is broken") as caught:
        choose("kvm")
    assert "tcg" in caught.value.hint


def test_an_unknown_accelerator_is_refused(choose: Choose) -> None:
    with pytest.raises(UsageError, match="xen"):
        choose("xen")


def test_the_result_is_forgotten_when_the_host_reboots(
    choose: Choose, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict("it is broken")
    assert choose("auto") == "tcg"
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another\n")
    monkeypatch.setattr(stamp, "BOOT_ID", boot_id)
    verdict("")
    assert choose("auto") == "kvm"


def test_the_result_is_forgotten_when_qemu_is_replaced(
    choose: Choose, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict("it is broken")
    assert choose("auto") == "tcg"
    verdict("")
    monkeypatch.setattr(kvm, "_qemu_stamp", lambda arch: "other")
    assert choose("auto") == "kvm"


@pytest.mark.parametrize("memo", ["", "{", "[]", "{}", '{"key": []}'])
def test_a_damaged_memo_is_replaced(choose: Choose, verdict: Verdict, tmp_path: Path, memo: str) -> None:
    (tmp_path / "accel.json").write_text(memo)
    runs = verdict("")
    assert [choose("auto"), choose("auto")] == ["kvm", "kvm"]
    assert runs == ["x86_64"]


def test_a_guest_of_another_architecture_cannot_use_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert "s390x" in kvm.probe("s390x")


def test_a_host_without_kvm_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(kvm, "KVM", tmp_path / "kvm")
    assert "no /dev/kvm" in kvm.probe("x86_64")
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "group kvm" in kvm.probe("x86_64")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the probe under TCG, where it must always succeed."""
    spawn = process.spawn
    words = {"kvm": "tcg", "host": "max"}

    def tcg(argv: Sequence[process.Arg], *, stderr: IO[bytes], pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
        return spawn([words.get(str(word), word) for word in argv], stderr=stderr, pass_fds=pass_fds)

    monkeypatch.setattr(process, "spawn", tcg)
    monkeypatch.setattr(kvm, "PROBE_TIMEOUT", 60.0)


@needs_qemu
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_probe_succeeds_under_emulation(arch: str) -> None:
    if not shutil.which(f"qemu-system-{arch}"):
        pytest.skip(f"needs QEMU for {arch}")
    assert kvm._run_probe(arch) == ""


def test_without_a_probe_dev_kvm_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    monkeypatch.setattr(kvm, "KVM", tmp_path)
    assert kvm.probe("s390x") == ""


@needs_qemu
@pytest.mark.usefixtures("emulated")
def test_a_probe_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "PROBE", boot_disk("", HALT))
    monkeypatch.setattr(kvm, "PROBE_TIMEOUT", 0.1)
    assert "makes no progress" in kvm._run_probe("x86_64")


@needs_qemu
def test_the_message_of_a_failing_qemu_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = process.spawn

    def nonsense(
        argv: Sequence[process.Arg], *, stderr: IO[bytes], pass_fds: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        return spawn([*argv, "-nonsense"], stderr=stderr, pass_fds=pass_fds)

    monkeypatch.setattr(process, "spawn", nonsense)
    assert "nonsense" in kvm._run_probe("x86_64")


def test_the_stamp_of_qemu_changes_with_its_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "qemu"
    monkeypatch.setattr(process, "require", lambda program: str(binary))
    binary.write_text("one")
    first = kvm._qemu_stamp("x86_64")
    binary.write_text("other")
    assert kvm._qemu_stamp("x86_64") != first
