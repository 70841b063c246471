"""Build a spec."""

# Annotations are not kept as text here: typer would have to evaluate each one, in every cached build.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import progress as show
from obuild.cli import text as ui
from obuild.cli.console import (
    environment,
    executor_of,
    guarded,
    open_store,
    read_file,
    read_spec,
    spec_path,
)
from obuild.cli.options import (
    FARM,
    MACHINE,
    FarmInsecureOption,
    FarmTlsOption,
    Machine,
    MaxSizeOption,
    ReserveOption,
    SignOption,
    SourceArgument,
    SpecOption,
    StoreOption,
    TrustOption,
    VerboseOption,
    machine_options,
    parse_bytes,
)
from obuild.errors import UsageError

if TYPE_CHECKING:
    from obuild.builder.engine import Engine
    from obuild.builder.sharing import Wish

app = typer.Typer()

REMOTES = "Remotes"


@app.command()
@guarded
@machine_options
def build(
    source: SourceArgument,
    store: StoreOption = "",
    *,
    spec: SpecOption = "",
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="NAME", help="Tag the result, which keeps it. May be repeated."),
    ] = None,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Run every command again. Removes the commands' layers, and all layers built on them.",
        ),
    ] = False,
    secret: Annotated[
        list[str] | None, typer.Option(metavar="ID:FILE", help="The value of (secrets ID). May be repeated.")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="How many independent stages to build in parallel."),
    ] = 1,
    reserve: ReserveOption = "",
    max_size: MaxSizeOption = "",
    progress: Annotated[
        str,
        typer.Option(
            metavar="auto|plain|json",
            help="How to show progress. auto: live on a terminal, else as lines. plain: as lines for the log of a "
            "CI job; auto is this in GitHub's and GitLab's jobs. json: as one JSON record per line.",
        ),
    ] = "auto",
    events: Annotated[str, typer.Option(metavar="lines|json", hidden=True)] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the id of the result.")] = False,
    machine: Machine,
    vm: Annotated[
        str,
        typer.Option(
            metavar="auto|warm|boot",
            rich_help_panel=MACHINE,
            help="Whether steps share a machine that is saved and resumed (warm), or each step boots its own. "
            "auto is warm for guests that support it. Saving machines is experimental under KVM.",
        ),
    ] = "auto",
    warm_budget: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=MACHINE,
            help="How much disk space all saved machines of the store may take; 0 saves none.",
        ),
    ] = "4G",
    on_failure: Annotated[
        str,
        typer.Option(
            metavar="stop|shell|keep",
            help="If a command fails: stop, open a shell in its machine, or keep the machine until Ctrl-C.",
        ),
    ] = "stop",
    remote: Annotated[
        list[str] | None,
        typer.Option(
            envvar="OBUILD_REMOTE",
            metavar="REMOTE",
            rich_help_panel=REMOTES,
            show_default=False,
            help="Fetch layers that the store lacks from here, and send those that are made: "
            "oci://HOST/REPOSITORY, s3://BUCKET/PREFIX or dir:PATH. May be repeated.",
        ),
    ] = None,
    remote_mode: Annotated[
        str,
        typer.Option(metavar="read|write|both", rich_help_panel=REMOTES, help="Fetch, send, or both."),
    ] = "both",
    remote_required: Annotated[
        bool,
        typer.Option("--remote-required", rich_help_panel=REMOTES, help="Fail if a remote fails."),
    ] = False,
    remote_insecure: Annotated[
        bool, typer.Option("--remote-insecure", rich_help_panel=REMOTES, help="Talk to registries by http.")
    ] = False,
    pull: Annotated[
        bool,
        typer.Option("--pull", rich_help_panel=REMOTES, help="Fetch the result even if nothing here needs it."),
    ] = False,
    sign: SignOption = None,
    trust: TrustOption = None,
    farm: Annotated[
        str,
        typer.Option(
            envvar="OBUILD_FARM",
            metavar="URL",
            rich_help_panel=FARM,
            show_default=False,
            help="Have the workers of this Dask scheduler make what is missing: tls://HOST:8786. Needs --remote.",
        ),
    ] = "",
    tls: FarmTlsOption = None,
    insecure: FarmInsecureOption = False,
    farm_secrets: Annotated[
        bool,
        typer.Option(
            "--farm-secrets", rich_help_panel=FARM, help="Send workers the secrets that their steps need, sealed."
        ),
    ] = False,
    farm_fallback: Annotated[
        bool,
        typer.Option(
            "--farm-fallback", rich_help_panel=FARM, help="Go on here if the scheduler cannot be reached, or dies."
        ),
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Build a spec: make the layers that are not in the store yet.

    Without -f, the spec is SOURCE/obuild.spec.

    Example: obuild build -t hello .
    """
    from obuild.builder import engine
    from obuild.builder.recorder import Recorder
    from obuild.spec import parse
    from obuild.store.tags import checked

    tell = show.chosen(progress, events, quiet=quiet)
    with ui.ending(tell):
        path = spec_path(source, spec)
        stage = parse(read_spec(path))
        names = [checked(name) for name in tag or []]
        settings = machine.settings(vm=vm, warm_budget=warm_budget)
        reserved = parse_bytes("--reserve", reserve) if reserve else 0
        most = parse_bytes("--max-size", max_size) if max_size else None
        opened = open_store(store, create=True, quiet=quiet)
        values = _secrets(secret or [])
        executor = executor_of(store)
        with (
            show.shown(tell, opened, 2 if farm else jobs, named=store, tags=names) as listener,
            Recorder(opened, listener, spec=path, source=Path(source), executor=executor) as recorder,
        ):
            builder = engine.Engine(Path(source), opened, settings, recorder, values, jobs)
            builder.executor = executor
            if on_failure != "stop":
                from obuild.builder import on_failure as failing

                builder.on_failure = show.at_terminal(tell, failing.chosen(on_failure, jobs=jobs))
            builder.tags = names
            builder.no_cache = no_cache
            if remote:
                from dataclasses import replace

                wish = _remotes(remote, remote_mode, sign, trust or [], insecure=remote_insecure)
                builder.remotes = replace(wish, required=remote_required, whole=pull)
            if farm:
                from obuild.builder.farm.client import FarmWish
                from obuild.builder.farm.tls import checked as checked_address

                _see_farm(builder, on_failure)
                address = checked_address(farm, tls, insecure=insecure)
                builder.farm = FarmWish(address, farm_secrets, farm_fallback)
            if reserve or max_size:
                from obuild.store.quota import Room

                builder.make_room = Room(opened, reserved, most).make
            builder.build(stage)


def _remotes(names: list[str], mode: str, sign: Path | None, trust: list[Path], *, insecure: bool) -> "Wish":
    """UsageError for an unknown mode, a name that is not that of a remote, or a file that is not a key."""
    from obuild.builder.sharing import Wish
    from obuild.remotes import trust as keys
    from obuild.remotes.all import Access, see_remote

    if mode not in ("read", "write", "both"):
        raise UsageError(f"--remote-mode {mode}: it can be read, write or both")
    for name in names:
        see_remote(name)
    return Wish(
        tuple(names),
        Access(environment(), insecure),
        read=mode != "write",
        write=mode != "read",
        sign=keys.private_key(sign) if sign else None,
        trust=tuple(map(keys.public_key, trust)),
    )


def _see_farm(builder: "Engine", on_failure: str) -> None:
    """UsageError for what a build with a farm cannot do."""
    from dataclasses import replace

    wish = builder.remotes
    if wish is None or not (wish.read and wish.write):
        raise UsageError("--farm needs --remote: layers reach the workers, and you, through it")
    for option, given in (("--no-cache", builder.no_cache), (f"--on-failure {on_failure}", on_failure != "stop")):
        if given:
            raise UsageError(f"{option} does not work with --farm", hint="build here")
    builder.remotes = replace(wish, required=True)


def _secrets(given: list[str]) -> dict[str, bytes]:
    found = {}
    for item in given:
        name, colon, path = item.partition(":")
        if not colon or not name:
            raise UsageError(f"--secret {item} is not ID:FILE")
        found[name] = read_file(Path(path), f"the file {path} of the secret {name!r}")
    return found
