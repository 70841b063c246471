"""Draw docs/pictures/: builds on a terminal, one at work and one at its end, and the report about the second.

    make pictures

The terminal is tmux, the browser chromium, and the builds are real: their steps run natively, so this needs root,
and a network for apt.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.support.program import ROOT, base_images, new_store
from tests.support.tmux import Terminal, terminal

PICTURES = ROOT / "docs/pictures"

COLUMNS, LINES = 100, 22

SPEC = """((build page
  ((from debian-12)
   (run (network host) (shell "apt-get update && apt-get install -y --no-install-recommends markdown"))
   (copy (src page.md) (dst /))
   (run (shell "markdown /page.md | tee /index.html"))))
 (build style
  ((from debian-12)
   (run (network host) (shell "apt-get update && apt-get install -y --no-install-recommends sassc"))
   (copy (src style.scss) (dst /))
   (run (shell "sassc /style.scss | tee /style.css"))))
 (from debian-12)
 (run (network host) (shell "apt-get update && apt-get install -y --no-install-recommends nginx-light"))
 (copy (from (build page)) (src /index.html) (dst /var/www/html/))
 (copy (from (build style)) (src /style.css) (dst /var/www/html/))
 (run (shell "nginx -t")))
"""

FILES = {"obuild.spec": SPEC, "page.md": "# Hello from a layer!\n", "style.scss": "body { h1 { color: teal } }\n"}


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="obuild-pictures-") as name:
        folder = Path(name)
        store = new_store(folder / "store", base_images("debian-12"))
        source = folder / "web"
        source.mkdir()
        for file, content in FILES.items():
            (source / file).write_text(content)
        (folder / "base.spec").write_text("((from debian-12))")
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": name,
            "LANG": "C.UTF-8",
            "TERM": "screen-256color",
            "OBUILD_STORE": f"native:{store}",
        }
        with terminal(source, COLUMNS, LINES, env) as shown:
            shown.type("obuild build -q -f ../base.spec . && clear && obuild build --jobs 2 -t web .")
            shown.expect("page 2/4", "style 2/4", "| Get:6")
            _picture(shown, "build")
            shown.expect("Got: ")
            (source / "page.md").write_text("# Hello again!\n")
            shown.type("clear; obuild build --jobs 2 -t web .")
            shown.expect("page: /: (copy", "Got: ")
            _picture(shown, "again")
        subprocess.run(["obuild", "report", "-o", folder / "report.html"], check=True, env={**os.environ, **env})
        _screenshot(folder / "report.html", "report")


def _picture(shown: Terminal, name: str) -> None:
    """Write the screen as an SVG that loads nothing, in the fonts of whoever looks at it."""
    screen = shown.tmux("capture-pane", "-e", "-p").rstrip("\n")
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(screen), soft_wrap=True)
    svg = console.export_svg(title="obuild", unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    lines = (line.rstrip() for line in svg.splitlines() if line.strip())
    (PICTURES / f"{name}.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _screenshot(page: Path, name: str) -> None:
    """Write what a browser shows of a page."""
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,900")
    target = PICTURES / f"{name}.png"
    argv = ["chromium", *options, "--virtual-time-budget=5000", f"--screenshot={target}", f"file://{page}"]
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
