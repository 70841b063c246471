"""Watch the builds that run on a store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import progress
from obuild.cli.console import guarded, look_at, put, say
from obuild.cli.options import StoreOption

if TYPE_CHECKING:
    from obuild.builder.watching import Seen, Watcher

app = typer.Typer()

#: How often to look for news, in seconds.
PERIOD = 0.1


@app.command()
@guarded
def watch(
    store: StoreOption = "",
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for builds, also after the last one has ended.")
    ] = False,
    shown: Annotated[
        str,
        typer.Option(
            "--progress",
            metavar="auto|plain|json",
            help="As for build; each JSON record has the name of its build as `build`.",
        ),
    ] = "auto",
) -> None:
    """Watch the builds that run on a store now, until they end.

    It shows their steps and output, and begins with what is at work. Ctrl-C leaves, and the builds go on. Nothing
    in the store is changed.

    Example: obuild watch
    """
    from obuild.builder.watching import Watcher
    from obuild.cli.text import JsonLines, Quiet
    from obuild.cli.watched import Watched

    listener = progress.chosen(shown, "", quiet=False)
    opened = look_at(store)
    try:
        if isinstance(listener, JsonLines | Quiet):
            _follow(Watcher(opened), _put_record, wait=wait)
            return
        with listener:
            watched = Watched(listener)
            if not _follow(Watcher(opened), watched, wait=wait, settled=watched.settle):
                say("no build is running")
    except KeyboardInterrupt:  # the way to leave
        return


def _follow(
    watcher: Watcher, show: Callable[[Seen], None], *, wait: bool, settled: Callable[[], None] = lambda: None
) -> bool:
    """Show what happens until no build runs; False if none ran. `settled` is called after what is past."""
    with watcher:
        ran = False
        while True:
            for seen in watcher.look():
                ran = True
                show(seen)
            settled()
            sys.stdout.flush()
            if not (watcher.running or wait):
                return ran
            time.sleep(PERIOD)


def _put_record(seen: Seen) -> None:
    from obuild.builder import records

    put(json.dumps({"build": seen.build, **records.record(seen.event)}))
