"""Dockerfiles: OBuilder's output, and ours where OBuilder crashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from obuild import spec
from obuild.spec.dockerfile import Escape, dockerfile

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "spec.json").read_text(encoding="utf-8"))
FLAGS: dict[str, tuple[bool, Escape]] = {
    "": (False, "unix"),
    "--buildkit": (True, "unix"),
    "--escape=windows": (False, "windows"),
    "--buildkit --escape=windows": (True, "windows"),
}


def convert(text: str, flags: str) -> str:
    buildkit, escape = FLAGS[flags]
    return dockerfile(spec.parse(text), buildkit=buildkit, escape=escape)


@pytest.mark.parametrize("flags", FLAGS)
def test_the_output_is_obuilders(flags: str) -> None:
    """The vectors hold the output of OBuilder's command, which has one more newline at the end."""
    cases = [case for case in VECTORS if flags in case["dockerfile"]]
    wrong = [
        f"{case['spec']}\n-- got\n{got}\n-- OBuilder\n{case['dockerfile'][flags]}"
        for case in cases
        if (got := convert(case["spec"], flags)) + "\n" != case["dockerfile"][flags]
    ]
    assert not wrong, "\n\n".join(wrong)
    assert len(cases) > 60


def test_there_is_output_where_obuilder_crashes() -> None:
    missing = [case["spec"] for case in VECTORS if 0 < len(case["dockerfile"]) < len(FLAGS)]
    assert missing
    for text in missing:
        assert "--mount=type=" in convert(text, "--buildkit --escape=windows")


def test_a_mount_for_a_user_without_a_number_has_no_uid() -> None:
    text = """((from base)
      (run (cache (c (target /c) (buildkit_options ((sharing locked))))) (shell a))
      (user (uid 7) (gid 8))
      (run (secrets (s (target /s))) (shell b))
      (user (name me))
      (run (cache (c (target /c))) (secrets (s (target /s))) (shell c)))"""
    assert convert(text, "--buildkit --escape=windows") == (
        "#escape=`\n"
        "FROM base\n"
        "RUN --mount=type=cache,id=c,target=/c,sharing=locked a\n"
        "USER 7:8\n"
        "RUN --mount=type=secret,id=s,target=/s,uid=7 b\n"
        "USER me\n"
        "RUN --mount=type=secret,id=s,target=/s --mount=type=cache,id=c,target=/c c\n"
    )


@pytest.mark.parametrize(
    ("op", "line"),
    [
        ("(copy (src) (dst a))", "COPY  a"),
        ("(copy (src a b) (dst c) (exclude x))", "COPY a b c"),
        ("(shell)", "SHELL [  ]"),
        ('(shell "a b" "c\\"")', 'SHELL [ "a b", "c"" ]'),
        (r'(env A "\"\\`")', r'ENV A="\"\\`"'),
        ('(run (shell " a \\n\\n b\\t"))', "RUN a \\\n     \\\n    b"),
        ('(run (shell "\\011a\\011"))', "RUN \va\v"),
        ("(comment x)", "# x"),
    ],
)
def test_lines(op: str, line: str) -> None:
    assert convert(f"((from base) {op})", "") == f"FROM base\n{line}\n"


def test_each_stage_starts_as_root() -> None:
    text = """((build "" ((from a) (user (uid 1) (gid 2)) (copy (src x) (dst y))))
      (from b) (copy (from (build "")) (src x) (dst y))
      (user (name ContainerAdministrator)) (copy (src x) (dst y)))"""
    assert convert(text, "") == (
        "FROM a as \nUSER 1:2\nCOPY --chown=1:2 x y\n\n"
        "FROM b\nCOPY --from= x y\nUSER ContainerAdministrator\nCOPY x y\n"
    )
