"""The command line: bad input of every kind, help, completion, looking, pruning. No guest boots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from obuild.bases import recipe, record
from obuild.bases.sources import Choices
from obuild.cli import main
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support import forked

HELLO = "((from there) (run (shell true)))"


def obuild(*args: str | Path, code: int, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program; it must end with `code`, and never with a traceback."""
    done = forked.run([*map(str, args)], env=env)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a spec, a source and a place for a store."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/file").write_text("x")
    (tmp_path / "spec").write_text(HELLO)
    return tmp_path


def refused(
    here: Path, spec: str | None = None, *options: str | Path, source: str = "src", store: str = ""
) -> str:
    """Run a build that must be refused before anything is built; return the message."""
    if spec is not None:
        (here / "spec").write_text(spec)
    where = store or f"qemu:{here / 'store'}"
    done = obuild("build", f"--store={where}", "-f", here / "spec", *options, here / source, code=2)
    assert not list((here / "store").glob("result*/*"))
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "empty"),
        ("((from micro)", "1:1"),
        ("((from micro)\n (run (shell true)))\n )", ":3:2:"),
        ("((from micro)\n (rnu (shell true)))", "spec:2:2:"),
        ("((from micro) (rnu (shell true)))", "run"),
        ("((from ../../etc/passwd))", "cannot be the name of a base image"),
        ("((from a/b))", "cannot be the name of a base image"),
        ("((from ..))", "cannot be the name of a base image"),
        ("((from nosuch))", "unknown base image 'nosuch'"),
        ("((from nosuch))", "micro"),
        ("((from micro@md5:123))", "sha256"),
    ],
)
def test_a_bad_spec_is_refused_with_its_position(here: Path, spec: str, said: str) -> None:
    assert said in refused(here, spec)


@pytest.fixture
def based(here: Path) -> Path:
    """`here`, with a base image called `there`."""
    disk = here / "disk.raw"
    disk.write_bytes((b"\0" * 510 + b"\x55\xaa").ljust(1 << 20, b"\0"))
    obuild("base", "add", disk, "--name", "there", f"--store=qemu:{here / 'store'}", code=0)
    return here


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ("(copy (src ../up) (dst /x))", "'..' is not allowed"),
        ("(copy (src nosuch) (dst /x))", "'nosuch' not found"),
        ("(copy (src file/x) (dst /x))", "not a directory"),
        ("(copy (src file file) (dst /x))", "must end with '/'"),
        ("(env A=B c)", "name for an environment variable"),
        ('(env "" c)', "name for an environment variable"),
        ("(run (secrets (tok (target /t))) (shell true))", "--secret tok:FILE"),
        ("(user (uid -1) (gid 0))", "uid"),
        ("(user (name opam))", "by number"),
        (f"(run (shell {'x' * 140_000}))", "script"),
    ],
)
def test_an_op_that_cannot_work_is_refused_with_its_line(based: Path, ops: str, said: str) -> None:
    message = refused(based, f"((from there)\n {ops})")
    assert said in message
    assert "spec:2:2:" in message


def test_a_source_that_leads_out_through_a_symlink_is_refused(based: Path) -> None:
    (based / "src/out").symlink_to("/etc")
    assert "not a directory" in refused(based, "((from there) (copy (src out/passwd) (dst /x)))")


def test_a_spec_that_cannot_be_read_is_refused(here: Path) -> None:
    (here / "spec").unlink()
    assert "cannot read the spec" in refused(here)
    (here / "spec").mkdir()
    assert "is a directory" in refused(here)


