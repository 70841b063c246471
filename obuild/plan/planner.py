"""Plan a stage: turn its ops into a chain of steps. Pure except for reading the files of copies; boots nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

#: Returns the layer of an Extract's build, and the manifest of the files.
FilesOf = Callable[[Extract], tuple[LayerId, tree.Manifest]]


class Variable(NamedTuple):
    """A variable that an `env` has set, and those set before: a linked list, so that an `env` copies nothing."""

    name: str
    value: str
    before: Variable | None


class Context(NamedTuple):
    """The state after the ops so far, for the ops that follow."""

    card: Card = Card()  # frozen
    workdir: str = "/"
    user: UnixUser | WindowsUser = ROOT
    shell: tuple[str, ...] = ("bash", "-c")
    variables: Variable | None = None

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """The variables of a command, by name."""
        found: dict[str, str] = {}
        variable = self.variables
        while variable is not None:
            found.setdefault(variable.name, variable.value)
            variable = variable.before
        return tuple(sorted(found.items()))


def _no_files(extract: Extract) -> tuple[LayerId, tree.Manifest]:
    raise AssertionError(f"the files of {extract.origin!r} are not known")


class PendingGraft(NamedTuple):
    """A copy from a build that is not made yet: what is known of it. `op` is the op in the spec."""

    extract: Extract
    dest: str
    op: Copy


class Planned(NamedTuple):
    """The plan of one op. `headings` are those of its step."""

    action: Action | PendingGraft
    headings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """One checked stage: all that is known of it before the builds that it copies from are made."""

    base: Base
    actions: tuple[Planned, ...]
    tail: tuple[str, ...] = ()

    @property
    def origins(self) -> frozenset[str]:
        """The builds that the stage copies from."""
        pending = (each.action for each in self.actions if isinstance(each.action, PendingGraft))
        return frozenset(graft.extract.origin for graft in pending)

    @cached_property
    def known(self) -> tuple[Step, ...]:
        """The steps before the first copy from a build, whose ids are known."""
        steps: list[Step] = []
        for each in self.actions:
            if isinstance(each.action, PendingGraft):
                break
            steps.append(Step(steps[-1].id if steps else None, each.action, each.headings))
        return tuple(steps)

    def chain(self, files: FilesOf = _no_files) -> Chain:
        """All steps. `files` is called for each copy from a build; without such copies it is not needed.

        SpecError, with the op's line, if it raises a UsageError.
        """
        steps = list(self.known)
        for each in self.actions[len(steps) :]:
            action = each.action
            if isinstance(action, PendingGraft):
                with _blame(action.op):
                    action = Graft(action.extract, *files(action.extract), action.dest)
            steps.append(Step(steps[-1].id, action, each.headings))
        return Chain(tuple(steps), self.base, self.tail)


def bases_of(stage: Stage) -> list[str]:
    """The bases that a stage and the stages inside it name in `from`, each once, in build order."""
    inner = [name for _, each in stage.stages for name in bases_of(each)]
    return list(dict.fromkeys([*inner, stage.base]))


def plan(
    stage: Stage,
    *,
    source: Path,
    bases: Mapping[str, Base],
    builds: Mapping[str, Stage] | None = None,
    secrets: Sequence[str] = (),
    executor: str = "qemu",
) -> Plan:
    """Plan one stage. SpecError, with the op's line, for any mistake that can be found in advance.

    `bases` has the base for each name in a `from`. `builds` are the builds that the stage may copy from, if not
    those inside it. `secrets` are the ids that have a value.
    """
    base = bases[stage.base]
    actions = [Planned(Import(base), (f"(from {sexp.dumps(stage.base)})",))]
    headings: list[str] = []
    scope = _Scope(source, secrets, executor, bases, dict(stage.stages) if builds is None else builds)
    start = rules.start(base.card.os)
    context = Context(base.card, start.workdir, start.user, start.shell)
    for op in stage.ops:
        place = f"{context.workdir}: "
        headings.append(f"{place}{format_op(op, column=len(place))}")
        with _blame(op):
            action = _action(op, context, scope)
            context = _fold(op, context)
        if action is not None:
            actions.append(Planned(action, tuple(headings)))
            headings = []
    return Plan(base, tuple(actions), tuple(headings))


class _Scope(NamedTuple):
    """The data that all ops of a stage share."""

    source: Path
    secrets: Sequence[str]
    executor: str
    bases: Mapping[str, Base]
    builds: Mapping[str, Stage]


def _action(op: Op, context: Context, scope: _Scope) -> Action | PendingGraft | None:
    match op:
        case Run():
            return _command(op, context, scope)
        case Copy(origin=None):
            return _transfer(op, context, scope.source)
        case Copy():
            return _graft(op, context, scope)
        case _:
            return None


def _fold(op: Op, context: Context) -> Context:
    match op:
        case Workdir(path):
            return context._replace(workdir=_join(context, _no_nul(path, "workdir")))
        case Env(name, value):
            _no_nul(value, f"value of {_env_name(name)}")
            rules.check_variable(context.card.os, name, value)
            return context._replace(variables=Variable(name, value, context.variables))
        case User(user):
            rules.check_user(user, context.card)
            return context._replace(user=user)
        case Shell(argv):
            return context._replace(shell=_shell(argv))
        case Run() | Copy() | Comment():
            return context


def _command(op: Run, context: Context, scope: _Scope) -> Command:
    for secret in op.secrets:
        if secret.name not in scope.secrets:
            raise UsageError(f"no value for the secret {secret.name!r}", hint=f"add --secret {secret.name}:FILE")
    for target in _targets(op.caches, op.secrets):
        _no_nul(target, "target")
    command = Command(
        argv=(*context.shell, _no_nul(op.shell, "command")),
        cwd=context.workdir,
        env=context.env,
        user=context.user,
        network=op.network == ("host",),  # as in OBuilder: with any other list of networks, the network is closed
        caches=targets.outermost_first(
            [cache._replace(target=_join(context, cache.target)) for cache in op.caches]
        ),
        secrets=tuple(secret._replace(target=_join(context, secret.target)) for secret in op.secrets),
        executor=scope.executor,
    )
    paths = (command.cwd, *_targets(command.caches, command.secrets))
    rules.check_command(context.card.os, command.argv, command.env, paths)
    targets.check(context.card.os, command.cwd, command.caches, command.secrets)
    return command


def _targets(caches: Sequence[Cache], secrets: Sequence[Secret]) -> list[str]:
    return [*(cache.target for cache in caches), *(secret.target for secret in secrets)]


def _graft(op: Copy, context: Context, scope: _Scope) -> PendingGraft:
    dest, into = _destination(op, context)
    rename = None
    if not into and not tree.is_root(op.src[0]):
        dest, rename = _split(dest, else_there="end dst with a slash")
    extract = Extract(op.origin or "", op.src, op.exclude, rename or None, context.user)
    os = scope.bases[scope.builds[extract.origin].base].card.os
    rules.check_sources(os, extract.src, extract.exclude, extract.rename)
    return PendingGraft(extract, dest, op)


def _destination(op: Copy, context: Context) -> tuple[str, bool]:
    """The destination of a copy, and whether it is a folder for several items."""
    if not op.src:
        raise UsageError("no source items for copy")
    dst = rules.slashes(context.card.os, _no_nul(op.dst, "dst"))
    if len(op.src) > 1 and not dst.endswith("/"):
        raise UsageError("to copy several items, the destination must end with '/'", hint=f"(dst {dst}/)")
    for src in op.src:
        _no_nul(src, "src")
    return _join(context, dst), dst.endswith("/")


def _transfer(op: Copy, context: Context, source: Path) -> Transfer:
    """A copy from the source folder. The folder itself stands for its content, so it has no name to change."""
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
    """Split `dest` into a folder and the new name in it. UsageError if `dest` is certainly a folder."""
    folder, name = rules.split(dest)
    if name in ("", ".."):
        raise UsageError(f"the destination {dest} is a folder", hint=else_there)
    return folder, name


def _join(context: Context, path: str) -> str:
    return rules.join(context.card.os, context.workdir, path)


def _env_name(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise UsageError(f"{name!r} is not a valid name for an environment variable")
    return name


def _shell(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not argv:
        raise UsageError("shell needs at least one word", hint="for example (shell /bin/sh -c)")
    if "=" in argv[0]:
        raise UsageError(f"{argv[0]!r} cannot be a shell: env(1) takes a word with '=' for a variable")
    return tuple(_no_nul(word, "shell") for word in argv)


def _no_nul(text: str, what: str) -> str:
    if "\0" in text:
        raise UsageError(f"a {what} cannot contain a NUL byte")
    return text


class _blame:  # noqa: N801  # reads as the statement it is
    """Turn a UsageError from the block into a SpecError with the position of `op`."""

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
