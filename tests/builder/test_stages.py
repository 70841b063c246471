"""The paths of stages in events."""

from __future__ import annotations

from obuild.builder.stages import inside
from obuild.spec import parse


def test_each_build_in_a_stage_has_a_path_of_its_own() -> None:
    text = b'((build a ((from x))) (build "a#2" ((from x))) (build a ((from x))) (build b ((from x))) (from x))'
    stage = parse(text)
    assert [(path, name) for path, name, _ in inside("", stage)] == [
        ("a", "a"),
        ("a#2", "a#2"),
        ("a#3", "a"),
        ("b", "b"),
    ]
    assert [path for path, _, _ in inside("dev", stage)] == ["dev/a", "dev/a#2", "dev/a#3", "dev/b"]