def test_a_missing_source_directory_is_refused(here: Path) -> None:
    assert "no source directory" in refused(here, HELLO, source="nosuch")


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("/data", "KIND:PATH"),
        ("qemu:", "KIND:PATH"),
        ("btrfs:/data", "unknown kind of store 'btrfs'"),
        ("qemu:/proc/nosuch", "cannot write to the store"),
        ("qemu:/dev/null", "cannot write to the store"),
    ],
)
def test_an_invalid_store_is_refused(here: Path, store: str, said: str) -> None:
    assert said in refused(here, store=store)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--qemu-accel", "xen"], "xen"),
        (["--qemu-memory", "much"], "--qemu-memory"),
        (["--qemu-memory", "1M"], "at least"),
        (["--qemu-memory", "0"], "must be greater than 0"),
        (["--qemu-memory", "99999999999999999999T"], "--qemu-memory: no machine can have more than 4096T"),
        (["--qemu-memory", "nan"], "--qemu-memory"),
        (["--qemu-cpus", "0"], "--qemu-cpus"),
        *(
            (["--qemu-boot-time", seconds], "--qemu-boot-time")
            for seconds in ("nan", "inf", "-inf", "-1", "0", "1e300", "86401", "")
        ),
        (["--qemu-guest-os", "plan9"], "plan9"),
        (["--qemu-guest-arch", "vax"], "vax"),
        (["--reserve", "some"], "--reserve: 'some' is not a size"),
        (["--max-size", "1X"], "--max-size: '1X' is not a size"),
        (["--vm", "hot"], "--vm hot: it can be auto, boot, warm"),
        (["--warm-budget", "all"], "--warm-budget: 'all' is not a size"),
        (["--vm", "warm", "--qemu-guest-os", "freebsd"], "cannot be kept warm: it does not run Linux"),
        (["--vm", "warm", "--qemu-guest-arch", "arm64"], "cannot be kept warm: nothing tells a guest on aarch64"),
        (["--secret", "x"], "ID:FILE"),
        (["--secret", "x:/no/such/file"], "/no/such/file"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_invalid_options_are_refused(based: Path, options: list[str], said: str) -> None:
    assert said in refused(based, HELLO, *options)


def test_if_qemu_is_not_installed_the_error_names_the_package(based: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    done = obuild(
        *("build", f"--store=qemu:{based / 'store'}", "-f", based / "spec", based / "src"),
        code=2,
        env={"PATH": str(tools)},
    )
    assert "apt install qemu" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a disk image"),
        (b"hello" * 1000, "not a disk image"),
        (b"QFI\xfb" + b"\0" * 600, "not a disk image"),
        (b"KDMV" + b"\0" * 600, "VMDK"),
        (b"\x1f\x8b" + b"\0" * 600, "gzip"),
    ],
)
def test_a_base_image_that_is_not_a_disk_is_refused(here: Path, content: bytes, said: str) -> None:
    folder = here / "store/base-image"
    folder.mkdir(parents=True)
    (folder / "there.qcow2").write_bytes(content)
    assert said in refused(here)


def test_an_encrypted_base_image_is_refused(here: Path) -> None:
    (here / "store/base-image").mkdir(parents=True)
    secret = ["--object", "secret,id=s,data=abc", "-o", "encrypt.format=aes,encrypt.key-secret=s"]
    image = here / "store/base-image/there.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *secret, image, "1M"], check=True)
    assert "is encrypted" in refused(here)


def test_a_base_image_that_is_a_pipe_or_device_does_not_block(here: Path) -> None:
    store = f"--store=qemu:{here / 'store'}"
    Store.open(here / "store")
    os.mkfifo(here / "store/base-image/there.qcow2")
    (here / "store/base-image/endless.img").symlink_to("/dev/zero")
    done = obuild("fsck", store, code=1)
    assert done.stdout.count("leads to no file") == 2
    assert "unknown base image 'there'" in refused(here)
    obuild("base", "add", here / "store/base-image/there.qcow2", "--name=x", store, code=2)


def test_an_unreadable_card_affects_only_its_own_image(based: Path) -> None:
    image = based / "store/base-image/there.img"
    image.with_name("other.img").write_bytes(image.read_bytes())
    image.with_name("other.toml").write_bytes(b"\xff")
    assert "unknown base image 'none'; in the store: other, there" in refused(based, "((from none))")
    image.with_suffix(".toml").write_bytes(b"\xef\xbb\xbfos = 'windows'")
    assert "by name" in refused(based, "((from there) (user (uid 1) (gid 1)))")


