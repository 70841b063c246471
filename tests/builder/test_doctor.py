"""What a host can do. No guest boots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from obuild.builder import doctor
from obuild.executors.qemu import kvm
from obuild.host.capability import Capability
from tests.support import forked


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/executors/qemu/test_kvm.py tests the probe."""
    monkeypatch.setattr(kvm, "probe", lambda arch: "it is broken")


def found(store: Path) -> dict[str, Capability]:
    return {finding.what: finding for finding in doctor.examine(store)}


@pytest.mark.usefixtures("no_probe")
def test_a_host_that_runs_these_tests_has_what_they_need(tmp_path: Path) -> None:
    findings = found(tmp_path / "not" / "there")
    works = ("virtual machines", "base images from packages", "disk space", "clock", "UEFI", "TPM")
    assert [what for what in works if not findings[what].works] == []
    assert findings["virtual machines"].said.startswith("QEMU emulator version ")
    assert not (tmp_path / "not").exists()
    assert findings["KVM"][1:4] == (False, "it is broken", "guests are emulated, which is several times slower")


def test_each_capability_that_is_missing_has_a_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, path=None: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "ROOM", 1 << 60)
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    findings = found(tmp_path)
    firmware = {"UEFI"}  # files, and no programs
    assert {what for what, finding in findings.items() if finding.works or not finding.mend} <= firmware
    assert [what for what, finding in findings.items() if finding.essential] == ["virtual machines"]
    assert findings["virtual machines"].mend == "apt install qemu-utils"
    assert findings["sharing layers with other hosts"].mend == "pip install 'obuild[remote]'"


def test_the_command_shows_all_and_makes_no_store(tmp_path: Path) -> None:
    done = forked.run(["doctor", f"--store=qemu:{tmp_path / 'store'}"])
    assert done.returncode == 0
    assert "ok  virtual machines: QEMU emulator version " in done.stdout
    assert list(tmp_path.iterdir()) == []
    listed = json.loads(forked.run(["doctor", "--json"]).stdout)
    assert {finding["what"]: finding["works"] for finding in listed}["virtual machines"]


def test_a_host_without_qemu_is_told_what_to_install() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can hide the host's programs")
    hide = 'mount -t tmpfs none /usr/bin && exec "$0" -m obuild doctor'
    argv = ["unshare", "--mount", "--", "/bin/sh", "-c", hide, str(Path(sys.executable).resolve())]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    assert (
        "no  virtual machines: qemu-img is not installed, or not on PATH\n      apt install qemu-utils\n"
        in done.stdout
    )
    assert "obuild: this host cannot run steps: qemu-img is not installed" in done.stderr
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
