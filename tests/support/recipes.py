"""Recipes from text."""

from __future__ import annotations

import tempfile
from pathlib import Path

from obuild.bases import recipe
from obuild.bases.kind import Recipe
from obuild.bases.sources import Choices


def recipe_of(text: str, *, name: str = "mine", profile: str = "", **values: str) -> Recipe:
    """The recipe from a file NAME.toml with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.toml"
        path.write_text(text)
        return recipe.load(path, Choices(profile, values))
