"""Everything that reads what somebody else wrote: each takes any bytes, and raises nothing but an ObuildError.

Tests give each a small budget; bench/fuzz.py gives them minutes.
"""

# ruff: noqa: PT017  # what an error says is looked at where it is caught
from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from obuild import spec
from obuild.bases import digests, kind
from obuild.builder.extract import checked_manifest
from obuild.errors import ObuildError, SpecError
from obuild.guests import profile, windows_quoting
from obuild.host import toml
from obuild.host.marks import MarkReader
from obuild.plan import diff
from obuild.plan.archive import manifest_of
from obuild.plan.keys import LayerId, fields
from obuild.spec import dockerfile, reformat, sexp
from obuild.store import caches
from obuild.store.layers import Layer
from tests.support.recipes import recipe_of

ROOT = Path(__file__).parent.parent.parent


def specs(data: bytes) -> None:
    """Parse, print, print anew, convert. A mistake's place is in the text."""
    try:
        stage = spec.parse(data)
    except SpecError as error:
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        assert error.message
        assert (error.line == error.column == 0) or 1 <= error.line <= len(lines)
        if error.line:
            assert 1 <= error.column <= len(lines[error.line - 1]) + 1
        raise
    assert spec.parse(spec.format(stage)) == stage
    tidied = reformat.tidy(data)
    assert spec.parse(tidied) == stage
    assert reformat.tidy(tidied) == tidied
    for escape in ("unix", "windows"):
        text = dockerfile.dockerfile(stage, buildkit=True, escape="unix" if escape == "unix" else "windows")
        assert text.endswith("\n")


def atoms(data: bytes) -> None:
    """What is read as words is written so that it reads back."""
    read = sexp.loads(data)
    text = sexp.dumps(read)
    assert sexp.dumps(sexp.loads(text)) == text


def cards(data: bytes) -> None:
    about = profile.parse(data.decode("utf-8", "replace"), where="it")
    assert profile.parse(profile.dump(about), where="it").os == about.os


def recipes(data: bytes) -> None:
    kind.digest(made := recipe_of(data.decode("utf-8", "replace")))
    kind.digest(recipe_of(toml.dumps(made.table)))


def keys(data: bytes) -> None:
    """A layer's key, however damaged, is shown, summed up, and compared with another."""
    text = data.decode("utf-8", "surrogateescape")
    read = fields(text)
    other = fields(KEYS[0].decode())
    for old, new in pairwise((read, other, read, read)):
        diff.differences(old, new)
        diff.alike(old, new)
        assert diff.distance(old, new) >= 0
    diff.summary(read)
    for name, lines in diff.describe(read):
        assert all(line.isprintable() for line in (name, *lines))
    json.dumps(read)


def parents(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "key").write_bytes(data)
        layer = Layer(LayerId("it"), Path(folder))
        assert layer.parent is None or len(layer.parent) == 64
        assert isinstance(layer.key, str)


def memos(data: bytes) -> None:
    """A memo only saves time: nothing that is in it may stop a build."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        kept = digests.read_memo(Path(file.name))
    for entry in kept.values():
        if isinstance(entry, list):
            digests.is_sha256(entry[3:])
        try:
            assert all(isinstance(word, str) for line in checked_manifest(entry) for word in line)
        except TypeError:
            pass


def archives(data: bytes) -> None:
    """An archive that a guest sent, or a user put in: what is found safe has no name that leads out."""
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(data)
        for pax in (False, True):
            try:
                manifest = manifest_of(path, owner=(0, 0), pax=pax)
            except ObuildError:
                manifest = ()
            assert not any(name.startswith("/") or ".." in name.split("/") for _, name, *_ in manifest)
        caches.check(path)


def marks(data: bytes) -> None:
    """A command's output in pieces, with the mark at its end or not."""
    passed = bytearray()
    reader = MarkReader(b"obuild-1 ", passed.extend)
    for at in range(0, len(data), 7):
        reader.feed(data[at : at + 7])
        if reader.status is not None:
            assert 0 <= reader.status <= 999
            return
    reader.flush()
    assert bytes(passed) == data


