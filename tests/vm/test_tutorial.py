"""The tutorial: its commands, run from top to bottom, print what it says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.support.program import ROOT

PAGE = ROOT / "docs/tutorial.md"

pytestmark = [pytest.mark.vm, pytest.mark.long]

#: What is different in each run: ids, times and sizes. … stands for anything.
VARYING = {
    r"\b[0-9a-f]{64}\b": "[0-9a-f]{64}",
    r"\b[0-9a-f]{12}\b": "[0-9a-f]{12}",
    r" +[\d.]+ (?:s|min|h|KiB|MiB)\b": r" +[\d.]+ \w+",
    "…": ".*",
}


def files() -> dict[str, str]:
    """The files that the page has the reader write."""
    return dict(
        re.findall(r"is `(\S+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )


def commands() -> list[tuple[str, str]]:
    """Each command of the page, and what it prints."""
    found = []
    for token in MarkdownIt("commonmark").parse(PAGE.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info == "console":
            for part in re.split(r"^\$ ", token.content, flags=re.MULTILINE)[1:]:
                command, _, output = re.sub(r"\\\n *", "", part).partition("\n")
                found.append((command, output))
    return found


def pattern(output: str) -> str:
    """A pattern for output. A line that is only … stands for any number of lines."""
    return "".join(
        "(?:.*\n)*?"
        if line == "…"
        else "".join(
            next((general for each, general in VARYING.items() if re.fullmatch(each, part)), re.escape(part))
            for part in re.split(f"({'|'.join(VARYING)})", line)
        )
        + "\n"
        for line in output.splitlines()
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_commands_print_what_the_tutorial_says(tmp_path: Path) -> None:
    """As root, steps run natively, which says the same sooner. The finished image boots in QEMU."""
    web = tmp_path / "web"
    web.mkdir()
    for name, content in files().items():
        (web / name).write_text(content)
    mark = "--- the next command ---"
    script = "".join(f"{command} || exit\necho '{mark}'\n" for command, _ in commands())
    script = script.replace("& || exit", "&").replace("8080", str(free_port())).replace("kvm:tcg", "tcg")
    native = os.geteuid() == 0 and shutil.which("runc")
    env = {
        **os.environ,
        "OBUILD_STORE": f"{'native' if native else 'qemu'}:{tmp_path}/store",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    argv = ["bash", "-c", f"set -m; trap 'kill %1 2>/dev/null' EXIT\n{script}"]
    done = subprocess.run(
        argv, cwd=web, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    told = done.stdout.split(f"{mark}\n")
    for (command, output), printed in zip(commands(), told, strict=False):
        assert re.fullmatch(pattern(output), printed), f"$ {command}\n{printed}\ninstead of\n{output}"
    assert len(told) == len(commands()) + 1
