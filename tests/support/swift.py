"""OpenStack's Swift with S3's interface, from Debian: an S3 server that checks signatures, digests and parts."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

#: What /usr/bin calls its parts.
SERVERS = ("account", "container", "object")

_PROXY = """
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth slo dlo symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = swordfish .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
""" + "".join(
    f"[filter:{name}]\nuse = egg:swift#{name}\n"
    for name in ("catch_errors", "listing_formats", "slo", "dlo", "symlink")
)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in found]


def _wait_for(port: int) -> None:
    """Wait until a server listens. It says so nowhere."""
    ended = time.monotonic() + 60
    while time.monotonic() < ended:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on port {port}")


@contextmanager
def swift(folder: Path) -> Iterator[dict[str, str]]:
    """Run it until the block ends; yields what boto3's environment must have."""
    disks = folder / "disks"
    (disks / "one").mkdir(parents=True)
    ports = dict(zip((*SERVERS, "proxy", "memcached"), _free_ports(5), strict=True))
    hashes = "[swift-hash]\nswift_hash_path_suffix = tests\nswift_hash_path_prefix = tests\n"
    (folder / "swift.conf").write_text(f"{hashes}[storage-policy:0]\nname = Policy-0\ndefault = yes\n")
    for name in (*SERVERS, "proxy"):
        default = {
            "bind_ip": "127.0.0.1",
            "bind_port": ports[name],
            "swift_dir": folder,
            "devices": disks,
            "mount_check": "false",
            "user": "root",
            "workers": 0,
            "log_statsd_host": "",
        }
        lines = "".join(f"{key} = {value}\n" for key, value in default.items())
        one = f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        own = _PROXY.format(memcached=ports["memcached"]) if name == "proxy" else one
        (folder / f"{name}.conf").write_text(f"[DEFAULT]\n{lines}{own}")
    for name in SERVERS:
        ring = ["swift-ring-builder", str(folder / f"{name}.builder")]
        for words in (
            ("create", "4", "1", "1"),
            ("add", f"r1z1-127.0.0.1:{ports[name]}/one", "1"),
            ("rebalance",),
        ):
            subprocess.run([*ring, *words], check=True, capture_output=True)
    with ExitStack() as stack:
        memcached = ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", str(ports["memcached"])]
        commands = [[f"swift-{name}-server", str(folder / f"{name}.conf")] for name in (*SERVERS, "proxy")]
        for command in (memcached, *commands):
            log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
            child = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(child.kill)
        for port in ports.values():
            _wait_for(port)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['proxy']}",
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "swordfish",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
