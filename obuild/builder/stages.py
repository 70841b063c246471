"""What stages are called in events: by a path, so that no two of a build have the same."""

from __future__ import annotations

from collections.abc import Iterator

from obuild.spec import Stage


def inside(path: str, stage: Stage) -> Iterator[tuple[str, str, Stage]]:
    """The path, the name and the stage of each build directly inside the stage at `path`.

    A spec may use one name several times in a stage: the second is NAME#2.
    """
    taken: set[str] = set()
    for name, inner in stage.stages:
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}#{count}"
        taken.add(unique)
        yield f"{path}/{unique}" if path else unique, name, inner
