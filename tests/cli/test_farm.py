"""The options of farms on the command line. No scheduler runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from obuild.builder.farm import client
from obuild.builder.farm.tls import Address
from obuild.errors import UsageError
from obuild.events import SILENT
from obuild.executors.settings import Settings
from obuild.host.process import CancelScope
from obuild.store.layers import Store
from tests.support import forked
from tests.support.fakes import POWER_OFF, boot_disk

HERE = "tcp://127.0.0.1:1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a spec, and a store with its base image."""
    store = Store.open(tmp_path / "store")
    (store.base_image / "tiny.img").write_bytes(boot_disk("", POWER_OFF))
    (tmp_path / "obuild.spec").write_text('((from tiny) (run (shell "x")))')
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--farm", HERE], "--farm needs --remote"),
        (["--farm", HERE, "--remote=dir:{}", "--remote-mode=read"], "--farm needs --remote"),
        (["--farm", HERE, "--remote=dir:{}", "--no-cache"], "--no-cache does not work with --farm"),
        (
            ["--farm", HERE, "--remote=dir:{}", "--on-failure=shell"],
            "--on-failure shell does not work with --farm",
        ),
        (["--farm=tcp://10.0.0.1:8786", "--remote=dir:{}"], "tcp://10.0.0.1:8786 has no TLS"),
        (["--farm=tls://10.0.0.1:8786", "--remote=dir:{}"], "tls://10.0.0.1:8786 needs certificates"),
        (["--farm=10.0.0.1", "--remote=dir:{}"], "'10.0.0.1' is not the address of a scheduler"),
    ],
)
def test_a_build_with_a_farm_refuses_what_it_cannot_do(folder: Path, options: list[str], message: str) -> None:
    words = [option.format(folder / "remote") for option in options]
    done = forked.run(["build", f"--store=qemu:{folder / 'store'}", *words, str(folder)])
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (folder / "remote").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheduler=tcp://10.0.0.1:8786", "--remote=dir:/tmp/x"], "has no TLS"),
        (["--scheduler", HERE, "--remote=ftp://x"], "'ftp://x' is not a remote"),
        (["--scheduler", HERE, "--remote=dir:/tmp/x", "--arch=vax"], "unknown guest architecture 'vax'"),
        (["--scheduler", HERE, "--remote=dir:/tmp/x", "--memory=lots"], "--memory: 'lots' is not a size"),
        (["--scheduler", HERE], "Missing option '--remote'"),
    ],
)
def test_a_worker_refuses_what_it_cannot_use(tmp_path: Path, options: list[str], message: str) -> None:
    done = forked.run(["worker", f"--store=qemu:{tmp_path / 'store'}", *options])
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "store").exists()


def test_certificates_are_made_once(tmp_path: Path) -> None:
    assert forked.run(["key", "tls", str(tmp_path / "tls")]).stdout == f"{tmp_path / 'tls'}\n"
    again = forked.run(["key", "tls", str(tmp_path / "tls")])
    assert (again.returncode, "File exists" in again.stderr) == (2, True)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "obuild.builder.farm.link", raising=False)
    wish = client.FarmWish(Address(HERE))
    farm = client.Farm(wish, None, CancelScope(), Settings(), "qemu", {}, SILENT)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the Python package distributed is missing") as error:
        farm._connected()
    assert error.value.hint == "pip install 'obuild[farm]'"
