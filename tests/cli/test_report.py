"""Reports: what is in the page, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.builder.history import Build
from obuild.builder.recorder import Recorder
from obuild.cli.graph import model, svg
from obuild.cli.report import data
from obuild.cli.report.page import embedded, page
from obuild.cli.report.story import Stage, Step, Story, tell
from obuild.errors import StepFailed
from obuild.events import Event, Missing, PhaseStarted, Place, Planned, PlannedStep, Started, What
from obuild.executors.all import EXECUTORS
from obuild.executors.settings import Settings
from obuild.store.layers import Store
from tests.support import browser, odd
from tests.support.fakes import FakeExecutor, Run, ScriptedGuests
from tests.support.snapshots import looks

if TYPE_CHECKING:
    from selenium import webdriver
    from selenium.webdriver.remote.webelement import WebElement

ODD = (
    b"\x1b[1;31mred\x1b[0m\n10%\r50%\r100%\n<script>alert(1)</script>\n"
    b"\xff\0\x07\x1b]0;title\x07 </script><!--\n\x1b]never ended\nlast\n"
)

CSS, ENTER = "css selector", "\ue007"  # as selenium spells them

STAGES = """((build tools ((from tiny) (run (shell make)) (run (shell more))))
  (from tiny) (env A b) (run (shell one)) (run (shell two)) (run (shell three))
  (copy (from (build tools)) (src /out) (dst /bin/)) (run (shell {last})))"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, qcow2_disk: Path) -> Store:
    """A store with three builds: everything made; the last step again; that one failed. Not to be changed."""
    store = Store.open(tmp_path_factory.mktemp("reported") / "store")
    (store.base_image / "tiny.qcow2").write_bytes(qcow2_disk.read_bytes())

    def print_odd(run: Run) -> int:
        run.output(ODD)
        return 0

    def fail(run: Run) -> int:
        run.output(b"the needle in it\n")
        return 3

    guests = ScriptedGuests(FakeExecutor({"one": print_odd, "bad": fail}, files={"out": b"x"}))
    source = store.root.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXECUTORS, "qemu", guests)
        for last in ("good", "better", "bad"):
            stage = spec.parse(STAGES.format(last=last).encode())
            with (
                suppress(StepFailed),
                Recorder(store, lambda event: None, spec=source / "web.spec", source=source) as recorder,
            ):
                Engine(source, store, Settings(accel="tcg"), recorder).build(stage)
    return store


@pytest.fixture
def builds(made: Store, tmp_path: Path) -> Store:
    """A copy of it."""
    subprocess.run(["cp", "-a", made.root, tmp_path / "store"], check=True)
    return Store.open(tmp_path / "store")


def report(store: Store, out: Path, build: str = "last", code: int = 0) -> str:
    """Make a report with the program; returns what it says."""
    ended, said, err = odd.run(["report", build, "-o", str(out), f"--store=qemu:{store.root}"])
    assert "Traceback" not in err
    assert ended == code, err
    return said + err


