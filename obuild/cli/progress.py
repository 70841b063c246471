"""How a build shows its progress: which listener, and what a failed step's message says about what to do next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias

from obuild.cli import text as ui
from obuild.cli.console import environment, lines
from obuild.errors import StepFailed, UsageError
from obuild.plan.keys import LayerId

if TYPE_CHECKING:
    from obuild.cli.live.view import View
    from obuild.events import Listener, Teller
    from obuild.executors.protocol import OnFailure, Session
    from obuild.plan.steps import Command
    from obuild.store.layers import Store

#: Any of the listeners.
Shown: TypeAlias = "ui.Lines | ui.JsonLines | ui.Quiet | View"


def chosen(progress: str, events: str, *, quiet: bool) -> Shown:
    """Return the listener that shows progress. `events` is its old name. UsageError for unknown values."""
    if events not in ("", "lines", "json"):
        raise UsageError(f"--events {events}: it can be lines or json")
    if progress not in ("auto", "plain", "json"):
        raise UsageError(f"--progress {progress}: it can be auto, plain or json")
    json = "json" in (progress, events)
    if quiet and json:
        raise UsageError("--quiet and JSON exclude each other", hint="give only one of them")
    if quiet:
        return ui.Quiet(sys.stdout.buffer, sys.stderr.buffer)
    if json:
        return ui.JsonLines(sys.stdout.buffer)
    if progress == "plain":
        return _plain()
    if events == "lines" or not sys.stdout.isatty():
        return _plain() if not events and _in_ci() else lines()
    from obuild.cli.live.look import can_draw, look
    from obuild.cli.live.screen import Screen

    out = sys.stdout.buffer
    if not can_draw(environment()) or not Screen(out).is_ours():
        return lines()
    from obuild.cli.live.view import View

    return View(out, look(environment()))


@contextmanager
def shown(
    tell: Shown, store: Store, jobs: int, *, named: str = "", tags: Sequence[str] = ()
) -> Iterator[Listener]:
    """Yield the listener for a build; afterwards, whatever happens, the terminal is as before.

    It keeps the lines of parallel stages apart. `named` is the value of --store, for the message of a failed step.
    """
    with ExitStack() as stack:
        listener: Listener = tell
        if not isinstance(tell, ui.Lines | ui.JsonLines | ui.Quiet):
            from obuild.cli.live.store_facts import StoreFacts

            tell.facts, tell.tags = StoreFacts(store), tags
            stack.enter_context(tell)
        elif isinstance(tell, ui.Lines):
            stack.enter_context(tell)
            if jobs > 1 and not tell.mixed:
                from obuild.cli.turns import Turns  # late: seldom needed

                listener = stack.enter_context(Turns(tell, store))
        try:
            yield listener
        except StepFailed as error:
            error.hint = error.hint or _next_steps(error, store, named)
            raise


def at_terminal(tell: Shown, act: OnFailure | None) -> OnFailure | None:
    """`act`, which may use the terminal, so that the listener leaves it alone meanwhile."""
    if act is None or isinstance(tell, ui.Lines | ui.JsonLines | ui.Quiet):
        return act

    def paused(session: Session, command: Command, status: int, say: Teller) -> None:
        with tell.paused():
            act(session, command, status, say)

    return paused


def _next_steps(error: StepFailed, store: Store, named: str) -> str:
    """Commands that help to find out why a step failed. A step that failed elsewhere has no log here."""
    option = f" --store={shlex.quote(named)}" if named else ""
    found = []
    if error.place and error.place.step and store.log_path(LayerId(error.place.step)).is_file():
        found.append((f"obuild logs {error.place.step[:12]}{option}", "all of its output"))
    found.append((f"obuild build --on-failure shell{option} …", "a shell in its machine"))
    if error.parent:
        found.append((f"obuild run {error.parent[:12]}{option} -- COMMAND", "a command where it began"))
    width = max(len(command) for command, _ in found)
    return "\n".join(["these may help:", *(f"  {command:{width}}  {what}" for command, what in found)])


def _in_ci() -> bool:
    from obuild.cli import folding

    return folding.of(environment()) is not None


def _plain() -> ui.Lines:
    from obuild.cli import folding
    from obuild.cli.plain import Plain

    return Plain(sys.stdout.buffer, fold=folding.of(environment()))