def test_an_endless_spec_or_secret_is_refused(here: Path, based: Path) -> None:
    args = ("build", f"--store=qemu:{here / 'store'}", "-f")
    assert "the spec /dev/zero is larger than 64 MiB" in obuild(*args, "/dev/zero", here / "src", code=2).stderr
    done = obuild(*args, here / "spec", "--secret=s:/dev/zero", here / "src", code=2)
    assert "is larger than 64 MiB" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan", "STORE", "-f", "SPEC", "n" * 256], "n: File name too long\n"),
        (["base", "add", "SPEC", "--name", "n" * 256, "STORE"], "File name too long\n"),
        (["ls", "--store=qemu:" + "n" * 5000], "n is not a store\n"),
        (["ls", "STORE", "--limit", "9" * 30], ""),
        (["ls", "STORE", "--vm\n" + "x" * 300], "No such option"),
        (["base", "add", "IMAGE", "--name", "n", "--key", "/", "STORE"], "SSH key /: it is a folder"),
    ],
)
def test_very_long_arguments_and_wrong_file_kinds_are_refused(based: Path, args: list[str], said: str) -> None:
    words = {"STORE": f"--store=qemu:{based / 'store'}", "SPEC": str(based / "spec")}
    words["IMAGE"] = str(based / "disk.raw")
    done = obuild(*(words.get(word, word) for word in args), code=2 if said else 0)
    assert said in done.stderr
    assert "Errno" not in done.stderr


def test_a_very_long_error_is_cut_in_the_middle(here: Path) -> None:
    said = refused(here, f"((from {'x' * 50_000}))")
    assert len(said) < 7000
    assert " … " in said


def test_a_truncated_base_image_is_refused(here: Path) -> None:
    image = here / "store/base-image/there.qcow2"
    image.parent.mkdir(parents=True)
    raw = here / "raw"
    raw.write_bytes(os.urandom(4 << 20))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    os.truncate(image, image.stat().st_size - (1 << 20))
    assert "damaged or truncated" in refused(here)


def test_a_base_image_with_a_backing_file_is_refused(here: Path) -> None:
    image = here / "store/base-image/there.qcow2"
    image.parent.mkdir(parents=True)
    secret = here / "secret"
    secret.write_bytes(b"s" * 65536)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image], check=True)
    assert "needs another file" in refused(here)


def test_a_malformed_card_is_refused(based: Path) -> None:
    (based / "store/base-image/there.toml").write_text("os = 'minix'")
    assert "there.toml" in refused(based)


@pytest.mark.parametrize(
    "args",
    [
        ["logs", "abc"],
        ["inspect", "abc"],
        ["cache", "rm", "abc"],
        ["rm", "abc"],
        ["base", "rm", "abc"],
        ["base", "make", "abc"],
        ["base", "rm", "../x"],
    ],
)
def test_unknown_names_are_refused(based: Path, args: list[str]) -> None:
    assert "abc" in obuild(*args, f"--store=qemu:{based / 'store'}", code=2).stderr or args[-1] == "../x"


def test_only_commands_that_add_to_a_store_make_one(tmp_path: Path) -> None:
    (tmp_path / "spec").write_text(HELLO)
    for args in (
        *(
            ["prune"],
            ["df"],
            ["prune", "--before=1d"],
            ["ls"],
            ["clean"],
            ["logs", "a"],
            ["rm", "a"],
            ["inspect", "a"],
        ),
        *(["cache", "ls"], ["cache", "rm", "a"], ["cache", "export", "a", str(tmp_path / "x")]),
        ["plan", "-f", str(tmp_path / "spec"), str(tmp_path)],
    ):
        assert "is not a store" in obuild(*args, f"--store=qemu:{tmp_path / 'none'}", code=2).stderr
    assert not (tmp_path / "none").exists()


