"""Marks in the log of a CI job that fold a part of it.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions and
https://docs.gitlab.com/ci/jobs/job_logs/#custom-collapsible-sections define them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol


class Fold(Protocol):
    """Marks the beginning and the end of a part. Parts do not overlap."""

    def begin(self, title: str, now: float) -> str:
        """The lines before a part; `title` is one line, `now` in seconds since the epoch."""

    def end(self, now: float) -> str:
        """The lines after it."""


class Github:
    """Groups. What a step prints is kept from being taken for a command to the runner."""

    def __init__(self) -> None:
        self._word = ""

    def begin(self, title: str, now: float) -> str:
        import secrets  # late: every build looks into this module

        self._word = secrets.token_hex(16)  # new for each part, since the step can read it in its own log
        escaped = title.replace("%", "%25")
        return f"::group::{escaped}\n::stop-commands::{self._word}\n"

    def end(self, now: float) -> str:
        return f"::{self._word}::\n::endgroup::\n"


class Gitlab:
    """Sections, collapsed."""

    def __init__(self) -> None:
        self._count = 0
        self._name = ""

    def begin(self, title: str, now: float) -> str:
        import secrets

        self._count += 1
        word = re.sub(r"[^A-Za-z0-9]+", "_", title)[:40].strip("_")
        self._name = f"obuild_{self._count}_{secrets.token_hex(4)}_{word}"
        return f"\x1b[0Ksection_start:{now:.0f}:{self._name}[collapsed=true]\r\x1b[0K{title}\n"

    def end(self, now: float) -> str:
        return f"\x1b[0Ksection_end:{now:.0f}:{self._name}\r\x1b[0K\n"


def harmless(text: str, env: Mapping[str, str]) -> str:
    """A text that quotes a guest, so that GitHub's runner finds no command in it, in the old form or the new."""
    if of(env) is not Github:
        return text
    return re.sub(r"^(\s*):(?=:)", r"\1: ", text, flags=re.MULTILINE).replace("##[", "## [")


def of(env: Mapping[str, str]) -> type[Github] | type[Gitlab] | None:
    """The marks for the CI service that runs us, from environment variables."""
    if env.get("GITHUB_ACTIONS") == "true":
        return Github
    if env.get("GITLAB_CI") == "true":
        return Gitlab
    return None
