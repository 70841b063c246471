"""Fetch layers from a remote."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from obuild.cli.bar import Bar
from obuild.cli.console import environment, guarded, note, open_store, say
from obuild.cli.options import InsecureOption, StoreOption, TrustOption, VerboseOption, in_remote

app = typer.Typer()


@app.command()
@guarded
def pull(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ID... REMOTE",
            help="Layers, by id or tag, and where from: oci://HOST/REPOSITORY, s3://BUCKET/PREFIX or dir:PATH.",
        ),
    ],
    store: StoreOption = "",
    *,
    caches: Annotated[bool, typer.Option("--caches", help="Fetch the caches that are there, too.")] = False,
    trust: TrustOption = None,
    insecure: InsecureOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fetch layers, and all below them, from a remote.

    What the store has already is not fetched again. A tag is set here, too, and moves.

    Example: obuild pull pg16 oci://registry.example/team/layers
    """
    from obuild.bases import own_keys
    from obuild.remotes import known, names
    from obuild.remotes.all import Access, open_remote
    from obuild.remotes.pull import pull as fetch
    from obuild.remotes.trust import public_key
    from obuild.store.tags import could_be_id

    ids, name = in_remote(words, "pull", least=0 if caches else 1)
    with open_remote(name, Access(environment(), insecure)) as remote, Bar("fetching") as bar:
        tell = bar.under(note)
        keys = [public_key(path) for path in trust or ()]
        found = {word: names.find(remote, word, trusted=keys) for word in ids}
        opened = open_store(store, create=True)
        if not keys:
            known.believe(opened, name, note)
        for word, chain in found.items():
            blocks = partial(own_keys.blocks, opened)
            fetch(opened, remote, chain, blocks, progress=bar, done=lambda id: tell(f"{id[:12]} is here now"))
            if not could_be_id(word):
                opened.tag(chain[-1].id, word)
            bar.under(say)(chain[-1].id)
        if caches:
            from obuild.remotes.caches import pull_caches

            for cache in pull_caches(opened, remote):
                tell(f"the cache {cache} is here now")
