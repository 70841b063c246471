"""Steps: what to do, in which order, and the id of each.

The id of a step is the sha256 of its key: see `keys`. Caches, CPUs, memory and time limits are not in the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from obuild.guests.profile import Card
from obuild.plan import keys, tree
from obuild.plan.keys import LayerId
from obuild.spec import Cache, Secret, UnixUser, WindowsUser


class Beside(NamedTuple):
    """A file that belongs to a base image, and its name in the base's layer."""

    name: str
    path: Path
    stamp: tuple[int, int, int]


#: The path of a base image that this host lacks, whose layer comes from a remote: nothing can be there.
ABSENT = Path("/dev/null/absent")


class Base(NamedTuple):
    """A base image: its file, the sha256 of its disk's content, and its card.

    If a kernel lies beside it, the digest covers the content of all these files. `own_card` is the card as found,
    if the user has overridden it in `card`.
    """

    name: str
    path: Path
    digest: str
    stamp: tuple[int, int, int]  # the file's `host.stamp.of` when it was hashed
    card: Card
    beside: tuple[Beside, ...] = ()
    own_card: Card | None = None


class Built(NamedTuple):
    """A built stage: its last layer, and the base of that."""

    layer: LayerId
    base: Base


class Import(NamedTuple):
    """Import a base image into the store as a first layer."""

    base: Base


class Command(NamedTuple):
    """Run `argv` in the guest. `network`: whether it may reach the outside; `executor`: where it runs."""

    argv: tuple[str, ...]
    cwd: str
    env: tuple[tuple[str, str], ...]
    user: UnixUser | WindowsUser
    network: bool
    caches: tuple[Cache, ...] = ()
    secrets: tuple[Secret, ...] = ()
    executor: str = "qemu"


class Transfer(NamedTuple):
    """Put `tree` into the guest's folder `dest`, owned by `user`."""

    tree: tree.Tree
    dest: str
    user: UnixUser | WindowsUser


class Extract(NamedTuple):
    """Files of another build: `src` are paths in its file system; a single one gets the name `rename`, if any."""

    origin: str
    src: tuple[str, ...]
    exclude: tuple[str, ...]
    rename: str | None
    user: UnixUser | WindowsUser


class Graft(NamedTuple):
    """Put files from the layer `source` into the guest's folder `dest`."""

    extract: Extract
    source: LayerId
    manifest: tree.Manifest
    dest: str

    @property
    def user(self) -> UnixUser | WindowsUser:
        return self.extract.user


Action = Import | Command | Transfer | Graft


class Keyed(Protocol):
    """What a layer needs to be filed: its key, the id that follows from that, and its parent."""

    @property
    def key(self) -> str: ...

    @property
    def id(self) -> LayerId: ...

    @property
    def parent(self) -> LayerId | None: ...


@dataclass(frozen=True)
class Step:
    """An action that is ready to run. `headings` are the ops as written, this one last; they are not hashed.

    Only an Import has no parent.
    """

    parent: LayerId | None
    action: Action
    headings: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The canonical text that is hashed and kept in the layer."""
        action = self.action
        if isinstance(action, Import):
            return keys.of_base(action.base.digest)
        assert self.parent is not None, "only an Import has no parent"
        match action:
            case Command():
                return keys.of_command(
                    self.parent,
                    executor=action.executor,
                    workdir=action.cwd,
                    user=action.user,
                    env=action.env,
                    argv=action.argv,
                    network=action.network,
                    secrets=tuple((secret.name, secret.target) for secret in action.secrets),
                )
            case Transfer():
                return keys.of_copy(self.parent, dest=action.dest, user=action.user, files=action.tree.manifest)
            case Graft():
                return keys.of_copy(self.parent, dest=action.dest, user=action.user, files=action.manifest)

    @cached_property
    def id(self) -> LayerId:
        return keys.layer_id(self.key)


class Chain(NamedTuple):
    """The steps of one stage, first to last; `tail` are the headings of ops after the last step."""

    steps: tuple[Step, ...]
    base: Base
    tail: tuple[str, ...] = ()