def content(path: Path) -> Mapping[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    value: Mapping[str, Any] = json.loads(found[1])
    return value


# -- the file


def test_a_report_has_every_step_with_its_reason_log_and_key(made: Store, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report(made, out, made.builds.names()[1]) == f"{out}\n"
    shown = content(out)
    assert shown["build"]["outcome"] == "done"
    tools, last = shown["stages"]
    assert [step["state"] for step in tools["steps"]] == ["cached"] * 3
    states = [(step["op"], step["state"]) for step in last["steps"]]
    assert states == [(1, "cached"), *((op, "cached") for op in (3, 4, 5, 6)), (7, "made")]
    step = last["steps"][-1]
    assert step["why"] == ["the command changed: good → better"]
    assert step["log"]["text"] == "better\n"
    assert ["run", ["bash -c", "  better"]] in step["key"]
    assert step["size"] > 0
    assert step["phases"][0][0] == "preparing"
    assert last["steps"][-2]["origin"] == "tools"
    assert dict(last["steps"][0]["key"])["base"][0].startswith("sha256:")


def test_the_output_of_a_failed_step_is_in_the_report(failed_report: Path) -> None:
    shown = content(failed_report)
    step = shown["stages"][1]["steps"][-1]
    assert (step["state"], step["log"]["text"]) == ("failed", "the needle in it\n")
    assert shown["message"] == '"bad" failed with exit status 3'


def test_the_page_asks_for_nothing_from_elsewhere(failed_report: Path) -> None:
    text = failed_report.read_text()
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|\ssrc=", text)


def test_what_is_gone_is_left_out(builds: Store, tmp_path: Path) -> None:
    (layer,) = [layer for layer in builds.layers() if b"better" in layer.log.read_bytes()]
    assert builds.remove(layer.id, builds.parents())
    report(builds, tmp_path / "report.html", layer.id[:12])
    shown = content(tmp_path / "report.html")
    assert shown["build"]["id"] == builds.builds.names()[1]
    step = shown["stages"][1]["steps"][-1]
    assert (step["state"], step["log"], step["key"], step["size"]) == ("made", None, [], None)


@pytest.mark.parametrize("running", [True, False])
def test_a_step_that_has_not_ended_runs_or_was_interrupted(running: bool) -> None:
    place = Place("", "a" * 64, 2)
    planned = Planned((PlannedStep(1, "b" * 64, "(from tiny)"), PlannedStep(2, "a" * 64, "(run)")))
    said: list[What] = [Started("(run)"), Missing(("x",), "c"), PhaseStarted("booting")]
    events = [Event(what, place, float(time)) for time, what in enumerate(said, 1)]
    events.insert(0, Event(planned, Place(), 0.0))
    story = tell(events, running=running)
    first, second = story.stages[""].steps.values()
    assert first.state == "not reached"
    assert second.state == ("running" if running else "interrupted")
    assert (second.began, second.ended, second.why, second.phases[0].seconds) == (1.0, None, ("x",), None)


def test_a_store_without_builds_has_no_report(store: Store, tmp_path: Path) -> None:
    assert "no record of a build" in report(store, tmp_path / "report.html", code=2)
    assert not (tmp_path / "report.html").exists()


def test_a_report_goes_through_a_link_and_an_unwritable_one_is_an_error(made: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    report(made, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert "<!DOCTYPE html>" in (tmp_path / "file").read_text()
    assert "No such file" in report(made, tmp_path / "none" / "report.html", code=1)


def test_reporting_changes_nothing_in_the_store(made: Store, tmp_path: Path) -> None:
    before = looks(made.result) | looks(made.builds.folder)
    report(made, tmp_path / "report.html")
    assert looks(made.result) | looks(made.builds.folder) == before


def test_long_logs_lose_their_middle_and_all_together_are_limited(builds: Store, tmp_path: Path) -> None:
    layer = next(layer for layer in builds.layers() if b"better" in layer.log.read_bytes())
    layer.log.chmod(0o644)
    with layer.log.open("wb") as log:
        log.write(b"the beginning\n")
        for _ in range(50):
            log.write(b"x" * (1 << 20))
        log.write(b"\nthe end\n")
    report(builds, tmp_path / "report.html", builds.builds.names()[1])
    log_text = content(tmp_path / "report.html")["stages"][1]["steps"][-1]["log"]["text"]
    assert log_text.startswith("the beginning\n")
    assert log_text.endswith("\nthe end\n")
    assert f"`obuild logs {layer.id[:12]}` prints all" in log_text
    assert len(log_text) < data.BEGINNING + data.END + 200


def test_the_share_of_each_log_leaves_room_for_small_ones(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ALL", 300_000)
    sizes = {"a" * 64: 500, "b" * 64: 50 << 20, "c" * 64: 50 << 20}
    monkeypatch.setattr(data, "_size", lambda store, step: sizes[step.id])
    story = Story({"": Stage("", {op: Step(op, id, "", "") for op, id in enumerate(sizes)})})
    assert data._share(store, story) == (300_000 - 500) // 2


def test_long_keys_are_cut() -> None:
    assert list(data._some(["a", "b" * 20, "c"], 10)) == ["a", "b" * 8 + "…", "… and 1 more"]
    assert len(list(data._some(["x"] * 100, 1000))) == data.LINES + 1
    assert list(data._some(["a"], 0)) == ["… and 1 more"]


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "\udcff", "]]>", "&lt;", "\u2028"])
def test_data_cannot_end_its_element(text: str) -> None:
    held = embedded([text])
    assert "<" not in held
    assert json.loads(held) == [text.replace("\udcff", "?")]


def test_placeholders_in_the_data_are_not_filled() -> None:
    made = page("<!--script-->", ["<!--css--> <!--graph-->"], "<svg></svg>")
    assert "<title>&lt;!--script--&gt;</title>" in made
    assert made.count("<svg></svg>") == 1


# -- in a browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    """One browser for all tests."""
    with browser.chromium() as found:
        yield found


class Page:
    """A report in the browser."""

    def __init__(self, browser: webdriver.Chrome, path: Path) -> None:
        self.browser = browser
        browser.get(f"file://{path}")
        self.wait(lambda: self.find("html[data-ready=yes]"))

    def wait(self, until: Any) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 60, poll_frequency=0.05).until(lambda browser: until())

    def find(self, css: str) -> list[WebElement]:
        return self.browser.find_elements(CSS, css)

    def one(self, css: str) -> WebElement:
        (found,) = self.find(css)
        return found

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def complaints(self) -> list[str]:
        return browser.complaints(self.browser)

    def search(self, text: str) -> list[str]:
        box = self.one("#search")
        box.clear()
        box.send_keys(text)
        self.wait(lambda: self.one("#found").get_attribute("data-searched") == text)
        script = "return [...document.querySelectorAll('#matches li')].map((item) => item.textContent)"
        found: list[str] = self.run(script)
        return found


@pytest.fixture(scope="session")
def failed_report(made: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the last build, which failed."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    report(made, out)
    return out


@pytest.fixture
def failed(chromium: webdriver.Chrome, failed_report: Path) -> Page:
    return Page(chromium, failed_report)


def test_a_browser_shows_the_build(failed: Page) -> None:
    assert failed.one("h1").text == "web.spec failed"
    assert failed.one("#message").text == '"bad" failed with exit status 3'
    assert [each.text for each in failed.find("svg .title")] == ["tools", "result"]
    assert len(failed.find("svg a.node")) == 4
    assert len(failed.find("svg path.copy")) == 1
    assert [each.text for each in failed.find("#timeline a")] == ["7: /: (run (shell bad))"]
    assert failed.one("details[open] pre").text == "the needle in it"
    assert failed.complaints() == []


def test_a_step_that_one_stage_made_and_another_found_was_made(
    chromium: webdriver.Chrome, made: Store, tmp_path: Path
) -> None:
    report(made, tmp_path / "report.html", made.builds.names()[0])
    longest = [each.text for each in Page(chromium, tmp_path / "report.html").find("#longest a")]
    assert "tools 1: (from tiny)" in longest
    assert len(longest) == 8


def test_a_step_opens_its_log_with_colours_and_nothing_is_executed(failed: Page) -> None:
    failed.one("details.run > summary").click()
    failed.one("#s1-3").find_element(CSS, "summary").click()
    (log,) = failed.wait(lambda: failed.find("#s1-3 pre"))  # the browser says a moment later that it is open
    assert log.text == "red\n100%\n<script>alert(1)</script>\n� </script><!--\n\nlast"
    (red,) = log.find_elements(CSS, "span.b.f1")
    assert red.text == "red"
    assert failed.complaints() == []


def test_a_node_of_the_graph_leads_to_its_step_by_keyboard(failed: Page) -> None:
    failed.run("document.querySelector('svg a.failed').focus()")
    failed.browser.switch_to.active_element.send_keys(ENTER)
    assert failed.run("return document.activeElement.parentElement.id") == "s1-7"
    folded = failed.one("svg a[href='#s0-1']")
    assert not failed.find("#s1-4")
    failed.run(
        "arguments_ = document.createElement('a'); arguments_.href = '#s1-4';"
        "document.body.append(arguments_); arguments_.click()"
    )
    assert failed.one("#s1-4").get_attribute("open")
    assert folded.get_attribute("aria-label") == "1–3: 3 steps, cached"


def test_search_finds_in_logs_and_in_steps(failed: Page) -> None:
    assert failed.search("NEEDLE") == ["7: the needle in it"]
    failed.one("#matches a").click()
    assert failed.one("mark").text == "needle"
    assert failed.search("alert(1)") == ["3: <script>alert(1)</script>"]
    assert len(failed.search("(run")) == 6
    assert failed.search("nowhere") == []
    assert failed.one("#found").text == "No matches"


def test_it_can_be_read_in_the_dark_and_on_a_phone(failed: Page) -> None:
    def emulate(scheme: str) -> str:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        failed.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        return str(failed.run("return getComputedStyle(document.body).backgroundColor"))

    assert emulate("light") == "rgb(255, 255, 255)"
    assert emulate("dark") == "rgb(20, 24, 30)"
    phone = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    failed.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert failed.run("return document.documentElement.scrollWidth") == 360
    failed.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_screen_reader_finds_names_and_headings(failed: Page) -> None:
    tree = failed.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {(node["role"]["value"], node["name"]["value"]) for node in tree if "role" in node and "name" in node}
    assert {("heading", "Timeline"), ("searchbox", "Search in steps and logs")} <= named
    assert ("link", "7: (run (shell bad)), failed") in named
    assert not {role for role, name in named if role in ("link", "button", "searchbox") and not name}


@pytest.mark.long
def test_a_build_of_5000_steps_with_long_logs_opens(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    steps = {op: Step(op, "", f"/: (run (shell {op}))", "", "made", float(op), op + 1.5) for op in range(1, 5001)}
    story = Story({"": Stage("", steps)})
    graph = svg.draw(model.graph(data.drawing(story)), label="graph")
    log = {"text": "needle \x1b[1mx\x1b[0m\n" * 50, "size": 50 << 20, "cut": True}
    names = ("op", "id", "text", "origin", "state", "began", "ended", "why", "nearest", "phases")
    shown = [
        {name: getattr(step, name) for name in names} | {"log": log, "size": 1, "key": []}
        for step in steps.values()
    ]
    build = Build("x", 0.0, 5002.0, "done", "", 5000, 5000, 0, "/spec", "/", "qemu", "0")
    about = {"build": {name: getattr(build, name) for name in build.__slots__} | {"tags": []}}
    whole = {**about, "message": "", "hint": "", "notes": [], "stages": [{"path": "", "steps": shown}]}
    path = tmp_path / "large.html"
    path.write_text(page("large", {**whole, "qemu": "", "made_by": ""}, graph))
    large = Page(chromium, path)
    assert large.run("return document.querySelectorAll('#stages details').length") == 5000
    assert large.run("return document.querySelectorAll('*').length") < 50_000
    assert len(large.search("needle")) == 200
    assert large.one("#found").text == "The first 200 matches:"
    large.run("byId('s0-4999').querySelector('summary').click()")
    assert large.one("#s0-4999 pre").text.startswith("needle x\nneedle x")
    assert large.complaints() == []
