"""`metarun report`: one whole, well-formed page without a network; what stands in it, and how it behaves in a browser."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricated import fabricate
from helpers import Metarun

from metarun.analysis.report import methods, origins, sections
from metarun.analysis.report.episodes import chosen
from metarun.analysis.report.methods import Setting, band, settings
from metarun.runs.catalogue import find_runs, read_run

EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
NASTY = "<script>alert('x')</script>&\"'"


class Page(HTMLParser):
    """A page whose elements are all closed in their order; `attributes` are (element, name, value), `text` is what is to be read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.attributes, self.text = list[str](), list[tuple[str, str, str]](), ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture
def one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the papers' tables take seconds; one will do."""
    monkeypatch.setattr("metarun.analysis.report.papers.names", lambda: ["protonet"])


@pytest.fixture
def outputs(tmp_path: Path, one_table: None) -> Path:
    """Runs of two methods and settings in several states, one of them with names that are no friends of HTML."""
    root = tmp_path / "outputs"
    for seed in (0, 1):
        fabricate(root / f"maml-omniglot-5w1s/{seed}", seed=seed, accuracy=90.0 + seed)
    fabricate(root / "protonet-omniglot-5w1s/a b", "protonet", accuracy=95.0)
    fabricate(root / "protonet-omniglot-5w1s/a-b", "protonet", accuracy=None, state="failed", error=f"out of memory {NASTY}", best=None)
    fabricate(root / f"nasty-{NASTY.replace('/', '')}", NASTY, accuracy=50.0, shots=5, config={"note": NASTY, NASTY: {"a": [NASTY]}})
    return root


@pytest.fixture
def report(metarun: Metarun, outputs: Path) -> str:
    outcome = metarun("report outputs --episodes 0")
    assert outcome.code == 0, outcome.err
    assert re.fullmatch(r"outputs/report.html: 5 runs, \d+ MiB\n", outcome.out)
    return (outputs / "report.html").read_text("utf-8")


def test_the_page_is_whole_and_asks_for_nothing(report: str) -> None:
    page = Page(report)
    ids = page.all("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    links = page.all("href") + page.all("src") + re.findall(r"url\(([^)]*)\)", report)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert "http" not in report.replace("http-equiv", "") and "@import" not in report
    assert {tag for tag, _, _ in page.attributes}.isdisjoint({"iframe", "object", "embed", "base", "form"})


def test_every_run_has_a_line_and_a_part_of_its_own(report: str) -> None:
    page = Page(report)
    parts = [value for tag, name, value in page.attributes if (tag, name) == ("article", "class")]
    assert len(parts) == 5 and len([link for link in page.all("href") if link.startswith("#run-")]) == 5
    for said in ("90.00 ± 0.50", "failed", "omniglot, 5-way 1-shot", "metarun train algorithm=maml seed=1", "2.17 min", "1.0 GiB"):
        assert said in page.text, said
    assert "They were not asked for." in page.text and "It was not tested." in page.text


