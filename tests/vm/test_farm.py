"""Three workers make the stages of one build in real guests; layers travel through a real registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.farm import scheduler
from tests.support.program import Program, assert_clean, base_images, machines, new_store
from tests.support.registry import registry

pytestmark = [pytest.mark.vm, pytest.mark.long]

#: The word that tells boots apart, from the kernel.
BOOT = "cat /proc/sys/kernel/random/boot_id"


def test_three_hosts_share_the_stages_of_a_build(tmp_path: Path) -> None:
    client = new_store(tmp_path / "client", base_images("micro"))
    stages = " ".join(f'(build {name} ((from micro) (run (shell "{BOOT} | tee /{name}"))))' for name in "abc")
    copies = " ".join(f"(copy (from (build {name})) (src /{name}) (dst /in/))" for name in "abc")
    for name in ("source", "registry"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "file").write_text("from the client\n")
    ops = f'{copies} (copy (src file) (dst /in/file)) (run (shell "cat /in/*")) (run (shell "{BOOT}"))'
    with registry(tmp_path / "registry") as running, scheduler(tmp_path) as (farm, _):
        remote = f"oci://{running.host}/farm/layers"
        farm.program, farm.limit = "obuild", 1500
        for _ in range(3):
            farm.worker("--remote-insecure", remote=remote)
        more = ("--remote-insecure", "--qemu-memory=512M", "--tag=joined")
        build = farm.build(
            f"({stages} (from micro) {ops})", *more, remote=remote, source=tmp_path / "source", store=client
        )
        said = build.end()
    boots = re.findall(r"^[0-9a-f]{8}-[0-9a-f-]{27}$", said, re.MULTILINE)
    assert len(set(boots[:3])) == 3, "each stage was made on another worker"
    assert boots[3:6] == boots[:3], "the copies have what the stages made"
    assert "from the client" in said
    here = Program(client)
    assert here("run", "joined", "--", "cat", "/in/file").stdout == "from the client\n"
    assert_clean(here)
    assert not [machine for path in tmp_path.glob("worker-*") for machine in machines(path)]
