"""Make steps for the builds of others: a worker of a farm."""

# Annotations are not kept as text here: typer would have to evaluate each one.

import platform
from typing import Annotated

import typer

from obuild.cli.console import environment, executor_of, guarded, note, open_store
from obuild.cli.options import (
    FARM,
    FarmInsecureOption,
    FarmTlsOption,
    MaxSizeOption,
    ReserveOption,
    SignOption,
    StoreOption,
    TrustOption,
    VerboseOption,
    parse_bytes,
)
from obuild.errors import UsageError

app = typer.Typer()


@app.command()
@guarded
def worker(
    store: StoreOption = "",
    *,
    scheduler: Annotated[
        str,
        typer.Option(
            envvar="OBUILD_FARM",
            metavar="URL",
            rich_help_panel=FARM,
            show_default=False,
            help="The Dask scheduler of the farm: tls://HOST:8786.",
        ),
    ],
    remote: Annotated[
        str,
        typer.Option(
            envvar="OBUILD_REMOTE",
            metavar="REMOTE",
            show_default=False,
            help="Where the farm shares layers: oci://HOST/REPOSITORY, s3://BUCKET/PREFIX or dir:PATH.",
        ),
    ],
    slots: Annotated[
        int, typer.Option("--slots", metavar="N", min=1, help="How many chains of steps to make at a time.")
    ] = 1,
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory for all machines. [default: what is free]", show_default=False),
    ] = "",
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARCH",
            show_default=False,
            help="An architecture of guests to run. May be repeated. [default: this computer's]",
        ),
    ] = None,
    tls: FarmTlsOption = None,
    insecure: FarmInsecureOption = False,
    remote_insecure: Annotated[
        bool, typer.Option("--remote-insecure", help="Talk to registries by http.")
    ] = False,
    reserve: ReserveOption = "",
    max_size: MaxSizeOption = "",
    sign: SignOption = None,
    trust: TrustOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Make steps for builds on other hosts, until it is stopped.

    It serves the builds that name the same scheduler with --farm.

    Example: obuild worker --scheduler tls://farm.example:8786 --tls farm-tls --remote oci://registry.example/layers
    """
    from obuild.builder.farm import tls as certificates
    from obuild.builder.farm.client import missing_package
    from obuild.builder.farm.host import Host
    from obuild.builder.sharing import Wish
    from obuild.guests.profile import arch_named
    from obuild.host import memory as host_memory
    from obuild.remotes import known
    from obuild.remotes.all import Access, see_remote
    from obuild.remotes.trust import private_key, public_key
    from obuild.store.quota import Room

    address = certificates.checked(scheduler, tls, insecure=insecure)
    see_remote(remote)
    wish = Wish(
        (remote,),
        Access(environment(), remote_insecure),
        required=True,
        sign=private_key(sign) if sign else None,
        trust=tuple(map(public_key, trust or [])),
    )
    given = parse_bytes("--memory", memory) if memory else host_memory.available()
    arches = tuple(map(arch_named, arch or [platform.machine()]))
    reserved = parse_bytes("--reserve", reserve) if reserve else 0
    most = parse_bytes("--max-size", max_size) if max_size else None
    opened = open_store(store, create=True)
    if not trust:
        known.believe(opened, remote, note)
    try:
        from obuild.builder.farm import server
    except ImportError as error:
        raise missing_package(error) from error
    host = Host(opened, wish, Room(opened, reserved, most).make)
    offer = server.Offer(slots, executor_of(store), arches, given)
    if not server.serve(host, address, offer, log=note):
        raise UsageError(f"the scheduler {scheduler} cannot be reached, or is gone", hint="start this again")
