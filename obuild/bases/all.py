"""The ways to make a base image: `make(recipe, out, public_key=…, say=…)` of the recipe's kind."""

from obuild.bases import debian

KINDS = {"debian": debian.make}
