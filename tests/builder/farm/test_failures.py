"""Farms that break: workers and schedulers that are killed, full disks, other versions, another remote."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.builder.farm import tls
from obuild.remotes.all import Access, open_remote
from tests.support import forked
from tests.support.farm import Farm, makers, saved, scheduler
from tests.support.farm_obuild import FULL


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    """A scheduler, and no worker."""
    with scheduler(tmp_path) as (farm, _):
        yield farm


def test_another_worker_goes_on_for_one_that_is_killed(farm: Farm) -> None:
    workers = {str(worker.pid): worker for worker in farm.workers(2)}
    go = farm.folder / "go"
    build = farm.build(f'(run (shell "pid first")) (run (shell "wait {go}")) (run (shell "pid last"))')
    build.said(f"wait {go}\nmade by")
    (first,) = set(makers(build.running.said()[0]))
    workers[first].stop(signal.SIGKILL)
    build.said("goes on with this")
    go.touch()
    said = build.end()
    assert makers(said)[0] == first
    assert makers(said)[-1] != first
    assert len(saved(said)) == 4, "each step was reported as made once"


@pytest.mark.long
def test_a_step_that_kills_its_workers_is_given_up(farm: Farm) -> None:
    farm.workers(4)
    assert "several workers were lost" in farm.build('(run (shell "die"))').end(1)


@pytest.mark.long
def test_a_full_worker_leaves_its_work_to_others(farm: Farm) -> None:
    workers = {str(worker.pid): worker for worker in farm.workers(3)}
    (first,) = makers(farm.build('(run (shell "pid here"))').end())
    (workers[first].store / FULL).touch()
    said = farm.build('(run (shell "pid here")) (run (shell "full")) (run (shell "pid there"))').end()
    assert "a worker cannot go on: cannot write to the store" in said
    assert makers(said) != [first], "it would have been preferred"


@pytest.mark.long
def test_a_build_fails_when_all_workers_are_full(farm: Farm) -> None:
    for worker in farm.workers(3):
        (worker.store / FULL).touch()
    assert "3 workers cannot make this" in farm.build('(run (shell "full"))').end(1)


@pytest.mark.parametrize("fallback", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_scheduler_that_dies_is_noticed(tmp_path: Path, fallback: bool) -> None:
    with scheduler(tmp_path) as (farm, running):
        worker = farm.worker()
        never = tmp_path / "never"
        build = farm.build(f'(run (shell "wait {never}"))', *["--farm-fallback"] * fallback)
        build.said("made by")
        running.kill()
        if fallback:
            build.said("this build goes on here")
            never.touch()
            assert makers(build.end())[-1] == str(build.running.pid)
        else:
            assert "is gone, or cannot be reached" in build.end(1)
        ended = worker.running.wait()
        assert ended.returncode == 2
        assert "cannot be reached, or is gone" in ended.stderr


@pytest.mark.long
def test_a_scheduler_that_is_not_there_is_named(farm: Farm) -> None:
    nobody = "--farm=tls://127.0.0.1:1"
    assert "tls://127.0.0.1:1 is gone, or cannot be reached" in farm.build('(run (shell "x"))', nobody).end(1)
    said = farm.build('(run (shell "pid x"))', nobody, "--farm-fallback", "--tag=x").end()
    assert "this build goes on here" in said


def test_the_worker_ends_what_nobody_wants_any_more(farm: Farm) -> None:
    worker = farm.worker()
    for number in (signal.SIGINT, signal.SIGKILL):
        build = farm.build(f'(run (shell "wait {farm.folder}/never{number}"))')
        build.said("made by")
        build.kill(number)
        build.running.wait()
        worker.logs("cancelled")
        assert makers(farm.build(f'(run (shell "pid {number}"))').end()) == [str(worker.pid)]
    assert worker.log().count("cancelled") == 2


def test_workers_of_another_version_get_nothing(farm: Farm) -> None:
    farm.worker(version="9.9")
    said = farm.build('(run (shell "x"))').end(1)
    assert "and the workers run obuild 9.9" in said


def test_another_remote_is_noticed(farm: Farm) -> None:
    farm.worker(remote=f"dir:{farm.folder / 'other'}")
    said = farm.build('(run (shell "x"))').end(1)
    assert "has lost the blob" in said
    assert "the same remote" in said


@pytest.mark.long
def test_a_worker_without_the_certificates_gets_no_connection(farm: Farm) -> None:
    other = farm.folder / "other-tls"
    tls.make(other)
    argv = ["worker", "--scheduler", farm.url, "--tls", str(other), f"--store=qemu:{farm.folder / 'store'}"]
    started = forked.start(
        [*argv, "--remote", farm.remote], module="tests.support.farm_obuild", late="distributed"
    )
    farm.started.append(started)
    ended = started.wait()
    assert (ended.returncode, "cannot be reached" in ended.stderr) == (2, True), ended.stderr


@pytest.mark.long
def test_a_layer_that_was_never_sent_gives_way_to_the_one_that_was(farm: Farm) -> None:
    first = farm.worker()
    ops = '(run (shell "pid lonely"))'
    (layer,) = saved(farm.build(ops, store="first").end())[1:]
    with open_remote(farm.remote, Access({})) as remote:
        remote.remove([layer])
    first.stop()
    second = farm.worker()
    assert makers(farm.build(ops, store="second").end()) == [str(second.pid)]
    second.stop()
    farm.worker(store=first.store)
    said = farm.build(f'{ops} (run (shell "more"))', "--pull", store="third").end()
    assert len(saved(said)) == 2, "the base, and the last step"