def test_a_store_is_made_with_its_parent_folders_and_may_be_relative(
    based: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(based)
    (based / "spec").write_text("((from there))")
    obuild("base", "add", "disk.raw", "--name", "there", "--store=qemu:not/yet/there", code=0)
    built = obuild("build", "--store=qemu:not/yet/there", "-f", "spec", "src", code=0).stdout
    (layer,) = (based / "not/yet/there/result").iterdir()
    assert built.endswith(f'Got: "{layer.name}"\n')


COMMANDS = [*(name for names in main.HELP.values() for name in names)]
INNER = [
    *(["base", name] for name in ("make", "add", "ls", "rm")),
    *(["cache", name] for name in ("ls", "rm", "export", "import")),
    *(["tag", name] for name in ("add", "ls", "rm")),
]
HIDDEN = [*main.ALIASES, *main.HIDDEN]


@pytest.mark.parametrize("command", [[], *[[name] for name in (*COMMANDS, *HIDDEN)], *INNER])
def test_every_command_has_help(command: list[str]) -> None:
    shown = obuild(*command, "--help", code=0).stdout
    assert f"Usage: obuild {' '.join(command)}" in shown
    assert not [line for line in shown.splitlines()[1:] if line.endswith("...")]  # nothing is cut off


def test_the_help_lists_the_commands_in_groups_and_no_hidden_ones() -> None:
    shown = obuild("--help", code=0).stdout
    groups = {block.partition(":\n")[0]: block.partition(":\n")[2] for block in shown.split("\n\n")}
    for heading, names in main.HELP.items():
        assert [line.split()[0] for line in groups[heading].splitlines()] == list(names)


def test_version_is_printed() -> None:
    from obuild.version import VERSION

    assert obuild("--version", code=0).stdout == f"obuild {VERSION}\n"


def test_shell_completion_works() -> None:
    done = obuild(
        code=0, env={"_OBUILD_COMPLETE": "complete_bash", "COMP_WORDS": "obuild heal", "COMP_CWORD": "1"}
    )
    assert "healthcheck" in done.stdout


def test_a_dockerfile_is_printed(here: Path) -> None:
    assert obuild("dockerfile", "-f", here / "spec", code=0).stdout == "FROM there\nRUN true\n\n"
    assert "windows" in obuild("dockerfile", "-f", here / "spec", "--escape", "vms", code=2).stderr


# -- looking at a store


def plan(here: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return obuild("plan", f"--store=qemu:{here / 'store'}", "-f", here / "spec", *options, here / "src", code=code)


def test_plan_shows_which_steps_are_cached_and_why_the_others_are_not(based: Path) -> None:
    shown = plan(based).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["build", "no", "build", "no", "0"]
    (based / "spec").write_text("((from there))")
    obuild("build", f"--store=qemu:{based / 'store'}", "-f", based / "spec", based / "src", code=0)
    (based / "spec").write_text("((from there)\n(run (secrets (tok (target /t))) (shell a)))")
    assert "spec:2:1:" in plan(based, code=2).stderr
    shown = plan(based, "--secret", "tok:/no/such/file").stdout.splitlines()
    assert shown[0].split() == ["cached", shown[0].split()[1], "(from", "there)"]
    assert shown[-1] == "1 of 2 steps are in the store"
    first, second = json.loads(plan(based, "--json", "--secret=tok").stdout)
    assert (first["cached"], first["op"], first["why"]) == (True, "(from there)", [])
    assert (second["cached"], second["nearest"]) == (False, None)
    assert second["why"] == ["no similar layer in the store"]
    assert len(os.listdir(based / "store/result")) == 1


def test_plan_makes_no_base_image(based: Path) -> None:
    (based / "spec").write_text("((from micro) (run (shell a)))")
    shown = plan(based).stdout
    assert "'micro' would be made from its recipe first" in shown
    assert not (based / "store/base-image/micro.qcow2").exists()


RECIPE = 'kind = "scratch"\nsize = "64M"\n[vars]\nname = "bookworm"\n[scratch]\nsuite = "@name@"\n'


def test_base_make_print_shows_the_recipe_and_its_digest(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    (here / "mine.toml").write_text(RECIPE + "[profile.big]\nsize = '1G'\n")
    shown = obuild("base", "make", "mine.toml", "--print", "--store=qemu:store", code=0).stdout
    merged, _, digest = shown.rpartition("\n# sha256:")
    assert tomllib.loads(merged) == {"kind": "scratch", "size": "64M", "scratch": {"suite": "bookworm"}}
    assert len(digest.strip()) == 64
    other = obuild(
        "base", "make", "./mine.toml", "--print", "--set=name=trixie", "--profile=big", "--store=qemu:x", code=0
    ).stdout
    assert 'suite = "trixie"' in other
    assert 'size = "1G"' in other
    assert digest not in other
    assert not (here / "store").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["none.toml"], "cannot read the recipe none.toml"),
        (["mirco"], "there is no recipe 'mirco'"),
        (["mine.toml", "--set", "name"], "--set name is not KEY=VALUE"),
        (["mine.toml", "--set", "nmae=x"], "there is no variable 'nmae'"),
        (["mine.toml", "--profile", "x"], "there is no profile 'x'"),
        (["mine.toml", "--name", "../x"], "'../x' cannot be the name of a base image"),
        (["bad.toml"], "bad.toml:2:1: unknown key 'siez'"),
    ],
)
def test_an_invalid_recipe_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(here)
    (here / "mine.toml").write_text(RECIPE)
    (here / "bad.toml").write_text('kind = "scratch"\nsiez = "64M"\n')
    assert said in obuild("base", "make", *options, "--store=qemu:store", code=2).stderr


