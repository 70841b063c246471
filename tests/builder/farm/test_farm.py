"""Builds on a farm: a real scheduler with TLS, three real workers with a store each, and scripted machines."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.remotes.all import Access, open_remote
from obuild.store.layers import Store
from tests.support.farm import Farm, makers, saved, scheduler


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A farm that no test damages: three workers with one slot each."""
    with scheduler(tmp_path_factory.mktemp("farm")) as (farm, _):
        farm.workers(3)
        farm.build("").end()  # imports the base
        yield farm


def test_a_worker_makes_what_is_missing(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("content")
    ops = '(workdir /srv) (run (shell "pid a")) (copy (src file) (dst name)) (env x y) (run (shell "pid b"))'
    said = farm.build(ops, source=tmp_path / "source").end()
    steps = saved(said)
    assert len(steps) == 3
    assert len(set(makers(said))) == 1, "one worker makes a chain"
    assert said.splitlines()[-1] == f'Got: "{steps[-1]}"'
    store = Store.open(farm.client())
    assert not set(steps) & set(store.ids()), "the layers stay in the remote"
    with open_remote(farm.remote, Access({})) as remote:
        assert set(steps) <= set(remote.tags())


def test_a_build_without_anything_missing_asks_no_scheduler(farm: Farm) -> None:
    ops = '(run (shell "cached"))'
    made = saved(farm.build(ops, "--pull").end())
    gone = ["--farm=tls://127.0.0.1:1"]
    assert farm.build(ops, *gone).end().count("---> using") == 2
    said = farm.build(ops, *gone, store="other").end()
    assert f'---> "{made[-1]}" is in {farm.remote}' in said


def test_the_result_is_fetched_for_a_tag(farm: Farm) -> None:
    said = farm.build('(run (shell "tagged"))', "--tag=mine", store="tagging").end()
    store = Store.open(farm.client("tagging"))
    assert store.tags.get("mine") == saved(said)[-1]
    assert store.layer(store.resolve("mine")).log.read_bytes() == b"tagged\n"


def test_a_failed_step_fails_the_build(farm: Farm) -> None:
    said = farm.build('(run (shell "pid x")) (run (shell "fail here")) (run (shell "never"))').end(1)
    assert 'Build step failed: "fail here" failed with exit status 1' in said
    assert "never" not in said
    again = farm.build('(run (shell "pid x")) (run (shell "fail here")) (run (shell "never"))').end(1)
    assert not makers(again), "what was made before stays"


def test_stages_run_on_several_workers(farm: Farm, tmp_path: Path) -> None:
    stages = [
        f'(build "{name}" ((from tiny) (run (shell "touch {tmp_path}/{name}"))'
        f' (run (shell "wait {tmp_path}/{other}"))'
        f' (run (shell "pid {name}"))))'
        for name, other in (("one", "two"), ("two", "one"))
    ]
    copies = '(copy (from (build "one")) (src /out) (dst /a)) (copy (from (build "two")) (src /out) (dst /b))'
    said = farm.build(f'({" ".join(stages)} (from tiny) {copies} (run (shell "pid last")))').end()
    assert len(set(makers(said)[:4])) == 2, "each waits for the other"
    assert said.index("pid one") < said.index('--> finished "one"') < said.index("pid two"), "one after the other"
    assert said.count("---> saved as") == 9


def test_two_builds_share_one_run(farm: Farm, tmp_path: Path) -> None:
    go = tmp_path / "go"
    ops = f'(run (shell "wait {go}"))'
    first = farm.build(ops)
    first.said("made by")
    second = farm.build(ops, store="second")
    second.said("made by")
    go.touch()
    assert makers(first.end()) == makers(second.end())


def test_two_builds_share_the_steps_that_they_have_in_common(farm: Farm, tmp_path: Path) -> None:
    go = tmp_path / "go"
    common = f'(run (shell "wait {go}")) (run (shell "pid common"))'
    first = farm.build(f'{common} (run (shell "first"))')
    first.said("wait")
    second = farm.build(f'{common} (run (shell "second"))', store="second")
    second.said("another worker is making this step")
    go.touch()
    assert len(makers(first.end())) == 2
    assert makers(second.end()) == [], "it is fetched"


@pytest.mark.long
def test_a_build_goes_where_its_parent_is(farm: Farm) -> None:
    first = makers(farm.build('(run (shell "pid parent"))').end())
    for number in range(3):
        ops = f'(run (shell "pid parent")) (run (shell "pid {number}"))'
        assert makers(farm.build(ops).end()) == first


def test_an_interrupted_build_ends_its_steps(farm: Farm, tmp_path: Path) -> None:
    never = tmp_path / "never"
    build = farm.build(f'(run (shell "wait {never}"))')
    build.said("wait")
    build.kill(signal.SIGINT)
    assert "interrupted" in build.end(130)


def test_secrets_leave_only_if_allowed(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "value").write_text("hunter22")
    ops = '(run (secrets (word (target /word))) (shell "secret word"))'
    given = f"--secret=word:{tmp_path / 'value'}"
    assert "--farm-secrets allows that" in farm.build(ops, given).end(2)
    said = farm.build(ops, given, "--farm-secrets").end()
    assert "8 bytes: ***" in said
    assert "hunter22" not in said
    for path in farm.folder.rglob("*"):
        assert not path.is_file() or b"hunter22" not in path.read_bytes(), path


def test_nobody_can_make_what_needs_more_than_there_is(farm: Farm) -> None:
    ops = '(run (shell "large"))'
    assert "no worker has 1048576 MiB of memory" in farm.build(ops, "--qemu-memory=1T").end(1)
    assert "no worker is for s390x guests" in farm.build(ops, "--qemu-guest-arch=s390x").end(1)
