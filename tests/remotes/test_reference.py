"""Names of images in registries."""

from __future__ import annotations

import pytest

from obuild.errors import UsageError
from obuild.remotes.reference import Reference, parse


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("r.example/pg:16", Reference("r.example", "pg", "16")),
        ("r.example:5000/team/a-b__c.d/pg", Reference("r.example:5000", "team/a-b__c.d/pg", "latest")),
        ("[::1]:5000/pg:v_1.0-x", Reference("[::1]:5000", "pg", "v_1.0-x")),
        ("localhost/pg", Reference("localhost", "pg", "latest")),
        ("docker.io/pg", Reference("docker.io", "library/pg", "latest")),
        ("docker.io/team/pg", Reference("docker.io", "team/pg", "latest")),
    ],
)
def test_a_reference(text: str, reference: Reference) -> None:
    assert parse(text) == reference


def test_how_references_are_written() -> None:
    reference = parse("r.example/pg:16")
    assert str(reference) == "r.example/pg:16"
    assert reference.at("sha256:00") == "r.example/pg@sha256:00"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pg", "'pg' does not begin with the host"),
        ("/pg", "does not begin with the host"),
        ("r.example/", "'' cannot be a repository"),
        ("r.example/Pg:16", "'Pg' cannot be a repository"),
        ("r.example/a//b", "cannot be a repository"),
        ("r.example/../b", "cannot be a repository"),
        (f"r.example/{'a' * 256}", "cannot be a repository"),
        ("r.example/pg:", "'' cannot be a tag"),
        ("r.example/pg:1/2", "'1/2' cannot be a tag"),
        (f"r.example/pg:{'1' * 129}", "cannot be a tag"),
        ("r.example/pg@sha256:00", "has a digest"),
    ],
)
def test_a_name_that_registries_do_not_allow(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse(text)
    assert caught.value.exit_code == 2