def test_ls_plan_and_build_report_a_stale_base(based: Path) -> None:
    (based / "mine.toml").write_text(RECIPE)
    made = recipe.load(based / "mine.toml")
    record.write(based / "store/base-image/there.qcow2", made, Choices("", {"name": "bookworm"}), when=0.0)
    (based / "spec").write_text("((from there))")
    look = ["base", "ls", f"--store=qemu:{based / 'store'}"]
    listed = obuild(*look, code=0).stdout
    assert "from mine --set name=bookworm" in listed
    assert "stale" not in listed
    assert "stale" not in plan(based).stderr
    (based / "mine.toml").write_text(RECIPE.replace("64M", "65M"))
    assert "from mine --set name=bookworm; stale" in obuild(*look, code=0).stdout
    assert "'there' is stale" in plan(based).stderr
    store = f"--store=qemu:{based / 'store'}"
    assert "'there' is stale" in obuild("build", store, "-f", based / "spec", based / "src", code=0).stdout


def test_base_ls_lists_images_and_recipes(based: Path) -> None:
    listed = obuild("base", "ls", f"--store=qemu:{based / 'store'}", code=0).stdout.splitlines()
    assert listed[0].split() == ["NAME", "KIND", "ARCH", "SIZE", "MADE"]
    assert listed[1].split()[:3] == ["there", "added", "x86_64"]
    micro = next(line.split() for line in listed if line.startswith("micro "))
    assert micro == ["micro", "scratch", "x86_64", "-", "-", "can", "be", "made"]
    fedora = next(line for line in listed if line.startswith("fedora "))
    assert fedora.endswith("can be made; not tested yet")


def test_base_ls_says_that_nobody_has_tried_the_recipe_of_an_image(based: Path) -> None:
    (based / "mine.toml").write_text(f"tried = false\n{RECIPE}")
    made = recipe.load(based / "mine.toml")
    record.write(based / "store/base-image/there.qcow2", made, Choices(), when=0.0)
    listed = obuild("base", "ls", f"--store=qemu:{based / 'store'}", code=0).stdout.splitlines()
    assert listed[1].endswith("from mine; not tested yet")


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("((from there)\n (rnu (shell a)))", [], "spec:2:2:"),
        ("((from there)\n (copy (src none) (dst /)))", [], "spec:2:2:"),
        (HELLO, ["--secret", ":x"], "--secret"),
    ],
)
def test_plan_refuses_what_build_refuses(based: Path, spec: str, options: list[str], said: str) -> None:
    (based / "spec").write_text(spec)
    assert said in plan(based, *options, code=2).stderr


