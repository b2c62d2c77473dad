"""The documentation's site: builds without a warning or the network, and explains every setting."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

import presel
from presel.settings.options import config_folder, options
from tests.documents import blocks
from tests.helpers import Result, environment

ROOT = Path(__file__).parent.parent
GROUPS = sorted(folder.name for folder in config_folder().iterdir() if folder.is_dir())


def build(config: Path, site: Path) -> Result:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    return subprocess.run(
        [*command, "--site-dir", str(site)],
        cwd=ROOT,
        env=environment(NO_MKDOCS_2_WARNING="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def site(shared_store: Path) -> Path:
    """The built site, which all processes share."""
    folder = shared_store.with_name("site")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            result = build(ROOT / "mkdocs.yml", folder)
            assert result.returncode == 0, result.stderr
            assert "WARNING" not in result.stdout + result.stderr
    return folder


class Addresses(HTMLParser):
    """What a page loads by itself, and what it links to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = ("src", "srcset", "data", "poster", *(("href",) if tag == "link" else ()))
        self.loaded += [value or "" for name, value in attrs if name in loading]
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]


def test_pages_load_nothing_from_elsewhere_and_links_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        addresses = Addresses(page)
        assert any(source.endswith("assets/iframe-worker.js") for source in addresses.loaded)
        loaded = [source for source in addresses.loaded if not source.startswith("data:")]
        assert not [source for source in loaded if re.match(r"\w+:|//", source)], page
        links = [link for link in addresses.links if not re.match(r"\w+:|#|$", link)]
        # The page for wrong addresses has absolute ones, since it may stand anywhere.
        for target in [*loaded, *links] if page.name != "404.html" else ():
            assert (page.parent / re.split("[?#]", target)[0]).is_file(), (page, target)


def test_styles_load_nothing_from_elsewhere(site: Path) -> None:
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:|//)", text), style


@pytest.mark.parametrize("group", GROUPS)
def test_the_reference_has_every_option_and_setting(site: Path, group: str) -> None:
    page = (site / "reference" / f"{group}.html").read_text(encoding="utf-8")
    for name, option in options(group).items():
        assert f'id="{name}"' in page
        if group not in ("experiment", "published"):
            for key in option.settings.keys() - {"_target_"}:
                assert f"<code>{group}.{key}</code>" in page


def test_equations_are_mathml(site: Path) -> None:
    page = (site / "concepts" / "method.html").read_text(encoding="utf-8")
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 7
    assert "arithmatex" not in page and r"\frac" not in page


def test_a_link_to_nothing_in_the_repository_fails(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("[one](../presel/cli.py) and [none](../presel/nothing.py)")
    hooks = [str(ROOT / "docs" / "hooks" / "repository_pages.py")]
    config = {"site_name": "small", "hooks": hooks, "plugins": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    result = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert result.returncode == 1
    assert "links to ../presel/nothing.py, which does not exist" in result.stderr
    assert "presel/cli.py" not in result.stderr


@pytest.mark.browser
def test_search_works_from_the_disk(site: Path, browser: Any) -> None:
    requests: list[str] = []
    messages: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.goto((site / "index.html").as_uri())
    # The page searches when a key is released or the field gets the focus, not when its value is set.
    page.locator("input[name=query]").press_sequentially("redundancy_penalty")
    page.click("a.md-search-result__link[href*='reference/strategy.html']")
    page.wait_for_url("**/reference/strategy.html*")
    page.close()
    assert messages == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}


def printed_commands() -> Iterator[tuple[Path, list[str]]]:
    """The overrides of every run that a page prints, of a sweep the first value of each."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")]
    texts = [(page, text) for page in pages for language, text in blocks(page) if not language]
    for page, text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            # Own options are tried where their pages are.
            if words[:2] in (["presel", "run"], ["presel", "doctor"]) and "--config-dir" not in words:
                settings = [word for word in words if "=" in word and not word.startswith("hydra")]
                yield page, [re.sub(r"(=[^\[{]*?),.*", r"\1", word) for word in settings]


def test_commands_that_pages_print_are_valid() -> None:
    commands = list(printed_commands())
    assert len(commands) > 20
    for page, overrides in commands:
        try:
            presel.compose([*overrides, "hydra.mode=RUN"])
        except presel.PreselError as error:
            raise AssertionError(f"{page}: {shlex.join(overrides)}") from error
