"""OpenSSH's sftp-server behind paramiko's SSH server, for any number of connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import paramiko

from tests.support.ssh_server import Server, pipe


@dataclass
class Sftp:
    """A server: `config` is of an ssh client that calls it `there`."""

    config: Path
    transports: list[paramiko.Transport] = field(default_factory=list)


@contextmanager
def sftp_server(home: Path, folder: Path) -> Iterator[Sftp]:
    """Serve the folder `home` until the block ends; `folder` is for keys and the configuration."""
    key = paramiko.ECDSAKey.generate()
    paramiko.ECDSAKey.generate().write_private_key_file(str(folder / "id"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (folder / "known").write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
        config = folder / "config"
        config.write_text(
            f"Host there\nHostName 127.0.0.1\nPort {port}\nUserKnownHostsFile {folder / 'known'}\n"
            f"GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
            f"IdentityFile {folder / 'id'}\nIdentitiesOnly yes\n"
        )
        state = Sftp(config)

        def serve(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
            return pipe(argv, stdin, stdout)

        argv = ["/usr/lib/openssh/sftp-server", "-d", str(home)]

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                transport = paramiko.Transport(client)
                state.transports.append(transport)
                transport.add_server_key(key)
                with suppress(paramiko.SSHException, EOFError, OSError):
                    transport.start_server(server=Server(serve))

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield state
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for transport in state.transports:
                transport.close()