def words(data: bytes) -> None:
    """Words for Windows."""
    argv = data.decode("utf-8", "replace").split("\0")
    windows_quoting.arguments(argv)
    line = windows_quoting.argument(argv[0])
    assert line.count('"') % 2 == 0 or "\\" in line
    windows_quoting.powershell(windows_quoting.literal(argv[0]))


def _archive(*, form: int) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, link in (
            ("d", tarfile.DIRTYPE, ""),
            ("d/" + "n" * 150, tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "d/x"),
            ("soft", tarfile.SYMTYPE, "../" * 50),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, BytesIO(b"abc"))
    return out.getvalue()


KEYS = [
    sexp.dumps(
        (
            *(("format", "1"), ("executor", "qemu"), ("parent", "a" * 64), ("workdir", "/src")),
            *(("user", ("0", "0")), ("env", (("A", "b"), ("C", "")))),
            *(("run", ("bash", "-c", "make all")), ("network", "none"), ("secrets", (("t", "/run/t"),))),
        )
    ).encode(),
    sexp.dumps(
        (
            *(("format", "1"), ("executor", "qemu"), ("parent", "a" * 64), ("copy", "/src"), ("user", "opam")),
            ("files", (("dir", "d", "755", ""), ("file", "d/f", "644", "b" * 64), ("symlink", "l", "777", "d"))),
        )
    ).encode(),
    sexp.dumps((("format", "1"), ("executor", "qemu"), ("base", "sha256:" + "c" * 64))).encode(),
]

_TOML = [path.read_bytes() for path in sorted((ROOT / "base-images").glob("*.toml"))]
_CARD = b'os = "linux"\narch = "x86_64"\nlogin = "root"\nmemory = "256M"\nkey = "k"\ncmdline = "a b"\n'
_MEMO = json.dumps({"a.qcow2": [1, 2, 3, "d" * 64], "m": [["file", "p", "644", "x"]]}).encode()
_SPECS = [
    case["spec"].encode("utf-8", "surrogateescape")
    for case in json.loads((ROOT / "tests/vectors/spec.json").read_text(encoding="utf-8"))
]
_DOCS = [
    part.partition("```")[0].encode()
    for part in (ROOT / "docs/spec.md").read_text(encoding="utf-8").split("```lisp\n")[1:]
]
_TARS = [_archive(form=form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]

#: Each reader, and what it usually reads.
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "specs": (specs, [*_DOCS, *_SPECS]),
    "atoms": (atoms, [*_DOCS, *_SPECS]),
    "cards": (cards, [_CARD]),
    "recipes": (recipes, _TOML),
    "keys": (keys, KEYS),
    "parents": (parents, KEYS),
    "memos": (memos, [_MEMO]),
    "archives": (archives, _TARS),
    "marks": (marks, [b"some output\nobuild-1 0\n", b"obuild-1 256\n"]),
    "words": (words, [b'cmd\0/C\0dir "a b" \\"', b"powershell\0-Command\0'x'"]),
}

#: What makes mistakes likely, to be put anywhere.
TOKENS = (
    *(
        b"(",
        b")",
        b'"',
        b"\\",
        b"#;",
        b"#|",
        b"|#",
        b";",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\\x",
        b"\\9",
        b"[",
        b"{",
    ),
    *(
        b"(from a)",
        b"(build a ((from b)))",
        b"(run (shell a))",
        b"(user (uid 0x7) (gid 0))",
        b"(copy (src a) (dst b))",
    ),
    *(b"=", b"''", b'"""', b"1e999", b"9" * 5000, b"-1", b"..", b"/", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"null"),
    *(
        b"ustar  \0",
        b"ustar\x0000",
        b"\x80",
        b"\xff\xff\xff\xff",
        b"0000644",
        b"L",
        b"S",
        b"x",
        b"g",
        b"10 path=a\n",
    ),
)


def tried(name: str, data: bytes) -> bool:
    """Give a reader one input; True if it was taken. Whatever it raises but an ObuildError comes through."""
    try:
        TARGETS[name][0](data)
    except ObuildError as error:
        assert error.message
        return False
    return True


def resealed(data: bytes) -> bytes:
    """An archive whose first header has its checksum right, so that more than that is tried."""
    if len(data) < 512:
        return data
    total = sum(data[:512]) - sum(data[148:156]) + 8 * 32
    return data[:148] + b"%06o\0 " % total + data[156:]
