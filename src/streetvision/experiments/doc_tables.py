"""Tables that a command writes into a documentation page, between two comments that mark the place.

A table names the commit of the code that it was measured with; `tests/test_figures.py` compares it with the files that
the figures depend on.
"""

from pathlib import Path

from streetvision.contracts.errors import ConfigError
from streetvision.io.manifests import git_sha

END = "<!-- end -->"
CODE = ("src", "benchmarks", "scripts")
"""Folders of a checkout whose files are measured."""
SHORT_SHA = 9
"""Characters of a commit."""


def write_table(page: Path, mark: str, table: str) -> None:
    """Write `table` and the commit of the code between `<!-- MARK -->` and `<!-- end -->` of a Markdown page.

    Raises as `split_page` does.
    """
    before, after = split_page(page, mark)
    page.write_text(f"{before}\n{table}\n{commit_line()}\n{after}", encoding="utf-8")


def commit_line() -> str:
    """The line that names the commit, with `+` if code was modified since."""
    sha = git_sha(*CODE)
    return "Code outside a git checkout.\n" if sha is None else f"Commit {sha[:SHORT_SHA]}{'+' * sha.endswith('+')}.\n"


def split_page(page: Path, mark: str) -> tuple[str, str]:
    """The text before and after the place of a table, with the comments; raises ConfigError when there is no place."""
    begin = f"<!-- {mark} -->\n"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {str(page)!r}: {error.strerror}") from error
    head, opened, rest = text.partition(begin)
    _, closed, tail = rest.partition(END)
    if not (opened and closed):
        raise ConfigError(f"{str(page)!r} has no place for this table", f"add the lines {begin.strip()} and {END}")
    return head + begin, END + tail
