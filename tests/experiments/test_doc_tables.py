import math

import pytest
from PIL import Image

from benchmarks import bench_startup
from benchmarks.figures import Curve, Figure
from benchmarks.run import run_benchmarks
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Silent
from streetvision.experiments.doc_tables import commit_line, write_table


def test_a_page_gets_the_table_between_its_marks_and_keeps_the_rest(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- ablate t -->\nold\n<!-- end -->\nafter\n")
    write_table(page, "ablate t", "new")
    write_table(page, "ablate t", "newer")
    begin, end = "before\n<!-- ablate t -->\n\nnewer\n", "\n<!-- end -->\nafter\n"
    assert page.read_text() == f"{begin}{commit_line()}{end}"
    with pytest.raises(ConfigError, match="no place"):
        write_table(page, "ablate u", "new")


@pytest.mark.usefixtures("figures_as_drawn")
def test_a_section_is_written_with_what_it_was_measured_on_and_its_picture(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench startup -->\n<!-- end -->\n")
    curve = Curve("views", (10, 100, 1000), (0.1, 1.0, 10.0))
    figures = [
        Figure("ours", 0.01234, "theirs", math.nan),
        Figure("much", 12_345.6, "less", 0.5, "MB"),
        Figure("grown", 1.0, "linear", 1.0, "exponent", curve),
    ]
    monkeypatch.setattr(bench_startup, "bench_startup", lambda _: figures)
    assert run_benchmarks("startup", Silent(), page) == figures
    text = page.read_text()
    assert "| ours | 0.0123 s | theirs | absent | absent |" in text
    assert "| much | 12,300 MB | less | 0.5 MB | 24,700 |" in text
    assert "| grown | 1 exponent | linear | 1 exponent | 1 |" in text
    assert "torch" in text.splitlines()[2]
    assert "![startup](startup.png)" in text
    with Image.open(tmp_path / "startup.png") as picture:
        assert picture.size[0] > 600


def test_a_page_without_a_place_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_startup, "bench_startup", lambda _: pytest.fail("it was measured"))
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(ConfigError, match="<!-- bench startup -->"):
        run_benchmarks("startup", Silent(), tmp_path / "page.md")


@pytest.mark.parametrize(("power", "factor"), [(1, 0.5), (2, 3.0), (0.5, 1e-6)])
def test_the_exponent_of_a_power_law_is_its_own(power, factor):
    sizes = (3, 10, 40, 500)
    assert Curve("n", sizes, tuple(factor * n**power for n in sizes)).exponent == pytest.approx(power)
