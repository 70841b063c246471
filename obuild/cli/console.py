"""What all commands share: opening the store, reading files, printing, and handling errors."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer

from obuild.cli import text as ui
from obuild.errors import ObuildError, OutputError, UsageError, words
from obuild.host import streams
from obuild.host.regular import NotAFile, is_file

if TYPE_CHECKING:
    from obuild.store.layers import Store

#: What runs the steps of a store if --store does not say.
EXECUTOR = "qemu"

#: The largest spec or secret that is read, in bytes.
LARGEST = 64 << 20

#: The name of the spec in its source folder.
SPEC = "obuild.spec"

Command = TypeVar("Command", bound=Callable[..., None])


def guarded(command: Command) -> Command:
    """Wrap a command so that errors end it with a message and an exit code, never with a traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            if options.get("verbose"):
                log_commands()
            command(*args, **options)
            sys.stdout.flush()
        except OutputError as error:
            streams.forget_output()
            ui.report(error)
            raise typer.Exit(error.exit_code) from error
        except ObuildError as error:
            from obuild.cli import folding  # late: only for errors

            error.message = folding.harmless(error.message, environment())
            failed = command.__name__ == "build" and error.exit_code == 1
            ui.report(error, what="Build step failed:" if failed else "", file=_spec_of(options))
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:  # `obuild logs … | head`
            streams.forget_output()
            raise typer.Exit(1) from error
        except NotAFile as error:
            hint = "`obuild fsck` shows what is damaged in the store, and `--repair` repairs it"
            ui.report(ObuildError(f"{error.filename}: {error.strerror}", hint=hint))
            raise typer.Exit(1) from error
        except OSError as error:
            file = f"{error.filename}: " if error.strerror and error.filename is not None else ""
            ui.report(ObuildError(file + words(error)))
            raise typer.Exit(2 if error.errno == errno.ENAMETOOLONG else 1) from error
        except MemoryError as error:
            ui.report(ObuildError("out of memory", hint="`ulimit -v` may limit it; finished steps are kept"))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            saved = "finished steps are kept; the next build continues from there"
            ui.report(ObuildError("interrupted", hint=saved if command.__name__ == "build" else ""))
            raise typer.Exit(130) from error

    return guarded  # type: ignore[return-value]  # functools.wraps keeps the signature that typer reads


def _spec_of(options: dict[str, Any]) -> str:
    """Return the path of the spec that a command reads, for error messages with a line number."""
    if "spec" in options and "source" in options and not options["spec"]:
        return str(Path(options["source"]) / SPEC)
    return str(options.get("spec") or "")


def log_commands() -> None:
    import logging

    class Errors(logging.StreamHandler[TextIO]):
        """Writes to what is sys.stderr then: where something is drawn, that is another than now."""

        def emit(self, record: logging.LogRecord) -> None:
            self.stream = sys.stderr
            super().emit(record)

    logging.basicConfig(format="obuild: [%(levelname)s] %(message)s", handlers=[Errors()])
    logging.getLogger("obuild").setLevel(logging.INFO)


def open_store(store: str, *, create: bool = False, sweep: bool = True, quiet: bool = False) -> Store:
    """Open the store that --store names, or the default one. With `create`, print where the default one is."""
    from obuild.store.layers import Store

    if create and not store and not quiet:
        note(f"the store is {default_store()}; --store or OBUILD_STORE names another")
    return Store.open(store_path(store), create=create, sweep=sweep)


def look_at(store: str) -> Store:
    """Open the store that --store names, or the default one, for a command that changes nothing in it."""
    from obuild.store.layers import Store

    return Store.look(store_path(store))


def store_path(store: str) -> Path:
    """UsageError if --store is not KIND:PATH."""
    if not store:
        return default_store()
    kind, colon, path = store.partition(":")
    if not colon or not path:
        raise UsageError(f"--store={store} is not KIND:PATH", hint="for example --store=qemu:/data")
    if kind != EXECUTOR:  # the table is not loaded for the usual kind
        from obuild.executors.all import EXECUTORS

        if kind not in EXECUTORS:
            known = ", ".join(f"{name}:PATH" for name in EXECUTORS)
            raise UsageError(f"unknown kind of store {kind!r} in --store={store}", hint=f"there is: {known}")
    return Path(path)


def executor_of(store: str) -> str:
    """The kind of executor that --store names."""
    return store.partition(":")[0] or EXECUTOR


def called(id: str, layer: str) -> str:
    """What a layer is called that the user has named by `id`: its tag, or else its short id."""
    return layer[:12] if layer.startswith(id) else id


def key_password(key: Path) -> str:
    """Return the password of an encrypted private key: from the environment, as for cosign, or from a person."""
    found = os.environ.get("COSIGN_PASSWORD")
    if found is None and sys.stdin.isatty():
        found = typer.prompt(f"password of {key}", hide_input=True, default="", show_default=False, err=True)
    if found is None:
        raise UsageError(f"the key {key} is encrypted", hint="give its password as COSIGN_PASSWORD")
    return str(found)


def default_store() -> Path:
    """Return the path of the default store. UsageError if this user has no home directory."""
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # the XDG base directory specification says to ignore relative paths
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError as error:
            raise UsageError(
                "you have no home directory for the default store", hint="name one with --store=qemu:PATH"
            ) from error
    return data / "obuild"


def environment() -> Mapping[str, str]:
    """The environment variables, for what finds a user's credentials."""
    return os.environ


def errors() -> TextIO:
    """The stream for people."""
    return sys.stderr


def lines() -> ui.Lines:
    from obuild.cli.live.look import can_draw  # late: for the commands that print steps

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and can_draw(os.environ)
    return ui.Lines(sys.stdout.buffer, colour=colour)


def put(*lines: str) -> None:
    """Print lines. They may hold any bytes (as surrogate escapes), whatever the terminal's encoding."""
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def put_json(value: object) -> None:
    import json
    from dataclasses import asdict

    print(json.dumps(value, indent=2, default=asdict))


def spec_path(source: str, spec: str) -> Path:
    """Return the spec to read: `spec`, or the one in the folder `source`. UsageError if `source` is no folder."""
    if not Path(source).is_dir():
        raise UsageError(f"there is no source directory {source}")
    return Path(spec) if spec else Path(source) / SPEC


def read_spec(path: Path) -> bytes:
    """Return the bytes of a spec. UsageError if it cannot be read."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a spec", hint="name the spec file with -f")
    return read_file(path, f"the spec {path}", hint="name the spec with -f")


def read_file(path: Path, name: str, *, hint: str = "") -> bytes:
    """Return the bytes of a file that the user named. UsageError if it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}", hint=hint) from error
    if len(data) > LARGEST:
        raise UsageError(f"{name} is larger than {LARGEST >> 20} MiB")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Write a file that the user named, whole or not at all. OSError.

    If it exists and is no plain file, but a pipe or a link such as /dev/stdout, it is written to, not replaced.
    """
    if os.path.lexists(path) and not is_file(path):
        path.write_bytes(data)
        return
    from obuild.host.fs import replace_bytes

    replace_bytes(path, data)


def say(text: str) -> None:
    """Print a line and flush."""
    put(text)
    sys.stdout.flush()


def put_bytes(data: bytes) -> None:
    """Print bytes unchanged and flush."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def note(text: str) -> None:
    """Print a line for people on stderr, so that it does not get into output that a program reads."""
    print(f"obuild: {text}", file=sys.stderr, flush=True)
