"""Check what a user gives to cloud-init, before anything is downloaded.

If cloud-init is installed on this host, its schema is used. Otherwise the text must at least be YAML of the right
form: cloud-init silently skips a part with a mistake.
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

#: How user-data of other formats than cloud-config may begin; they are not checked.
_OTHER = re.compile(
    r"#!|#cloud-boothook|#cloud-config-archive|#include|## template: *jinja|#part-handler"
    r"|Content-Type: multipart/|MIME-Version: "
)


def check_user_data(table: Table, key: str, text: str) -> None:
    """UsageError, with the place of `key`, for user-data that cloud-init would reject or partly skip."""
    head = text.split("\n", 1)[0].rstrip()
    if head != "#cloud-config":
        if _OTHER.match(text):
            return
        hint = "begin with the line #cloud-config, or with that of a script or another cloud-init format"
        raise table.error(key, f"{key} begins with {head[:60]!r}", hint=hint)
    config = _yaml(table, key, text)
    if not isinstance(config, dict | None):
        raise table.error(key, f"{key} must have keys and values at its top, like `packages: [rsync]`")
    for name in ("runcmd", "bootcmd"):
        _check_commands(table, key, name, (config or {}).get(name, []))
    if shutil.which("cloud-init"):
        _check_schema(table, key, text)


def check_mapping(table: Table, key: str, text: str) -> dict[str, Any]:
    """Return the mapping in a YAML text. UsageError if it is not one."""
    mapping = _yaml(table, key, text)
    if not isinstance(mapping, dict | None):
        raise table.error(key, f"{key} must have keys and values at its top")
    return mapping or {}


def _yaml(table: Table, key: str, text: str) -> Any:
    import yaml  # late: few commands need it

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise table.error(key, f"{key} is not YAML: {error}") from error


def _check_commands(table: Table, key: str, name: str, commands: object) -> None:
    """UsageError for a command that is not text: cloud-init would then run none of them."""
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
