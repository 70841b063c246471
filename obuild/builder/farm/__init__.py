"""The farm: a build's missing steps are made by workers on other hosts. docs/farm.md is for people who run one."""
