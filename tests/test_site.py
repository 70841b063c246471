"""The pages in docs/: they make a site without a broken link, say the same there as on GitHub, and are right."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from markdown_it import MarkdownIt
from pymdownx.slugs import slugify

from obuild import spec
from obuild.cli import main
from tests.support.browser import asked, chromium, complaints
from tests.support.program import ROOT

#: Markdown as GitHub reads it.
MARKDOWN = MarkdownIt("commonmark").enable("table")

PAGES = sorted((ROOT / "docs").rglob("*.md"))

#: Pages that people read in the repository.
OTHERS = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted(path for folder in ("editors", "specs") for path in (ROOT / folder).rglob("README.md")),
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Page(HTMLParser):
    """The text of a page, how many elements of each kind it has, and what it has the browser load."""

    COUNTED = ("h1", "h2", "h3", "h4", "li", "pre", "tr", "td", "img", "blockquote")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.counts = dict.fromkeys(self.COUNTED, 0)
        self.loads: list[str] = []
        self._permalink = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._permalink = given.get("class") == "headerlink"
        if tag in self.counts:
            self.counts[tag] += 1
        source = given.get("src") or (given.get("href") if tag == "link" else None)
        if source:
            self.loads.append(source)

    def handle_endtag(self, tag: str) -> None:
        self._permalink = False

    def handle_data(self, data: str) -> None:
        if not self._permalink:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join("".join(self.words).split())


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site. A broken link, or a page that is not in the navigation, is an error."""
    folder = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_says_what_github_shows(site: Path) -> None:
    """The two read Markdown differently: a list needs a blank line before it, code in a list more blanks."""
    for page in PAGES:
        html = (site / page.relative_to(ROOT / "docs").with_suffix(".html")).read_text(encoding="utf-8")
        article = re.search("<article.*?</article>", html, re.DOTALL)
        assert article, page
        here, there = Page(article[0]), Page(MARKDOWN.render(page.read_text(encoding="utf-8")))
        assert (name(page), here.counts) == (name(page), there.counts)
        assert here.text == there.text


def test_the_site_asks_no_other_server(site: Path) -> None:
    for html in site.rglob("*.html"):
        loads = Page(html.read_text(encoding="utf-8")).loads
        assert loads
        assert not [each for each in loads if "//" in each]
    for css in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", css.read_text(encoding="utf-8"))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of these files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@pytest.mark.long
def test_the_search_finds_a_page_in_a_browser(site: Path) -> None:
    """And pages ask no other server for anything."""
    from selenium.webdriver.support.ui import WebDriverWait  # late: slow to import

    with chromium(requests=True) as browser, served(site) as address:
        for page in ("index.html", "cli.html", "tutorial.html"):
            browser.get(address + page)
        box = browser.find_element("css selector", "[name=query]")
        browser.execute_script("arguments[0].focus(); arguments[0].value = 'DataVolume'", box)
        box.send_keys(" ")
        WebDriverWait(browser, 60).until(lambda now: now.find_elements("css selector", ".md-search-result__item"))
        links = browser.find_elements("css selector", ".md-search-result__link")
        found = {str(link.get_attribute("href")).partition("?")[0] for link in links}
        assert {each.partition("#")[0] for each in found} == {address + "how-to/kubevirt.html"}
        assert complaints(browser) == []
        assert {each for each in asked(browser) if not each.startswith((address, "data:"))} == set()


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    slug = slugify(case="lower")
    return {slug(heading.replace("`", ""), "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


COMMAND = re.compile(r"^(?:- |- run: |\$ |sudo |[A-Z_]+=\S+ |.*\| )*obuild (.*)$", re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of the commands in a page's blocks of code."""
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            text = token.content.replace("\\\n", " ")
            for line in re.findall(
                r"^(?:- |- run: |\$ |sudo |[A-Z_]+=\S+ |.*\| )*obuild (.*)$", text, re.MULTILINE
            ):
                if "…" not in line:
                    line = re.sub(r"<\(.*?\)", "FILE", line)  # what the shell puts there
                    yield shlex.split(re.split(r" [|>&]|;", line)[0], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_specs_and_yaml_in_the_pages_can_be_read(page: Path) -> None:
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info == "lisp":
            spec.parse(token.content.encode())
        elif token.type == "fence" and token.info == "yaml":
            assert yaml.safe_load(token.content)


@cache
def program() -> Any:
    if not main.app.registered_commands:
        main.load("")
    return typer.main.get_command(main.app)


def parse(words: list[str]) -> None:
    """Parse a command line, without running anything. An exception if the program would refuse it."""
    command, context = program(), None
    while hasattr(command, "commands"):
        context = command.make_context(command.name, [*words], parent=context)
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(command.name, [*words], parent=context)


def test_the_program_takes_the_commands_in_the_pages() -> None:
    found = [(name(page), words) for page in [*PAGES, *OTHERS] for words in commands(page)]
    assert len(found) > 50
    for where, words in found:
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"{where}: obuild {shlex.join(words)}: {error}")
