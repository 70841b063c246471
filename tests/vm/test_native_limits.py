"""Steps that take more than they may have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.errors import StepFailed
from obuild.executors.native.container import Limits
from obuild.executors.settings import Settings
from obuild.store.layers import Store
from tests.support.program import base_images, new_store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.usefixtures("alone"),
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]


def test_a_step_cannot_take_all_processes_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obuild.executors.native.container.limits", lambda memory: Limits(64 << 20, 50))
    store = Store.open(new_store(tmp_path / "store", base_images("micro")))

    def build(command: str) -> None:
        text = f'((from micro) (shell sh -c) (run (shell "{command}")))'
        Engine(tmp_path, store, Settings(), lambda event: None, executor="native").build(spec.parse(text.encode()))

    with pytest.raises(StepFailed):
        build("while true; do sleep 9993 & done")
    with pytest.raises(StepFailed, match="failed with exit status 137"):
        build("exec tail /dev/zero")
    build("echo others can")
