"""Push and pull a layer through a registry on 127.0.0.1, and compare that with skopeo and the same bytes.

Run it on a quiet machine:  .venv/bin/python -m bench.remote [--mib N] [--runs N] [--folder DIR]

The layer's data is half random and half text. skopeo copies it as a layer of a container image, compressed by zstd
on the way there and unpacked on the way back. obuild and skopeo take turns; a ratio is that of medians of the time
that passed. It fails if a target is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.export import Spent, spent
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.remotes import oci
from obuild.spec import UnixUser
from obuild.store.layers import Store
from tests.support.fakes import POWER_OFF, boot_disk
from tests.support.images import Plain
from tests.support.registry import registry

PROGRAM = Path(sys.executable).with_name("obuild")

#: Of the speed of skopeo; in MiB; in seconds; of the bytes of a layer.
SPEED, MEMORY, AGAIN, CACHED, CHANGED = 0.7, 64, 0.3, 0.5, 0.03

BLOCK = 4096


class Bench:
    """Stores, images and results in a folder."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder, self.mib = folder, mib
        self.missed: list[str] = []
        self.number = 0
        self.raw = folder / "data.raw"
        with self.raw.open("wb") as file:  # what we hold ourselves would count as the memory of programs
            file.writelines(data(mib << 20))
        self.store = Store.open(folder / "store")
        base = self.layer(Plain(keys.of_base("0" * 64)), None)
        self.base = base
        self.id = self.child("one", self.raw)
        self.layout()

    def layer(self, what: Plain, content: Path | None) -> LayerId:
        with self.store.claim(what.id), self.store.draft(what) as draft:
            size = self.mib << 20
            backing = ["-b", draft.below, "-F", "qcow2"] if what.parent else []
            extended = ["-o", "extended_l2=on,cluster_size=128k"] if what.parent else []
            create = ["qemu-img", "create", "-q", "-f", "qcow2", *extended, *backing, str(draft.image), str(size)]
            subprocess.run(create, check=True)
            if content:
                convert = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", str(content), str(draft.image)]
                subprocess.run(convert, check=True)
        return what.id

    def child(self, name: str, content: Path) -> LayerId:
        key = keys.of_copy(self.base, dest=f"/{name}", user=UnixUser(0, 0), files=())
        return self.layer(Plain(key, self.base), content)

    def layout(self) -> None:
        """The same bytes as a container image."""
        blobs = self.folder / "layout" / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        with tarfile.open(blobs / "tar", "w") as archive:
            archive.add(self.raw, "data")
        with (blobs / "tar").open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        size = (blobs / "tar").stat().st_size
        (blobs / "tar").rename(blobs / digest.removeprefix("sha256:"))
        rootfs = {"type": "layers", "diff_ids": [digest]}
        config = oci.packed({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})
        layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}
        manifest = oci.packed(
            {
                "schemaVersion": 2,
                "mediaType": oci.MANIFEST,
                "config": oci.descriptor(config, oci.CONFIG),
                "layers": [layer],
            }
        )
        for document in (config, manifest):
            (blobs / oci.digest_of(document).removeprefix("sha256:")).write_bytes(document)
        (self.folder / "layout" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (self.folder / "layout" / "index.json").write_bytes(oci.index([oci.descriptor(manifest, oci.MANIFEST)]))

    @contextmanager
    def registry(self) -> Iterator[str]:
        """A repository of a new registry: skopeo would not send again what it has sent to another."""
        self.number += 1
        folder = self.folder / f"registry{self.number}"
        folder.mkdir()
        with registry(folder) as running:
            yield f"{running.host}/bench"
        shutil.rmtree(folder)

    def obuild(self, *args: str | Path, store: Path | None = None) -> Spent:
        return spent([PROGRAM, *args, f"--store=qemu:{store or self.store.root}"])

    def skopeo(self, *args: str | Path) -> Spent:
        return spent(["skopeo", "--insecure-policy", "copy", "-q", *args])

    def see(self, what: str, value: float, target: float, *, at_least: bool = False, unit: str = "") -> None:
        met = value >= target if at_least else value <= target
        print(f"{what}: {value:.2f}{unit} (target {'≥' if at_least else '≤'} {target}{unit})")
        if not met:
            self.missed.append(what)

    def transfers(self, runs: int) -> None:
        times: dict[str, list[Spent]] = {}
        for _ in range(runs):
            with self.registry() as name:
                done = self.round(name)
            for what, took in done.items():
                times.setdefault(what, []).append(took)
        wall = {what: statistics.median(each.wall for each in took) for what, took in times.items()}
        for what in ("push", "pull"):
            print(f"{what}: {wall[what]:.2f} s, skopeo {wall[f'skopeo {what}']:.2f} s")
            self.see(f"{what} / skopeo", wall[f"skopeo {what}"] / wall[what], SPEED, at_least=True)
            self.see(f"memory of {what}", max(each.memory for each in times[what]), MEMORY, unit=" MiB")
        self.see("push again", wall["again"], AGAIN, unit=" s")

    def round(self, name: str) -> dict[str, Spent]:
        image = f"docker://{name}-image:x"
        pushed = ["--dest-tls-verify=false", "--dest-compress", "--dest-compress-format=zstd"]
        done = {"skopeo push": self.skopeo(*pushed, f"oci:{self.folder / 'layout'}", image)}
        done["push"] = self.obuild("push", "--insecure", self.id, f"oci://{name}")
        done["again"] = self.obuild("push", "--insecure", self.id, f"oci://{name}")
        taken = ["--src-tls-verify=false", "--dest-decompress"]
        done["skopeo pull"] = self.skopeo(*taken, image, f"dir:{self.folder / 'pulled'}")
        other = self.folder / "other"
        done["pull"] = self.obuild("pull", "--insecure", self.id, f"oci://{name}", store=other)
        for each in (other, self.folder / "pulled"):
            shutil.rmtree(each)
        return done

    def changed(self) -> None:
        """A layer on the same parent, of which a hundredth differs."""
        other = self.folder / "changed.raw"
        shutil.copyfile(self.raw, other)
        with other.open("r+b") as file:
            file.seek(self.mib << 18)
            file.write(random.Random(2).randbytes((self.mib << 20) // 100))
        id = self.child("changed", other)
        sent = []
        with self.registry() as name:
            for each in (self.id, id):
                self.obuild("push", "--insecure", each, f"oci://{name}")
                sent.append(self.taken())
        self.see("sent for a change of 1 %", (sent[1] - sent[0]) / sent[0], CHANGED)

    def taken(self) -> int:
        """How many bytes the registry has."""
        folder = self.folder / f"registry{self.number}"
        return sum(path.stat().st_size for path in folder.rglob("data") if path.is_file())

    def cached(self, runs: int) -> None:
        """A build of five steps whose layers another store has pushed."""
        with self.registry() as name:
            self.cached_from(f"oci://{name}", runs)

    def cached_from(self, remote: str, runs: int) -> None:
        source = self.folder / "source"
        source.mkdir()
        (self.folder / "disk.img").write_bytes(boot_disk("", POWER_OFF))
        steps = " ".join(f"(run (shell step{number}))" for number in range(5))
        (self.folder / "five.spec").write_text(f"((from tiny) {steps})")
        build = [
            "build",
            "--remote-insecure",
            "--remote",
            remote,
            "-f",
            str(self.folder / "five.spec"),
            str(source),
        ]
        fake = [sys.executable, "-m", "tests.support.fake_obuild"]
        took = []
        for number in range(runs + 1):
            store = f"--store=qemu:{self.folder / f'store{number}'}"
            add = [str(PROGRAM), "base", "add", str(self.folder / "disk.img"), "--name=tiny", store]
            subprocess.run(add, check=True, capture_output=True)
            if number == 0:
                subprocess.run([*fake, *build, store], check=True, capture_output=True)
            else:
                took.append(spent([PROGRAM, *build, store]).wall)
        self.see("a build whose layers are in the remote", statistics.median(took), CACHED, unit=" s")


def data(size: int) -> Iterator[bytes]:
    """Half random bytes, half text that compresses well, in turns of 64 KiB."""
    chance = random.Random(1)
    for number in range(size >> 17):
        yield chance.randbytes(1 << 16)
        yield (json.dumps({"number": number, "text": chance.random()}) * (1 << 12)).encode()[: 1 << 16]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        bench = Bench(folder, given.mib)
        bench.transfers(given.runs)
        bench.changed()
        bench.cached(given.runs)
    if bench.missed:
        sys.exit(f"missed: {', '.join(bench.missed)}")


if __name__ == "__main__":
    main()
