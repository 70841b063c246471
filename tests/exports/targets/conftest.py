"""A store with two tagged layers, for two architectures, and the program that publishes them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from obuild.store.layers import Store
from tests.support import odd
from tests.support.aws import moto
from tests.support.program import Program


class Forked(Program):
    """The command in a forked process, which costs less than a new one. It cleans layers only if it is told to."""

    def __call__(
        self, *args: str | Path, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        plain = args[0] == "publish" and not any(str(each).startswith("--sysprep") for each in args)
        argv = [*map(str, args), *(["--no-sysprep"] if plain else []), f"--store=qemu:{self.store}"]
        ended, out, err = odd.run(argv, before=partial(os.environ.update, env or {}))
        assert "Traceback" not in err, err
        assert ended == code, out + err
        return subprocess.CompletedProcess(argv, ended, out, err)


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory, qcow2_disk: Path) -> Path:
    """The store. Its tags are pg16 and pg16-arm."""
    root = tmp_path_factory.mktemp("publishing")
    store = Store.open(root / "store")
    (root / "source").mkdir()
    for tag, base, card in (("pg16", "tiny", ""), ("pg16-arm", "tiny-arm", 'arch = "aarch64"\n')):
        image = store.base_image / f"{base}.qcow2"
        image.write_bytes(qcow2_disk.read_bytes())
        if card:  # and another content: the same content is the same layer
            subprocess.run(
                ["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 512", image], check=True, capture_output=True
            )
            image.with_suffix(".toml").write_text(card)
        spec = root / f"{tag}.spec"
        spec.write_text(f"((from {base}) (run (shell {tag})))")
        Forked(store.root)("build", "-t", tag, "-f", spec, root / "source")
    return store.root


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of moto's server."""
    with moto() as address:
        yield address


@pytest.fixture
def obuild(layers: Path) -> Program:
    return Forked(layers)
