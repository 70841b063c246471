"""The example specs/postgres-vm: built by both executors, and what its layers do in a machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.program import ROOT, SAVED, Program, base_images, new_store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]

#: What an operator does at first, and what must then work.
FIRST_BOOT = r"""
set -e
test -f /etc/ssl/certs/ssl-cert-snakeoil.pem
test ! -e /usr/sbin/policy-rc.d
create-postgres-cluster
sql() { runuser -u postgres -- psql --no-psqlrc --tuples-only --no-align --command "$1"; }
sql 'SELECT 6 * 7' && sql 'SHOW data_checksums' && sql 'SHOW ssl' && sql 'SHOW shared_preload_libraries'
sql 'CREATE EXTENSION luhn' && sql "SELECT luhn_valid('79927398713'), luhn_valid('79927398710')"
id -Gn postgres
metrics() {
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    grep -o "^$2" <&3
}
for each in 9090=prometheus_build_info 9100=node_uname_info '9187=pg_up 1'; do
    for try in $(seq 60); do
        (metrics "${each%=*}" "${each#*=}") 2>/dev/null && break || sleep 1
    done
done
"""

SHOWN = """42
on
on
{libraries}
CREATE EXTENSION
t|f
postgres cert_readers ssl-cert
prometheus_build_info
node_uname_info
pg_up 1
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that both executors share."""
    return new_store(tmp_path_factory.mktemp("postgres") / "store", base_images("debian-12"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(ROOT / "specs/postgres-vm", tmp_path_factory.mktemp("source") / "postgres-vm")


def assert_serves(store: Path, layer: str, libraries: str) -> None:
    """Boot a layer in a machine, and use PostgreSQL and its monitoring."""
    done = Program(store)("run", layer, "--", "bash", "-c", FIRST_BOOT)
    assert done.stdout.endswith(SHOWN.format(libraries=libraries))


def test_native_steps_make_layers_that_machines_boot(store: Path, source: Path) -> None:
    program = Program(store, "native")
    first = program.build(source / "standard.spec", source)
    assert "All 1 tests passed." in first.stdout  # those of the extension

    script = source / "flavors/standard/setup.sh"
    script.write_text(script.read_text() + "echo edited\n")
    edited = program.build(source / "standard.spec", source).stdout
    assert edited.count("---> saved as") == 2  # the script's copy, and its run
    assert "\nedited\n" in edited

    cron = program.build(source / "cron.spec", source).stdout
    assert cron.count("---> saved as") == 2
    assert_serves(store, SAVED.findall(cron)[-1], "pg_stat_statements, pg_cron")


def test_machines_make_the_same(store: Path, source: Path) -> None:
    done = Program(store).build(source / "standard.spec", source)
    assert "All 1 tests passed." in done.stdout
    assert_serves(store, SAVED.findall(done.stdout)[-1], "pg_stat_statements")
