"""Tables that a command writes into a page of the documentation, between two comments that keep their place."""

from pathlib import Path

from streetvision.contracts.errors import ConfigError

LAST = "<!-- end -->"


def put_into_page(page: Path, mark: str, table: str) -> None:
    """Write `table` between `<!-- MARK -->` and `<!-- end -->` of a Markdown page; raises as `around_place` does."""
    before, behind = around_place(page, mark)
    page.write_text(f"{before}\n{table}\n{behind}", encoding="utf-8")


def around_place(page: Path, mark: str) -> tuple[str, str]:
    """What stands before and behind the place of a table, comments included; raises ConfigError where there is none."""
    first = f"<!-- {mark} -->\n"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {str(page)!r}: {error.strerror}") from error
    head, opened, rest = text.partition(first)
    _, closed, tail = rest.partition(LAST)
    if not (opened and closed):
        raise ConfigError(
            f"{str(page)!r} has no place for this table", f"put the lines {first.strip()} and {LAST} where it belongs"
        )
    return head + first, LAST + tail
