"""What this host can do."""

from __future__ import annotations

import typer

from obuild.cli.console import guarded, put, put_json, store_path
from obuild.cli.options import JsonOption, StoreOption
from obuild.errors import ObuildError

app = typer.Typer()


@app.command()
@guarded
def doctor(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """Show what this host can do, and how to mend what it cannot.

    The exit code is 1 if it cannot run steps in virtual machines. Nothing is changed, and no store is made;
    `obuild healthcheck` runs a whole build.

    Example: obuild doctor
    """
    from obuild.builder import doctor

    findings = []
    for finding in doctor.examine(store_path(store)):
        findings.append(finding)
        if not as_json:
            put(f"{'ok' if finding.works else 'no':3} {finding.what}: {finding.said}")
            if finding.mend:
                put(f"      {finding.mend}")
    if as_json:
        put_json([finding._asdict() for finding in findings])
    if bad := [finding for finding in findings if finding.essential and not finding.works]:
        raise ObuildError(f"this host cannot run steps: {bad[0].said}", hint=bad[0].mend)
