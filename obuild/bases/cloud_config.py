"""What a user gives to cloud-init, looked at before anything is downloaded.

If cloud-init is on this host, it checks user-data with its own schema. If not, the text must at least be YAML of
the right form: a slip there makes cloud-init skip a part in silence.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from obuild.bases.table import Table
from obuild.errors import ProcessError
from obuild.host import process

#: How user-data may begin besides `#cloud-config`: cloud-init takes these as they are.
_OTHER = re.compile(
    r"#!|#cloud-boothook|#cloud-config-archive|#include|## template: *jinja|#part-handler"
    r"|Content-Type: multipart/|MIME-Version: "
)


def check_user_data(table: Table, key: str, text: str) -> None:
    """UsageError, with the place of `key`, for user-data that cloud-init would not understand."""
    head = text.split("\n", 1)[0].rstrip()
    if head != "#cloud-config":
        if _OTHER.match(text):
            return
        hint = "its first line must be #cloud-config, or that of a script or another format of cloud-init"
        raise table.error(key, f"{key} begins with {head[:60]!r}", hint=hint)
    config = _yaml(table, key, text)
    if not isinstance(config, dict | None):
        raise table.error(key, f"{key} must have keys and values at its top, like `packages: [rsync]`")
    for name in ("runcmd", "bootcmd"):
        _check_commands(table, key, name, (config or {}).get(name, []))
    if shutil.which("cloud-init"):
        _check_schema(table, key, text)


def check_mapping(table: Table, key: str, text: str) -> dict[str, Any]:
    """The keys and values in a text. UsageError if it is no YAML with keys and values."""
    mapping = _yaml(table, key, text)
    if not isinstance(mapping, dict | None):
        raise table.error(key, f"{key} must have keys and values at its top")
    return mapping or {}


def _yaml(table: Table, key: str, text: str) -> Any:
    import yaml  # late: seldom needed

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise table.error(key, f"{key} is not YAML: {error}") from error


def _check_commands(table: Table, key: str, name: str, commands: object) -> None:
    """One command that is no text makes cloud-init run none of them."""
    if not isinstance(commands, list):
        raise table.error(key, f"{key}: {name} must be a list of commands")
    for command in commands:
        words = command if isinstance(command, list) else [command]
        if not words or not all(isinstance(word, str | int) and not isinstance(word, bool) for word in words):
            hint = "a command is text, or a list of words; put quotes around yes, no, true, false and numbers"
            raise table.error(key, f"{key}: {name}: {command!r} is not a command", hint=hint)


def _check_schema(table: Table, key: str, text: str) -> None:
    with tempfile.TemporaryDirectory(prefix="obuild-") as folder:
        file = Path(folder) / "user-data"
        file.write_text(text, encoding="utf-8")
        try:
            process.run(["cloud-init", "schema", "--config-file", file])
        except ProcessError as error:
            raise table.error(key, f"{key} is not what cloud-init's schema allows: {error.message}") from error
