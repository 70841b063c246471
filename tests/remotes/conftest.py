"""Remotes of every kind: each test that takes `remote` runs on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild.plan.steps import Chain
from obuild.remotes import aws
from obuild.remotes.all import Access, open_remote
from obuild.remotes.protocol import Remote
from obuild.store.layers import Store
from tests.support import images
from tests.support.aws import environment, moto
from tests.support.registry import registry
from tests.support.swift import swift

_numbers = itertools.count()


@pytest.fixture(scope="session")
def registry_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that lets anybody push, read and remove."""
    with registry(tmp_path_factory.mktemp("registry"), delete=True) as running:
        yield running.host


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket on moto's server, and boto3's environment for it."""
    with moto() as address:
        variables = environment(address)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            place = {"LocationConstraint": variables["AWS_REGION"]}
            aws.client("s3").create_bucket(Bucket="layers", CreateBucketConfiguration=place)
        yield "layers", variables


@pytest.fixture(scope="session")
def swift_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket on a real server with S3's interface, which knows no conditions."""
    with swift(tmp_path_factory.mktemp("swift")) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        aws.client("s3").create_bucket(Bucket="layers")
        yield "layers", variables


@pytest.fixture(params=["dir", "oci", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("s3", "swift"))])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new remote of each kind."""
    number = next(_numbers)
    if request.param == "dir":
        return f"dir:{tmp_path / 'remote'}"
    if request.param == "oci":
        return f"oci://{request.getfixturevalue('registry_host')}/tests/r{number}"
    name, variables = request.getfixturevalue("swift_bucket" if request.param == "swift" else "bucket")
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    return f"s3://{name}/r{number}"


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access({"HOME": str(tmp_path)}, insecure=True)


@pytest.fixture
def remote(address: str, access: Access) -> Iterator[Remote]:
    """A new remote of each kind."""
    with open_remote(address, access) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, access: Access) -> Iterator[Remote]:
    """A new remote that is a folder."""
    with open_remote(f"dir:{tmp_path / 'remote'}", access) as opened:
        yield opened


@pytest.fixture
def layers(store: Store, chain: Callable[[str], Chain]) -> list[str]:
    """The ids of three layers in the store, the base's first."""
    return [*images.make_all(store, chain('(run (shell "one")) (run (shell "two"))'))]
