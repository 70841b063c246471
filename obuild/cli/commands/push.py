"""Send layers to a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli.bar import Bar
from obuild.cli.console import environment, guarded, note, open_store, say
from obuild.cli.options import InsecureOption, SignOption, StoreOption, VerboseOption, in_remote
from obuild.host import units

if TYPE_CHECKING:
    from obuild.plan.keys import LayerId

app = typer.Typer()


@app.command()
@guarded
def push(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ID... REMOTE",
            help="Layers, by id or tag, and where to: oci://HOST/REPOSITORY, s3://BUCKET/PREFIX or dir:PATH.",
        ),
    ],
    store: StoreOption = "",
    *,
    caches: Annotated[bool, typer.Option("--caches", help="Send the caches of the store, too.")] = False,
    sign: SignOption = None,
    insecure: InsecureOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Send layers, and all below them, to a remote.

    What is there already is not sent again. A tag is set there, too, and moves.

    Example: obuild push pg16 oci://registry.example/team/layers
    """
    from obuild.bases import catalog
    from obuild.plan import keys
    from obuild.remotes import bases, known, names, trust
    from obuild.remotes.all import Access, open_remote
    from obuild.remotes.push import push as send
    from obuild.store.index import resolve
    from obuild.store.tags import could_be_id

    ids, name = in_remote(words, "push", least=0 if caches else 1)
    key = trust.private_key(sign) if sign else None
    opened = open_store(store)
    layers = {id: resolve(opened, id) for id in ids}
    access = Access(environment(), insecure, known.names(opened))
    with open_remote(name, access) as remote, Bar("sending") as bar:
        tell = bar.under(note)

        def done(id: LayerId, sent: int) -> None:
            tell(f"{id[:12]} is in {name} now; {units.size(sent)} were sent")

        known.first(opened, name, "written")
        for word, id in layers.items():
            there = send(opened, id, remote, progress=bar, done=done)
            digest = keys.base_digest(keys.fields(opened.layer(there[0].id).key))
            for base in catalog.with_digest(opened, digest):
                bases.put(remote, base.name, there[0], key)
            documents = [each.manifest.descriptor for each in there]
            if not could_be_id(word):
                documents.append(names.put(remote, word, there))
            if key:
                for document in documents:
                    trust.sign(remote, document, key)
            bar.under(say)(f"{id} {there[-1].manifest.digest}")
        if caches:
            from obuild.remotes.caches import push_caches

            for cache, size in push_caches(opened, remote):
                tell(f"the cache {cache} is in {name} now; {units.size(size)} were sent")