def test_inspect_describes_a_layer(based: Path) -> None:
    (based / "spec").write_text("((from there))")
    store = f"--store=qemu:{based / 'store'}"
    built = obuild("build", store, "-f", based / "spec", based / "src", code=0).stdout
    id = built.rpartition('Got: "')[2][:64]
    shown = obuild("inspect", id[:8], store, code=0, env={"PYTHONIOENCODING": "ascii"}).stdout
    assert id in shown
    assert "ancestors: none" in shown
    told = json.loads(obuild("inspect", id[:8], store, "--json", code=0).stdout)
    assert (told["id"], told["op"], told["parents"], told["children"]) == (id, "(from there)", [], [])
    assert told["key"]["base"].startswith("sha256:")
    assert told["total"] == told["size"] > 0


def test_layers_are_listed(based: Path) -> None:
    store = f"--store=qemu:{based / 'store'}"
    assert obuild("ls", store, code=0).stdout == ""
    assert json.loads(obuild("ls", store, "--json", code=0).stdout) == []
    ids = []
    for number in (1, 2):
        with (based / "disk.raw").open("r+b") as disk:
            disk.write(bytes([number]))
        obuild("base", "add", based / "disk.raw", "--name", "there", "--force", store, code=0)
        (based / "spec").write_text("((from there))")
        built = obuild("build", store, "-f", based / "spec", based / "src", code=0).stdout
        ids.append(built.rpartition('Got: "')[2][:64])
    assert [line[:12] for line in obuild("ls", store, code=0).stdout.splitlines()] == [id[:12] for id in ids]
    cut = obuild("ls", store, "--limit", "1", code=0).stdout.splitlines()
    assert (cut[0][:12], cut[1]) == (ids[1][:12], "… and 1 older one; --all lists all, --limit N the N newest")
    assert len(obuild("ls", store, "--all", code=0).stdout.splitlines()) == 2
    told = json.loads(obuild("ls", store, "--json", code=0).stdout)
    assert [layer["id"] for layer in told] == ids
    assert set(told[0]) == {"id", "parent", "op", "created", "seconds", "size", "used", "tags"}
    assert len(json.loads(obuild("ls", store, "--json", "-n1", code=0).stdout)) == 1
    assert "--limit" in obuild("ls", store, "--all", "--limit", "1", code=2).stderr
    assert obuild("logs", ids[0][:12], store, code=0).stdout == ""
    assert f"Removing {ids[0]}" in obuild("rm", ids[0][:12], store, code=0).stdout
    assert "no layer" in obuild("logs", ids[0], store, code=2).stderr


def test_fmt_prints_checks_and_rewrites_a_spec(here: Path) -> None:
    spec = here / "spec"
    spec.write_text("; é\n((from there) ; why\n(run (shell true)))")
    done = "; é\n((from there) ; why\n (run (shell true))\n)\n"
    assert obuild("fmt", "-f", spec, code=0, env={"PYTHONIOENCODING": "ascii"}).stdout == done
    assert f"{spec} would change" in obuild("fmt", "--check", "-f", spec, code=1).stderr
    assert obuild("fmt", "--write", "-f", spec, code=0).stdout == ""
    assert spec.read_text() == done
    assert obuild("fmt", "--check", "-f", spec, code=0).stdout == ""


def test_fmt_checks_and_rewrites_several_specs(here: Path) -> None:
    """As pre-commit calls it."""
    good, bad, wrong = here / "good.spec", here / "bad.spec", here / "wrong.spec"
    good.write_bytes(b"((from a)\n)\n")
    bad.write_text("((from   a))")
    wrong.write_text("((form a))")
    assert obuild("fmt", "--check", good, code=0).stderr == ""
    said = obuild("fmt", "--check", good, bad, code=1).stderr
    assert f"{bad} would change\n" in said
    assert "1 of 2 specs would change" in said
    said = obuild("fmt", "--write", wrong, bad, good, code=2).stderr
    assert f"{wrong}:1:" in said
    assert "1 of 3 specs cannot be read" in said
    assert bad.read_bytes() == good.read_bytes()
    assert "cannot read" in obuild("fmt", "--check", here / "none", good, code=2).stderr
    for options in (("-f", good), (), ("--check", "--write")):
        assert "several specs" in obuild("fmt", *options, good, code=2).stderr


