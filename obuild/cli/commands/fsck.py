"""Check a store, and repair it."""

from __future__ import annotations

from typing import Annotated

import typer

from obuild.cli.bar import Bar
from obuild.cli.console import guarded, look_at, open_store, put, put_json, say
from obuild.cli.options import JsonOption, StoreOption
from obuild.errors import ObuildError

app = typer.Typer()


@app.command()
@guarded
def fsck(
    store: StoreOption = "",
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read every byte of every layer and cache, and compare digests.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the store, and repair it.

    It checks keys, parents, images, tags, the index, and what crashes left behind. The exit code is 1 if something
    is wrong and was not repaired. Builds may run at the same time.

    Example: obuild fsck --repair
    """
    from obuild.store import fsck

    opened = open_store(store, sweep=False) if repair else look_at(store)
    findings = []
    left = 0
    with Bar("checking") as bar:
        for finding in fsck.check(opened, read_data=read_data, progress=bar):
            outcome = fsck.repair(opened, finding) if repair else "found"
            left += outcome != "repaired"
            shown = {"where": finding.where, "what": finding.what, "repair": finding.repair, "outcome": outcome}
            findings.append(shown)
            if not as_json:
                lines = f"{finding.where}: {finding.what}", f"  repair: {finding.repair or 'none'}", f"  {outcome}"
                bar.under(say)("\n".join(lines))
    if as_json:
        put_json({"layers": len(opened.layers()), "findings": findings})
    elif not findings:
        put(f"clean: {len(opened.layers())} layers")
    if left:
        hint = "" if repair else "`obuild fsck --repair` repairs what can be repaired"
        raise ObuildError(
            f"{left} of {len(findings)} findings {'are' if left > 1 else 'is'} not repaired", hint=hint
        )
