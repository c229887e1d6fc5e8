"""Tables that a command writes into a documentation page, between two comments that mark the place."""

from pathlib import Path

from streetvision.contracts.errors import ConfigError

END = "<!-- end -->"


def write_table(page: Path, mark: str, table: str) -> None:
    """Write `table` between `<!-- MARK -->` and `<!-- end -->` of a Markdown page; raises as `split_page` does."""
    before, after = split_page(page, mark)
    page.write_text(f"{before}\n{table}\n{after}", encoding="utf-8")


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