def test_plan_gives_editors_the_place_of_a_mistake(here: Path) -> None:
    (here / "spec").write_text("((from a)\n (runn (shell x)))")
    done = obuild("plan", f"--store=qemu:{here / 'store'}", "--json", "-f", here / "spec", here, code=2)
    mistake = json.loads(done.stdout)
    assert (mistake["line"], mistake["column"]) == (2, 2)
    assert "runn" in mistake["message"]
    assert f"spec:2:2: {mistake['message']}" in done.stderr


def test_fmt_refuses_impossible_options(here: Path) -> None:
    (here / "spec").write_text("(from x)")
    assert "spec:1:2:" in obuild("fmt", "-f", here / "spec", code=2).stderr
    assert "--write" in obuild("fmt", "--write", code=2).stderr
    assert "--write" in obuild("fmt", "--write", "--check", "-f", here / "spec", code=2).stderr
    assert "cannot read" in obuild("fmt", "-f", here / "none", code=2).stderr


def test_caches_are_imported_exported_and_removed(here: Path) -> None:
    store = f"--store=qemu:{here / 'store'}"
    with tarfile.open(here / "in.tar", "w") as packed:
        packed.add(here / "src", "src")
    obuild("cache", "import", "a/b", here / "in.tar", store, code=0)
    assert "a/b" in obuild("cache", "ls", store, code=0).stdout
    (cache,) = json.loads(obuild("cache", "ls", store, "--json", code=0).stdout)
    assert (cache["name"], cache["size"]) == ("a/b", (here / "in.tar").stat().st_size)
    obuild("cache", "export", "a/b", here / "out.tar", store, code=0)
    assert (here / "out.tar").read_bytes() == (here / "in.tar").read_bytes()
    assert "--force" in obuild("cache", "export", "a/b", here / "out.tar", store, code=2).stderr
    obuild("cache", "export", "a/b", here / "out.tar", "--force", store, code=0)
    assert "the caches are: a/b" in obuild("cache", "rm", "b", store, code=2).stderr
    obuild("cache", "rm", "a/b", store, code=0)
    assert obuild("cache", "ls", store, code=0).stdout == ""
    assert "spec is not a complete tar" in obuild("cache", "import", "c", here / "spec", store, code=2).stderr


# -- pruning


@pytest.fixture
def filled(based: Path) -> Path:
    """A store that has a layer and two caches; the first cache was used an hour ago."""
    (based / "spec").write_text("((from there))")
    store = f"--store=qemu:{based / 'store'}"
    obuild("build", store, "-f", based / "spec", based / "src", code=0)
    with tarfile.open(based / "in.tar", "w") as packed:
        packed.add(based / "src", "src")
    for name in ("old", "new"):
        obuild("cache", "import", name, based / "in.tar", store, code=0)
    for path in (based / "store/cache/c-old/cache.tar", based / "store/cache/c-old"):
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    return based


def test_prune_shows_its_plan_and_carries_it_out(filled: Path) -> None:
    store = f"--store=qemu:{filled / 'store'}"
    assert obuild("prune", store, code=0).stdout == "Removed 0 items, 0 B\n"
    shown = obuild("prune", store, "--older-than=30m", "--dry-run", code=0).stdout.splitlines()
    assert shown[0].split()[:4] == ["would", "remove", "cache", "old"]
    assert "not used since" in shown[0]
    assert shown[1].startswith("Would remove 1 item, ")
    planned = json.loads(obuild("prune", store, "--keep-bytes=0", "--dry-run", "--json", code=0).stdout)
    assert [item["kind"] for item in planned["items"]] == ["cache", "layer", "cache"]
    assert (planned["in_use"], planned["kept"], planned["short"]) == ([], 0, 0)
    assert len(os.listdir(filled / "store/cache")) == 2, "a dry run removes nothing"
    gone = obuild("prune", store, "--older-than=30m", "--keep-bytes=1G", code=0).stdout.splitlines()
    assert gone[0].split()[:3] == ["removing", "cache", "old"]
    assert gone[-1].startswith("Removed 1 item, ")
    obuild("prune", store, "--keep-bytes=0", code=0)
    assert os.listdir(filled / "store/cache") + os.listdir(filled / "store/result") == []


