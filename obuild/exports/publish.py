"""Publish layers: check every target, export the images that they need once, and send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.exports import checksums
from obuild.exports.all import FORMATS
from obuild.exports.targets import beside
from obuild.exports.targets.all import KINDS, Kind, kind_of
from obuild.exports.targets.target import Image, Published, Settings, Target, filled
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from obuild.version import VERSION


class Source(NamedTuple):
    """A layer to publish: what it is called, and the card of its base."""

    layer: LayerId
    name: str
    card: Card


class Delivery(NamedTuple):
    """A target, and the layers that it takes.

    `beside` opens the target for another file, called like an image and a suffix; None if there cannot be one.
    """

    text: str
    target: Target
    sources: Sequence[Source]
    beside: Callable[[str], Target] | None = None


class Key(NamedTuple):
    """An image: of which layer, called what, of which type."""

    layer: LayerId
    stem: str
    type: str


#: Exports images of a layer, of these types, to a folder, called so before their suffixes.
Make = Callable[[Source, Sequence[str], Path, str], object]


def publish(
    store: Store,
    sources: Sequence[Source],
    targets: Sequence[str],
    settings: Settings,
    *,
    make: Make,
    recipe: str,
    done: Callable[[Published], object] = lambda published: None,
) -> None:
    """Publish each layer at each target; `done` is called with each thing that is there, at once.

    `recipe` describes all that `make` depends on besides its arguments: after a failure, the images are kept for
    the next try with the same recipe.

    UsageError or ObuildError, before anything is exported, if a target is wrong or refuses us. A later failure
    leaves what was published before it; the next try sends only what is missing.
    """
    deliveries = [each for text in targets for each in _deliveries(text, sources, settings)]
    _see_different(deliveries)
    for delivery in deliveries:
        delivery.target.check([each.card for each in delivery.sources])
    groups = _groups(deliveries)
    key = repr((VERSION, recipe, [(each.layer, each.card, stem, types) for (each, stem), types in groups.items()]))
    with store.outbox.images(key, lambda folder: _make(groups, folder, make)) as folder:
        images = _images(groups, folder)
        for delivery in deliveries:
            settings.say(f"publishing {delivery.text}")
            sent = [images[_key(delivery, each)] for each in delivery.sources]
            for published in delivery.target.send(sent):
                done(published)
            if delivery.beside:
                (image,) = sent
                beside.send(image, delivery.target.stem, delivery.beside, settings.signer)


def _deliveries(text: str, sources: Sequence[Source], settings: Settings) -> Iterator[Delivery]:
    found = kind_of(text)
    if found is None:
        raise UsageError(f"{text!r} is not a target", hint=f"targets begin with {', '.join(KINDS)}")
    prefix, kind = found
    arches = [each.card.arch for each in sources]
    if kind.together and (twice := [arch for arch in arches if arches.count(arch) > 1]):
        hint = "one image for each architecture can be under a name: publish the layers under several names"
        raise UsageError(f"two of the layers are for {twice[0]}", hint=hint)
    for some in [sources] if kind.together else [[each] for each in sources]:
        values = {"name": some[0].name, "version": settings.version, "arch": some[0].card.arch}
        shown = filled(text, values)
        place = shown.removeprefix(prefix)
        opened = partial(_beside, kind, place, settings) if kind.beside else None
        yield Delivery(shown, kind.open(place, settings), some, opened)


def _beside(kind: Kind, place: str, settings: Settings, suffix: str) -> Target:
    """The target for a file beside the image at `place`, whatever it is."""
    return kind.open(f"{place}{suffix}", settings._replace(type="raw", replace=True, say=lambda text: None))


def _see_different(deliveries: Sequence[Delivery]) -> None:
    texts = [each.text for each in deliveries]
    twice = [text for text in texts if texts.count(text) > 1]
    if twice:
        hint = "{arch} or {name} in a target makes them differ"
        raise UsageError(f"two images would be published as {twice[0]}", hint=hint)


#: What is made of a layer under one name: the types. The disk is unpacked once for all of them.
Groups = dict[tuple[Source, str], list[str]]


def _groups(deliveries: Sequence[Delivery]) -> Groups:
    found: Groups = {}
    for delivery in deliveries:
        for source in delivery.sources:
            types = found.setdefault((source, delivery.target.stem), [])
            if delivery.target.type not in types:
                types.append(delivery.target.type)
    return found


def _make(groups: Groups, folder: Path, make: Make) -> None:
    for number, ((source, stem), types) in enumerate(groups.items()):
        make(source, types, folder / str(number), stem)


def _images(groups: Groups, folder: Path) -> dict[Key, Image]:
    found = {}
    for number, ((source, stem), types) in enumerate(groups.items()):
        for type in types:
            path = folder / str(number) / f"{stem}.{FORMATS[type].suffix}"
            found[Key(source.layer, stem, type)] = Image(path, source.layer, source.card, checksums.noted(path))
    return found


def _key(delivery: Delivery, source: Source) -> Key:
    return Key(source.layer, delivery.target.stem, delivery.target.type)
