"""A stage and its context become a chain of steps. Pure but for reading the files of a copy; boots nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from obuild.errors import SpecError, UsageError
from obuild.guests import rules, targets
from obuild.guests.profile import Card
from obuild.plan import tree
from obuild.plan.keys import LayerId
from obuild.plan.steps import Action, Base, Chain, Command, Extract, Graft, Import, Step, Transfer
from obuild.spec import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    Shell,
    Stage,
    UnixUser,
    User,
    WindowsUser,
    Workdir,
    format_op,
    sexp,
)

ROOT = UnixUser(0, 0)

#: Says which layer an Extract's build has become, and what the files are.
FilesOf = Callable[[Extract], tuple[LayerId, tree.Manifest]]


class Variable(NamedTuple):
    """What an `env` has set, and what was set before: thousands of them cost no copy each."""

    name: str
    value: str
    before: Variable | None


@dataclass(frozen=True, slots=True)
class Context:
    """What the ops so far say of the steps to come."""

    card: Card = Card()  # noqa: RUF009  # frozen
    workdir: str = "/"
    user: UnixUser | WindowsUser = ROOT
    shell: tuple[str, ...] = ("bash", "-c")
    variables: Variable | None = None

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """The variables that a command finds, by name."""
        found: dict[str, str] = {}
        variable = self.variables
        while variable is not None:
            found.setdefault(variable.name, variable.value)
            variable = variable.before
        return tuple(sorted(found.items()))


def unbuilt(builds: Mapping[str, Stage], find_base: Callable[[str], Base]) -> FilesOf:
    """Stands for the files of builds that are yet to be made. UsageError if one could not be asked for them."""

    def files(extract: Extract) -> tuple[LayerId, tree.Manifest]:
        os = find_base(builds[extract.origin].base).card.os
        rules.check_sources(os, extract.src, extract.exclude, extract.rename)
        return LayerId(""), ()

    return files


def everything(
    stage: Stage, builds: Mapping[str, Stage] | None = None
) -> Iterator[tuple[Stage, Mapping[str, Stage]]]:
    """A stage and all stages inside it, in the order in which they are built, with those it may copy from."""
    builds = dict(builds or {})
    for name, inner in stage.stages:
        yield from everything(inner, builds)
        builds[name] = inner
    yield stage, builds


def plan(
    stage: Stage,
    *,
    source: Path,
    find_base: Callable[[str], Base],
    secrets: Sequence[str] = (),
    extract: FilesOf | None = None,
) -> Chain:
    """The steps of one stage. UsageError, with the op's line, for what can be seen to be wrong in it.

    `find_base` turns the name after `from` into a Base; `secrets` are the ids that have a value. `extract` is
    asked for the files of a copy from another build; without it (as with `unbuilt`), ids from such a copy on mean
    nothing.
    """
    base = find_base(stage.base)
    steps = [Step(None, Import(base), (f"(from {sexp.dumps(stage.base)})",))]
    headings: list[str] = []
    extract = extract or unbuilt(dict(stage.stages), find_base)
    start = rules.start(base.card.os)
    context = Context(base.card, start.workdir, start.user, start.shell)
    for op in stage.ops:
        place = f"{context.workdir}: "
        headings.append(f"{place}{format_op(op, column=len(place))}")
        with _blame(op):
            action = _action(op, context, source, secrets, extract)
            context = _fold(op, context)
        if action is not None:
            steps.append(Step(steps[-1].id, action, tuple(headings)))
            headings = []
    return Chain(tuple(steps), base, tuple(headings))


def _action(op: Op, context: Context, source: Path, secrets: Sequence[str], extract: FilesOf) -> Action | None:
    match op:
        case Run():
            return _command(op, context, secrets)
        case Copy(origin=None):
            return _transfer(op, context, source)
        case Copy():
            return _graft(op, context, extract)
        case _:
            return None


def _fold(op: Op, context: Context) -> Context:
    match op:
        case Workdir(path):
            return replace(context, workdir=_join(context, _no_nul(path, "workdir")))
        case Env(name, value):
            _no_nul(value, f"value of {_env_name(name)}")
            rules.check_variable(context.card.os, name, value)
            return replace(context, variables=Variable(name, value, context.variables))
        case User(user):
            rules.check_user(user, context.card)
            return replace(context, user=user)
        case Shell(argv):
            return replace(context, shell=_shell(argv))
        case Run() | Copy() | Comment():
            return context


def _command(op: Run, context: Context, secrets: Sequence[str]) -> Command:
    for secret in op.secrets:
        if secret.name not in secrets:
            raise UsageError(f"no value for the secret {secret.name!r}", hint=f"add --secret {secret.name}:FILE")
    for target in _targets(op.caches, op.secrets):
        _no_nul(target, "target")
    command = Command(
        argv=(*context.shell, _no_nul(op.shell, "command")),
        cwd=context.workdir,
        env=context.env,
        user=context.user,
        network=op.network == ("host",),  # as OBuilder: any other list of networks is a closed one
        caches=targets.outermost_first(
            [replace(cache, target=_join(context, cache.target)) for cache in op.caches]
        ),
        secrets=tuple(replace(secret, target=_join(context, secret.target)) for secret in op.secrets),
    )
    paths = (command.cwd, *_targets(command.caches, command.secrets))
    rules.check_command(context.card.os, command.argv, command.env, paths)
    targets.check(context.card.os, command.cwd, command.caches, command.secrets)
    return command


def _targets(caches: Sequence[Cache], secrets: Sequence[Secret]) -> list[str]:
    return [*(cache.target for cache in caches), *(secret.target for secret in secrets)]


def _graft(op: Copy, context: Context, extract: FilesOf) -> Graft:
    dest, into = _destination(op, context)
    rename = None
    if not into and not tree.is_root(op.src[0]):
        dest, rename = _split(dest, else_there="end dst with a slash")
    request = Extract(op.origin or "", op.src, op.exclude, rename or None, context.user)
    return Graft(request, *extract(request), dest)


def _destination(op: Copy, context: Context) -> tuple[str, bool]:
    """Where a copy goes, and whether that is a folder for several items."""
    if not op.src:
        raise UsageError("no source items for copy")
    dst = rules.slashes(context.card.os, _no_nul(op.dst, "dst"))
    if len(op.src) > 1 and not dst.endswith("/"):
        raise UsageError("to copy several items, the destination must end with '/'", hint=f"(dst {dst}/)")
    for src in op.src:
        _no_nul(src, "src")
    return _join(context, dst), dst.endswith("/")


def _transfer(op: Copy, context: Context, source: Path) -> Transfer:
    """A copy from the source folder. That itself has no name to change: it stands for what is in it."""
    dest, into = _destination(op, context)
    rename = None
    if not into:
        name = rules.split(dest)[1]
        if tree.is_folder(source, op.src[0]) and (tree.is_root(op.src[0]) or name in ("", "..")):
            rename = ""
        else:
            dest, rename = _split(dest, else_there="end dst with the name of the file")
    return Transfer(tree.walk(source, op.src, exclude=op.exclude, rename=rename), dest, context.user)


def _split(dest: str, *, else_there: str) -> tuple[str, str]:
    """The folder that something goes into, and its new name there. UsageError if that is surely a folder."""
    folder, name = rules.split(dest)
    if name in ("", ".."):
        raise UsageError(f"the destination {dest} is a folder", hint=else_there)
    return folder, name


def _join(context: Context, path: str) -> str:
    return rules.join(context.card.os, context.workdir, path)


def _env_name(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise UsageError(f"{name!r} cannot be the name of an environment variable")
    return name


def _shell(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not argv:
        raise UsageError("shell needs at least one word", hint="for example (shell /bin/sh -c)")
    if "=" in argv[0]:
        raise UsageError(f"{argv[0]!r} cannot be a shell: a program with '=' in its name is taken for a variable")
    return tuple(_no_nul(word, "shell") for word in argv)


def _no_nul(text: str, what: str) -> str:
    if "\0" in text:
        raise UsageError(f"a NUL byte cannot be part of a {what}")
    return text


class _blame:  # noqa: N801  # reads as the statement it is
    """Give a UsageError raised inside the position of `op` in the spec."""

    def __init__(self, op: Op) -> None:
        self.op = op

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UsageError) and not isinstance(error, SpecError):
            name = type(self.op).__name__.lower()
            raise SpecError(
                f"in ({name} …): {error.message}", line=self.op.line, column=self.op.column, hint=error.hint
            ) from error