def test_prune_fails_if_it_cannot_remove_enough(filled: Path) -> None:
    (id,) = os.listdir(filled / "store/result")
    with Store(filled / "store").use(LayerId(id)):
        done = obuild("prune", f"--store=qemu:{filled / 'store'}", "--keep-bytes=0", code=1)
    assert f"stays layer {id[:12]}" in done.stdout
    assert "in use" in done.stderr
    assert os.listdir(filled / "store/result") == [id]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["prune", "--keep-bytes=all"], "--keep-bytes: 'all' is not a size"),
        (["prune", "--older-than=old"], "--older-than: 'old' is not a duration"),
        (["prune", "--json"], "--dry-run"),
        (["prune", "--before=soon"], "--before: 'soon' is neither"),
        (["prune", "--limit=1"], "--before"),
        (["prune", "--before=1d", "--dry-run"], "--limit alone"),
        (["prune", "--all", "--keep-bytes=1G"], "--all"),
        (["prune", "--all", "--older-than=1d"], "--all"),
        (["prune", "--before=1d", "--limit=-1"], "--limit"),
    ],
)
def test_invalid_limits_are_refused(based: Path, args: list[str], said: str) -> None:
    assert said in obuild(*args, f"--store=qemu:{based / 'store'}", code=2).stderr


def test_prune_before_removes_layers_not_used_since_then(filled: Path) -> None:
    store = f"--store=qemu:{filled / 'store'}"
    (id,) = os.listdir(filled / "store/result")
    assert obuild("prune", store, "--before=2020-01-01", code=0).stdout == "Removed 0 items\n"
    assert obuild("prune", store, "--before=0s", "--limit=0", code=0).stdout == "Removed 0 items\n"
    assert obuild("prune", store, "--before=0s", code=0).stdout == f"Removing {id}\nRemoved 1 item\n"
    assert len(os.listdir(filled / "store/cache")) == 2


def test_df_shows_disk_usage(filled: Path) -> None:
    store = f"--store=qemu:{filled / 'store'}"
    told = json.loads(obuild("df", store, "--json", code=0).stdout)
    parts = {part["what"]: part for part in told["parts"]}
    assert [parts[what]["count"] for what in ("base images", "layers", "caches", "rubbish")] == [1, 1, 2, 0]
    assert told["total"] == sum(part["size"] for part in parts.values()) > 0
    assert 0 < told["free"] < told["capacity"]
    shown = obuild("df", store, code=0).stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:3]] == [["layers", "1"], ["caches", "2"]]
    assert "are free on the store's disk" in shown[-1]


def test_a_build_prunes_before_a_step(filled: Path) -> None:
    (filled / "spec").write_text("((from other))")
    image = (filled / "store/base-image/there.img").read_bytes()
    (filled / "store/base-image/other.img").write_bytes(b"x" + image[1:])
    store = f"--store=qemu:{filled / 'store'}"
    total = json.loads(obuild("df", store, "--json", code=0).stdout)["total"]
    argv: list[str | Path] = ["build", store, "-f", filled / "spec", filled / "src"]
    done = obuild(*argv, "--max-size", str(total - 1), "--reserve=1M", code=0)
    assert "removed 1 cache" in done.stdout
    assert not (filled / "store/cache/c-old").exists()
    (filled / "store/base-image/other.img").write_bytes(b"y" + image[1:])
    done = obuild(*argv, "--reserve=9999T", code=1)
    assert "no room for the next step" in done.stderr
    assert "--reserve asks for 9999.0 TiB" in done.stderr
    assert "in the store: " in done.stderr


def test_fmt_reads_standard_input(here: Path) -> None:
    argv = [sys.executable, "-m", "obuild", "fmt"]
    done = subprocess.run(argv, input=b"((from \xc3\xa9))", capture_output=True, check=True)
    assert done.stdout == b'((from "\\195\\169")\n)\n'
    done = subprocess.run([*argv, "--check"], input=b"((from a))", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"standard input would change" in done.stderr