def test_what_users_write_is_text(report: str) -> None:
    page = Page(report)
    assert report.count("<script") == 1 and page.text.count(NASTY) >= 4  # the reason, the algorithm, the note, a key
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_same_runs_make_the_same_page(metarun: Metarun, outputs: Path, report: str) -> None:
    assert metarun("report outputs --episodes 0 --out again.html").code == 0
    again = (outputs.parent / "again.html").read_text("utf-8")
    assert re.sub(r"on \d{4}-\d\d-\d\d \d\d:\d\d", "", again) == re.sub(r"on \d{4}-\d\d-\d\d \d\d:\d\d", "", report)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("empty", "no runs below empty"),
        ("outputs --episodes -1", "--episodes: -1 is not allowed"),
        ("outputs --episodes many", "argument --episodes: invalid int value"),
        ("outputs --out outputs", "--out: outputs is a folder"),
        ("outputs --out nowhere/a.html", "--out: the folder of nowhere/a.html does not exist"),
        ("outputs --out /proc/a.html", "--out: /proc/a.html cannot be written"),
    ],
)
def test_refusals_are_one_line(metarun: Metarun, outputs: Path, words: str, said: str) -> None:
    (outputs.parent / "empty").mkdir()
    outcome = metarun(f"report {words}")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1) and said in outcome.err, outcome
    assert not list(outputs.rglob("*.html"))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_an_absent_package_is_named(metarun: Metarun, outputs: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr("metarun.analysis.report.command.find_spec", lambda name: None if name == package else object())
    outcome = metarun("report outputs")
    assert (outcome.code, outcome.err) == (2, f"metarun: report needs {package}; pip install 'metarun[analysis]'\n")


def test_seeds_make_one_method_and_values_make_several(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        fabricate(tmp_path / f"seed{seed}", seed=seed)
    fabricate(tmp_path / "fast", config={"optimizer": {"lr": 0.1}, "val_every": 7})
    fabricate(tmp_path / "other", "anil")
    fabricate(tmp_path / "shots", shots=5)
    found = settings(find_runs(tmp_path))
    assert list(map(str, found)) == ["omniglot, 5-way 1-shot", "omniglot, 5-way 5-shot"]
    methods = {method.label: method for method in found[Setting("omniglot", 5, 1)]}
    assert {label: len(method.runs) for label, method in methods.items()} == {"anil": 1, "maml (lr=0.1)": 1, "maml (lr=0.001)": 3}
    assert len({(method.colour, method.dashes) for method in methods.values()}) == 3
    assert methods["maml (lr=0.1)"].colour == methods["maml (lr=0.001)"].colour == found[Setting("omniglot", 5, 5)][0].colour


def test_curves_are_means_with_the_range_of_the_seeds(tmp_path: Path) -> None:
    for seed in (0, 3):
        fabricate(tmp_path / f"seed{seed}", seed=seed)
    ((method,),) = settings(find_runs(tmp_path)).values()
    split, found = methods.learning(method)
    assert (split, found.x.tolist()) == ("val", [25, 50, 75, 100])
    assert [(found.low[3], found.mean[3], found.high[3])] == [pytest.approx((50 + 100 / 3, 51.5 + 100 / 3, 53 + 100 / 3))]
    ragged = band([([1, 2], [10.0, 20.0]), ([1], [30.0])])
    assert (ragged.mean.tolist(), ragged.low.tolist(), ragged.high.tolist()) == ([20, 20], [10, 20], [30, 20])


def test_without_validation_training_tasks_are_shown(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run")
    lines = [line for line in (folder / "metrics.csv").read_text().splitlines() if ",val," not in line]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    ((setting, found),) = settings(find_runs(tmp_path)).items()
    split, curve = methods.learning(found[0])
    assert split == "train" and curve.mean.tolist() == pytest.approx([60, 70, 80, 90])
    assert sections.learning_curves(setting, found).remarks == ["maml: on training tasks, for there was no validation."]


def test_inner_steps_are_those_of_the_runs_own_test(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", accuracy=80.0)
    record = json.loads((folder / "evaluations/0123456789abcdef.json").read_text())
    other = {**record, "shots": 5, "diagnostics": {"episodes": 3, "inner_steps": [{"accuracy": 1.0, "loss": 9.0}]}}
    (folder / "evaluations/other.json").write_text(json.dumps(other))
    ((method,),) = settings(find_runs(tmp_path)).values()
    found, tasks = methods.inner(method)
    assert (found.x.tolist(), found.mean.tolist(), tasks) == ([0, 1, 2, 3], pytest.approx([20, 40, 60, 80]), 3)


def test_costs_are_means_beside_the_dearest(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", seconds=100.0, peak_memory=2**30)
    fabricate(tmp_path / "b", seed=1, seconds=300.0, peak_memory=3 * 2**30)
    fabricate(tmp_path / "c", "protonet", seconds=50.0, peak_memory=None)
    (maml, protonet) = sections.costs(next(iter(settings(find_runs(tmp_path)).values())))
    assert (maml.entries["runs"], maml.entries["time"], maml.entries["memory"]) == ("2", "3.33 min", "2.0 GiB")
    assert (protonet.bars["time"], protonet.entries["memory"], protonet.bars["memory"]) == (25, "", 0)


@pytest.mark.parametrize(
    ("accuracies", "count", "expected"),
    [([50.0, 10, 30, 20, 90], 2, ([0, 1], [3, 2])), ([50.0, 10], 3, ([0, 1], [])), ([9.0, 5, 5, 1], 1, ([0], [3])), ([1.0], 0, ([], []))],
)
def test_first_and_worst_tasks(accuracies: list[float], count: int, expected: tuple[list[int], list[int]]) -> None:
    assert chosen(accuracies, count) == expected


def test_a_run_shows_its_tasks_its_recipe_and_its_commands(metarun: Metarun, trained: Path, one_table: None) -> None:
    assert metarun("evaluate run=trained protocol.episodes=4 protocol.batch_norm=running").code == 0
    outcome = metarun("report . --out report.html --episodes 1")
    assert outcome.code == 0, outcome.err
    page = Page((trained.parent / "report.html").read_text("utf-8"))
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == 2 and all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert "Task 0: " in page.text and " of 6 wrong" in page.text
    assert "metarun train algorithm=maml steps=2 val_every=1" in page.text
    assert "metarun evaluate run=trained protocol.episodes=4 protocol.batch_norm=running" in page.text
    run = read_run(trained)
    assert run is not None and ("steps", "2000", "2") in (origins.differences(run) or [])
    assert not [key for key, _, _ in origins.differences(run) or [] if key.startswith("optimizer.")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints/best.pt: not found"),
        (lambda run: (run / "checkpoints/best.pt").write_bytes(b"later"), "best.pt: has changed since it was tested"),
    ],
)
def test_pictures_that_cannot_be_made_are_a_line(metarun: Metarun, trained: Path, one_table: None, change: Any, said: str) -> None:
    change(trained)
    assert metarun("report .").code == 0
    page = Page((trained.parent / "report.html").read_text("utf-8"))
    assert "They cannot be shown: " in page.text and said in page.text


# In a browser, where there is one. It is Debian's, driven by the program that comes with it, so that nothing is fetched.
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@pytest.fixture
def browser() -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


WIDTHS = """
location.hash = arguments[0];
const page = document.documentElement;
setTimeout(() => arguments[1]([page.scrollWidth, page.clientWidth]), 50);
"""


def resized(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def visible(browser: Any, selector: str) -> list[Any]:
    return [element for element in browser.find_elements("css selector", selector) if element.is_displayed()]


def test_a_browser_clicks_through_it(browser: Any, outputs: Path, report: str) -> None:
    browser.get((outputs / "report.html").as_uri())
    assert len(visible(browser, "#runs tbody tr")) == 5 and not visible(browser, ".run")
    link = browser.find_element("link text", "maml-omniglot-5w1s/1")
    link.click()
    (run,) = visible(browser, ".run")
    assert run.find_element("tag name", "h2").text == "maml-omniglot-5w1s/1" and not visible(browser, "#all")
    assert browser.title == "maml-omniglot-5w1s/1" and visible(browser, ".run svg")
    browser.back()
    assert visible(browser, "#all") and not visible(browser, ".run") and browser.title == "Runs in outputs"
    browser.forward()
    visible(browser, ".run .back a")[0].click()
    assert visible(browser, "#all")
    for width in (320, 390, 1440):
        resized(browser, width)
        for part in ["", *(element.get_attribute("id") for element in browser.find_elements("class name", "run"))]:
            scrolled, there = browser.execute_async_script(WIDTHS, part)
            assert scrolled == there > width - 20, (part, width)
    assert browser.get_log("browser") == []  # neither errors nor what the page's own policy refused
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked and all(address.startswith("data:") or address == (outputs / "report.html").as_uri() for address in asked)


def test_a_browser_sorts_and_finds(browser: Any, outputs: Path, report: str) -> None:
    browser.get((outputs / "report.html").as_uri())

    def tests() -> list[str]:
        return [row.find_element("css selector", "td.number").text[:5] for row in visible(browser, "#runs tbody tr")]

    heading = next(button for button in visible(browser, "#runs thead button") if button.text == "test, %")
    heading.click()
    assert tests() == ["50.00", "90.00", "91.00", "95.00", ""]
    heading.click()
    assert tests() == ["95.00", "91.00", "90.00", "50.00", ""]
    browser.find_element("css selector", ".find input").send_keys("MAML finished")
    assert tests() == ["91.00", "90.00"] and visible(browser, ".find output")[0].text == "2 of 5"


def test_without_scripts_it_is_one_long_page(browser: Any, outputs: Path, report: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get((outputs / "report.html").as_uri())
    assert len(browser.find_elements("css selector", ".run:not([hidden])")) == 5
