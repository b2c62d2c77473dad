"""Pages of the site from elsewhere in the repository, and links that hold on the site and on a forge.

README is the home page, and each experiment's README a page of results, so that no text exists twice. In all
pages, links are relative to the file in the repository; here they become links between pages of the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[2]
_log = get_plugin_logger("repository_pages")

# The text, the path and the fragment of a link in Markdown, external ones and those within a page excepted.
_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
# The path of a link to a page in HTML.
_NOTEBOOK_LINK = re.compile(r'(?<=href=")(?!\w+:)[^"#]+\.(?:md|ipynb)')
_OPTION = re.compile(r"conf/([\w/]+)/(\w+)\.yaml")


def _pages() -> dict[str, str]:
    """Paths in the site, by paths in the repository, of the files outside `docs` that are pages."""
    folders = ("experiments", "presel/assets")
    found = [file for folder in folders for file in sorted((_ROOT / folder).rglob("*.md"))]
    paths = [file.relative_to(_ROOT).as_posix() for file in found]
    pages = {path: re.sub(r"presel/assets/(\w+)/README", r"models/\1", path) for path in paths}
    return pages | {
        "README.md": "index.md",
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for source, page in _pages().items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to pages; those to other files become plain text."""
    here = page.file.src_uri
    sources = {target: source for source, target in _pages().items()}
    if page.file.generated_by and here not in sources:
        return markdown
    source = sources.get(here, f"docs/{here}")

    def on_site(link: re.Match[str]) -> str:
        text, path, fragment = link.groups(default="")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (_ROOT / wanted).exists():
            _log.warning("%s links to %s, which does not exist", source, path)
        target = _on_site(wanted)
        if target is None:
            return text
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{fragment})"

    return _LINK.sub(on_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of notebooks into links to pages; MkDocs does so in Markdown only."""
    here = page.file
    if not here.src_uri.endswith(".ipynb"):
        return html
    # In the place of MathJax, which `mkdocs.yml` leaves out.
    html = html.replace('<script src=""> </script>', "")

    def on_site(link: re.Match[str]) -> str:
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(here.src_uri), link[0]))
        target = files.get_file_from_path(wanted)
        if target is None:
            _log.warning("%s links to %s, which is no page", here.src_uri, link[0])
            return link[0]
        return target.url_relative_to(here)

    return _NOTEBOOK_LINK.sub(on_site, html)


def _on_site(path: str) -> str | None:
    """The page of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if option := _OPTION.fullmatch(path):
        return f"reference/{option[1].replace('/', '_')}.md#{option[2]}"
    return "reference/index.md" if path == "conf/config.yaml" else _pages().get(path)
