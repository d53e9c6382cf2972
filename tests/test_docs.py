"""README and pages: short, linked to what is there, and in commands and choices that exist."""

import re
from pathlib import Path

import pytest
from helpers import CONF, TINY, Metarun

from metarun.cli import COMMANDS

ROOT = CONF.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = ("algorithm", "backbone", "dataset", "protocol", "experiment", "optimizer", "scheduler", "device")

OWN = {("algorithm", "mine"), ("dataset", "stripes"), ("backbone", "shallow"), *(("experiment", name) for name in ("best", "a", "b"))}


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140
    assert len(PAGES) >= 9


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_commands_and_choices_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    lines = re.findall(r"(?:^|[`$ ]) ?metarun ((?:[a-z]+|-)[ \n][^`\n]*)", text, flags=re.M)
    typed = [line for line in lines if re.match(r"\S+ \S*[=\[A-Z-]", line)]  # and not a sentence about metarun
    assert len(typed) > 25
    assert {line.split()[0] for line in typed} <= {*COMMANDS, "-sc"}
    words = re.findall(rf"\b({'|'.join(GROUPS)})=([a-z][a-z0-9_,]*)", "\n".join(lines))
    chosen = {(group, choice) for group, choices in words for choice in choices.split(",") if choice}
    there = {(group, path.stem) for group in GROUPS for path in (CONF / group).glob("*.yaml")}
    assert len(chosen) > 10
    assert chosen - there <= OWN


def test_the_results_are_those_of_the_committed_table() -> None:
    def rows(text: str) -> list[str]:
        return [re.sub(r"<sup>[^<]*</sup>|[†‡§]", "", row) for row in re.findall(r"^\|.*\|$", text, flags=re.M)]

    table = rows((ROOT / "outputs/reference/omniglot_short.md").read_text())
    page = rows((ROOT / "docs/results.md").read_text())
    assert len(table) > 10 and page[: len(table)] == table


@pytest.mark.parametrize(
    "words", ["algorithm=mine", "dataset=stripes", "algorithm=maml backbone=shallow", "algorithm=mine dataset=stripes backbone=shallow"]
)
def test_what_is_ones_own_trains(words: str, metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    files = [*blocks(page, "python"), *blocks(page, "yaml")]
    assert len(files) == 6
    for text in files:
        path = tmp_path / text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = TINY.replace("backbone.widths=[4,4]", "backbone.width=4") if "shallow" in words else TINY
    outcome = metarun(f"train --config-dir conf {words} {small} hydra.run.dir=mine")
    assert outcome.code == 0 and "test accuracy" in outcome.out, outcome.err
