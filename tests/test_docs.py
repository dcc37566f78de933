"""The pages: no link leads nowhere, no line of code is of an older Python."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in [
    *ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'),
    *ROOT.glob('configs/**/*.md')])
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\(([^)\s]+)\)')


def anchors(page):
    """What GitHub makes of a page's headings."""
    text = FENCE.sub('', page.read_text())
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-')
            for h in headings}


@pytest.mark.parametrize(
    'page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(FENCE.sub('', page.read_text())):
        if '://' in link:
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or anchor and anchor not in anchors(target):
            broken.append(link)
    assert broken == []


def test_every_page_of_docs_is_in_the_index():
    index = (ROOT / 'docs/README.md').read_text()
    pages = {str(p.relative_to(ROOT / 'docs')) for folder in ('', 'studies')
             for p in (ROOT / 'docs' / folder).glob('*.md')} - {'README.md'}
    assert pages == {link.partition('#')[0] for link in LINK.findall(index)}


def test_the_readme_is_short():
    """A screen and a half more than it needs; docs/ has the rest."""
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 200


@pytest.mark.parametrize(
    'page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_on_the_page_is_python(page):
    for language, code in FENCE.findall(page.read_text()):
        if language == 'python':
            ast.parse(code)
