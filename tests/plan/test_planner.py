"""Steps and their ids: what counts in them, what does not, and what is refused before anything boots."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from obuild import spec
from obuild.errors import SpecError, UsageError
from obuild.guests.profile import Card
from obuild.guests.rules import MAX_ARGUMENT
from obuild.plan import tree
from obuild.plan.keys import LayerId
from obuild.plan.planner import bases_of, plan
from obuild.plan.steps import Base, Chain, Command, Extract, Graft, Import, Transfer
from obuild.plan.tree import Manifest
from obuild.spec import Copy, Env, Shell, Stage, UnixUser

BASE = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("inner")
    (tmp_path / "file").write_text("file")
    return tmp_path


def make(ops: str, source: Path = Path(), *, base: Base = BASE, secrets: tuple[str, ...] = ()) -> Chain:
    stage = spec.parse(f"((from b)\n{ops})".encode())
    return plan(stage, source=source, bases={"b": base}, secrets=secrets).chain()


def last(ops: str, source: Path = Path(), *, secrets: tuple[str, ...] = ()) -> Any:
    return make(ops, source, secrets=secrets).steps[-1].action


def test_a_chain_begins_with_the_base_and_each_steps_parent_is_the_one_before() -> None:
    steps = make("(run (shell a)) (run (shell b))").steps
    assert steps[0].action == Import(BASE)
    assert [step.parent for step in steps] == [None, steps[0].id, steps[1].id]


def test_a_command_has_the_context_of_the_ops_before_it() -> None:
    command = last(
        """(workdir /src) (workdir sub) (env B 2) (env A 1) (env B 3) (user (uid 7) (gid 8))
           (shell /bin/sh -ec) (run (network host) (shell "make all")) """
    )
    assert command == Command(
        argv=("/bin/sh", "-ec", "make all"),
        cwd="/src/sub",
        env=(("A", "1"), ("B", "3")),
        user=UnixUser(7, 8),
        network=True,
    )


def test_a_command_begins_as_root_in_the_root_folder_with_bash_and_no_network() -> None:
    assert last("(run (shell x))") == Command(("bash", "-c", "x"), "/", (), UnixUser(0, 0), network=False)


def test_ops_after_a_step_do_not_change_it() -> None:
    assert make("(run (shell x)) (env A 1)").steps[-1].id == make("(run (shell x))").steps[-1].id


def test_targets_of_caches_and_secrets_are_relative_to_the_workdir() -> None:
    command = last(
        "(workdir /w) (run (cache (c (target sub))) (secrets (s (target /run/s))) (shell x))", secrets=("s",)
    )
    assert [cache.target for cache in command.caches] == ["/w/sub"]
    assert [secret.target for secret in command.secrets] == ["/run/s"]


SAME = [
    ("(run (shell x))", "(run (cache (c (target /c))) (shell x))"),
    ("(run (shell x))", '(comment "a remark") (run (shell x))'),
    ("(env A 1) (env B 2) (run (shell x))", "(env B 2) (env A 1) (run (shell x))"),
    ("(env A 0) (env A 1) (run (shell x))", "(env A 1) (run (shell x))"),
    ("(workdir /a) (workdir /b) (run (shell x))", "(workdir /b) (run (shell x))"),
    ("(workdir //b/./) (run (shell x))", "(workdir /b) (run (shell x))"),
    ("(run (network) (shell x))", "(run (shell x))"),
    ("(shell bash -c) (run (shell x))", "(run (shell x))"),
]

DIFFERENT = [
    ("(run (shell x))", "(run (shell y))"),
    ("(run (shell x))", "(run (network host) (shell x))"),
    ("(run (shell x))", "(workdir /w) (run (shell x))"),
    ("(workdir /a/b) (run (shell x))", "(workdir /a/../b) (run (shell x))"),
    ("(run (shell x))", "(env A 1) (run (shell x))"),
    ("(run (shell x))", "(user (uid 0) (gid 1)) (run (shell x))"),
    ("(run (shell x))", "(shell bash -ec) (run (shell x))"),
    ("(run (shell x))", "(run (secrets (s (target /s))) (shell x))"),
    ("(run (secrets (s (target /s))) (shell x))", "(run (secrets (s (target /t))) (shell x))"),
    ("(shell a b) (run (shell c))", '(shell a) (run (shell "b c"))'),
    ("(env A B) (run (shell x))", '(env AB "") (run (shell x))'),
    ("(copy (src file) (dst /d/))", "(copy (src file) (dst /e/))"),
    ("(copy (src file) (dst /d/))", "(user (uid 1) (gid 1)) (copy (src file) (dst /d/))"),
    ("(copy (src folder) (dst /d/))", "(copy (src folder) (dst /d))"),
    ("(copy (src folder) (dst /d/))", "(copy (src folder) (dst /d/) (exclude inner))"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_does_not_change_the_result_does_not_change_the_id(one: str, other: str) -> None:
    assert make(one).steps[-1].id == make(other).steps[-1].id


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_changes_the_result_changes_the_id(source: Path, one: str, other: str) -> None:
    chains = [make(ops, source, secrets=("s",)) for ops in (one, other)]
    assert chains[0].steps[-1].id != chains[1].steps[-1].id


def test_a_file_that_becomes_executable_changes_the_id(source: Path) -> None:
    def copied() -> str:
        return make("(copy (src file) (dst /d/))", source).steps[-1].id

    before = copied()
    (source / "file").chmod(0o755)
    assert copied() != before


def test_only_the_content_of_a_base_counts_not_its_name_card_or_path() -> None:
    def id(base: Base) -> str:
        return make("(run (shell x))", base=base).steps[-1].id

    renamed = BASE._replace(name="c", path=Path("/else"), stamp=(4, 5, 6), card=Card(memory=1 << 30))
    assert id(renamed) == id(BASE)
    assert id(BASE._replace(digest="e" * 64)) != id(BASE)


def test_the_value_of_a_secret_is_never_read() -> None:
    step = make("(run (secrets (s (target /s))) (shell x))", secrets=("s",)).steps[-1]
    assert "(secrets((s /s)))" in step.key


@pytest.mark.parametrize(
    ("ops", "dest", "paths"),
    [
        ("(copy (src file) (dst /d/))", "/d", ["file"]),
        ("(copy (src file) (dst /d/new))", "/d", ["new"]),
        ("(copy (src file) (dst new))", "/", ["new"]),
        ("(copy (src folder) (dst /d/))", "/d", ["folder", "folder/inner"]),
        ("(copy (src folder) (dst /d))", "/", ["d", "d/inner"]),
        ("(copy (src folder) (dst /c/d))", "/c", ["d", "d/inner"]),
        ("(copy (src folder/.) (dst /d))", "/", ["d", "d/inner"]),
        ("(copy (src folder) (dst .))", "/", ["inner"]),
        ("(copy (src folder) (dst /d/..))", "/d/..", ["inner"]),
        ("(copy (src .) (dst /d))", "/d", ["file", "folder", "folder/inner"]),
        ("(copy (src ./) (dst /))", "/", ["file", "folder", "folder/inner"]),
        ("(copy (src folder file) (dst /d/))", "/d", ["folder", "folder/inner", "file"]),
        ("(workdir /w) (copy (src .) (dst .))", "/w", ["file", "folder", "folder/inner"]),
        ("(workdir /w) (copy (src file) (dst ./))", "/w", ["file"]),
    ],
)
def test_a_copy_goes_where_its_dst_says(source: Path, ops: str, dest: str, paths: list[str]) -> None:
    transfer = last(ops, source)
    assert isinstance(transfer, Transfer)
    assert transfer.dest == dest
    assert [entry.path for entry in transfer.tree.entries] == paths


REFUSED = [
    ("(copy (src) (dst /d/))", "no source items"),
    ("(copy (src file folder) (dst /d))", "must end with '/'"),
    ("(copy (src file) (dst .))", "the destination / is a folder"),
    ("(copy (src file) (dst /d/..))", "is a folder"),
    ("(copy (src none) (dst /d/))", "not found"),
    ("(copy (src ../x) (dst /d/))", "outside"),
    ("(run (secrets (s (target /s))) (shell x))", "no value for the secret"),
    ('(run (shell "a\\000b"))', "NUL"),
    ('(env A "a\\000b")', "NUL"),
    ('(workdir "a\\000b")', "NUL"),
    ("(env A 1) (env B=C 1)", "environment"),
    ('(env A 1) (env "" 1)', "environment"),
    ("(user (uid -1) (gid 0))", "between"),
    ("(user (uid 0) (gid 4294967295))", "between"),
    ("(user (name ContainerAdministrator))", "Linux"),
    (f"(run (shell {'x' * 131072}))", "131071"),
]


@pytest.mark.parametrize(("ops", "why"), REFUSED)
def test_mistakes_are_refused_with_their_line(source: Path, ops: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        make(ops, source)
    assert caught.value.line == 2


@pytest.mark.parametrize("name", ["", "A=B", "A\0B"])
def test_a_first_variable_must_have_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="environment"):
        plan(Stage("b", (Env(name, "1"),)), source=Path(), bases={"b": BASE})


def test_a_shell_whose_program_looks_like_a_variable_is_refused() -> None:
    with pytest.raises(UsageError):
        plan(Stage("b", (Shell(("A=B", "-c")),)), source=Path(), bases={"b": BASE})


def test_the_longest_command_that_linux_takes_is_accepted() -> None:
    assert len(last(f"(run (shell {'x' * MAX_ARGUMENT}))").argv[-1]) == MAX_ARGUMENT


@pytest.mark.parametrize(
    ("os", "count", "said"),
    [
        ("linux", 20, ""),
        ("linux", 21, "2100097 bytes long together; Linux takes at most 2080768"),
        ("freebsd", 5, ""),
        ("freebsd", 6, "599980 bytes long together; FreeBSD takes at most 507904"),
        ("openbsd", 6, "599980 bytes long together; OpenBSD takes at most 507904"),
    ],
)
def test_a_command_and_its_variables_must_fit_the_guest_together(os: str, count: int, said: str) -> None:
    ops = "".join(f"(env V{number:02} {'x' * 99_990})\n" for number in range(count))
    base = BASE._replace(card=Card(os=os))
    if not said:
        make(f"{ops} (run (shell a))", base=base)
        return
    with pytest.raises(SpecError, match=rf"in \(run …\): the command and its variables are {said}") as caught:
        make(f"{ops} (run (shell a))", base=base)
    assert caught.value.line == count + 2


@pytest.mark.parametrize(
    ("os", "length", "said"),
    [
        ("linux", 131_072, "131072 bytes long; Linux takes at most 131071"),
        ("freebsd", 131_072, ""),
        ("freebsd", 600_000, "600000 bytes long; FreeBSD takes at most 507904"),
        ("windows", 40_000, "40000 characters long; Windows takes at most 32766"),
    ],
)
def test_a_variable_must_fit_the_guest(os: str, length: int, said: str) -> None:
    ops = f"(env A {'x' * (length - 2)})"
    base = BASE._replace(card=Card(os=os))
    if not said:
        make(ops, base=base)
        return
    with pytest.raises(SpecError, match=rf"in \(env …\): the variable is {said}"):
        make(ops, base=base)


def test_ten_thousand_variables_are_planned_quickly() -> None:
    began = time.process_time()
    env = last(" ".join(f"(env V{number} 1)" for number in range(10_000)) + "(env V0 2) (run (shell a))").env
    assert len(env) == 10_000
    assert env[0] == ("V0", "2")
    assert time.process_time() - began < 5  # some 0.5 s; copying all of them at each `env` took 14 s


def test_each_base_of_a_spec_is_listed_once_inner_builds_first() -> None:
    stage = spec.parse(b"((build x ((build y ((from c))) (from a))) (build z ((from b))) (from a))")
    assert bases_of(stage) == ["c", "a", "b"]


def test_only_the_steps_before_a_copy_from_a_build_are_known_at_first() -> None:
    text = """((build dev ((from b))) (from b) (run (shell one))
              (copy (from (build dev)) (src /x) (dst /y)) (run (shell two)))"""
    planned = plan(spec.parse(text.encode()), source=Path(), bases={"b": BASE})
    assert planned.origins == {"dev"}
    assert [step.headings[-1] for step in planned.known] == ["(from b)", "/: (run (shell one))"]
    asked = []

    def files(extract: Extract) -> tuple[LayerId, Manifest]:
        asked.append(extract.origin)
        return LayerId("f" * 64), (("file", "y", "644", "c" * 64),)

    chain = planned.chain(files)
    assert asked == ["dev"]
    assert chain.steps[:2] == planned.known
    assert [step.parent for step in chain.steps[1:]] == [step.id for step in chain.steps[:-1]]
    assert isinstance(chain.steps[2].action, Graft)


def test_an_error_about_the_files_of_a_build_has_the_line_of_the_copy() -> None:
    text = "((build dev ((from b)))\n (from b)\n (copy (from (build dev)) (src /x) (dst /y)))"
    planned = plan(spec.parse(text.encode()), source=Path(), bases={"b": BASE})

    def files(extract: Extract) -> tuple[LayerId, Manifest]:
        raise UsageError("no such file")

    with pytest.raises(SpecError, match="no such file") as caught:
        planned.chain(files)
    assert caught.value.line == 3


def test_the_key_of_a_command_has_the_executor_of_the_plan() -> None:
    stage = spec.parse(b"((from b) (run (shell one)))")
    there, here = (plan(stage, source=Path(), bases={"b": BASE}, executor=name).known for name in ("a", "b"))
    assert there[0].id == here[0].id
    assert there[1].id != here[1].id


def grafted(manifest: Manifest, copy: Copy) -> Chain:
    """The plan of a stage that copies files with this manifest from another build."""
    stage = Stage("b", (copy,), (("inner", Stage("b")),))
    found = (LayerId("f" * 64), manifest)
    return plan(stage, source=Path(), bases={"b": BASE}).chain(lambda extract: found)


def test_the_id_of_a_copy_from_a_build_depends_on_the_files_and_not_on_the_build(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    (tmp_path / "x").chmod(0o644)
    context = plan(Stage("b", (Copy(("x",), "/y/"),)), source=tmp_path, bases={"b": BASE}).chain()
    manifest = tree.walk(tmp_path, ["x"]).manifest
    assert grafted(manifest, Copy(("/out/x",), "/y/", origin="inner")).steps[-1].id == context.steps[-1].id
    assert grafted((), Copy(("/out/x",), "/y/", origin="inner")).steps[-1].id != context.steps[-1].id


@pytest.mark.parametrize(
    ("dst", "folder", "name"), [("/a/b", "/a", "b"), ("/a/b/", "/a/b", None), ("/", "/", None)]
)
def test_a_copy_from_a_build_to_a_name_renames_it(dst: str, folder: str, name: str | None) -> None:
    action = grafted((), Copy(("/x",), dst, origin="inner")).steps[-1].action
    assert isinstance(action, Graft)
    assert (action.dest, action.extract.rename) == (folder, name)


@pytest.mark.parametrize("src", ["/", ".", "./", ""])
def test_the_root_of_a_build_has_no_name_to_change(src: str) -> None:
    action = grafted((), Copy((src,), "/a/b", origin="inner")).steps[-1].action
    assert isinstance(action, Graft)
    assert (action.dest, action.extract.rename) == ("/a/b", None)


def test_the_mode_of_a_renamed_folder_is_in_the_id(source: Path) -> None:
    (source / "folder").chmod(0o755)

    def ids() -> list[str]:
        dsts = ("/d", "/d/", ".")
        return [make(f"(copy (src folder) (dst {dst}))", source).steps[-1].id for dst in dsts]

    before = ids()
    (source / "folder").chmod(0o700)
    assert [old == new for old, new in zip(before, ids(), strict=True)] == [False, False, True]


def test_a_folder_has_the_same_id_from_the_context_and_from_a_build(source: Path) -> None:
    (source / "folder").chmod(0o750)
    copied = make("(copy (src folder) (dst /y/new))", source).steps[-1]
    assert isinstance(copied.action, Transfer)
    manifest = copied.action.tree.manifest
    assert manifest[0] == ("dir", "new", "750", "")
    assert grafted(manifest, Copy(("/folder",), "/y/new", origin="inner")).steps[-1].id == copied.id


@pytest.mark.parametrize(
    ("copy", "why"),
    [
        (Copy(("a",), ".", origin="inner"), "the destination / is a folder"),
        (Copy(("a",), "/x/..", origin="inner"), r"the destination /x/\.\. is a folder"),
        (Copy((), "/y/", origin="inner"), "no source"),
        (Copy(("a", "b"), "/y", origin="inner"), "must end with"),
        (Copy(("../a",), "/y", origin="inner"), "not allowed"),
        (Copy(("a",), "/y", ("a",), origin="inner"), "excluded"),
    ],
)
def test_an_impossible_copy_from_a_build_is_refused(copy: Copy, why: str) -> None:
    stage = Stage("b", (copy,), (("inner", Stage("b")),))
    with pytest.raises(UsageError, match=why):
        plan(stage, source=Path(), bases={"b": BASE})


def test_headings_are_the_ops_as_written_after_their_workdir() -> None:
    chain = make("(workdir /w) (run (shell x)) (comment bye)")
    assert [step.headings for step in chain.steps] == [
        ("(from b)",),
        ("/: (workdir /w)", "/w: (run (shell x))"),
    ]
    assert chain.tail == ("/w: (comment bye)",)


def test_headings_are_not_hashed() -> None:
    step = make("(run (shell x))").steps[-1]
    assert replace(step, headings=("other",)).id == step.id
