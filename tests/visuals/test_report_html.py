from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from interpreto_mlops.errors import InputError
from interpreto_mlops.visuals.figures import to_png
from interpreto_mlops.visuals.report_html import (
    Cell,
    Column,
    Command,
    Links,
    Paragraph,
    Picture,
    Report,
    Section,
    Table,
    render_page,
)
from tests.visuals.hostile import PAYLOADS, Page, assert_harmless

COLUMNS = [Column("method"), Column("deletion", numeric=True, higher_is_better=False, meaning="probability left")]


def test_a_report_of_hostile_strings_does_nothing() -> None:
    picture = Picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>", alt=PAYLOADS[2], caption=PAYLOADS[1])
    sections = [
        Section(
            text,
            [
                Paragraph(text),
                Command(text, note=text),
                picture,
                Table(
                    [Column(text, meaning=text)],
                    [[Cell(text, best=True, note=text, link="https://a.org/?q=\"'><script>")]],
                    text,
                ),
                Links({text: "https://a.org/?q='\"><b>"}),
            ],
        )
        for text in PAYLOADS
    ]
    report = Report(PAYLOADS[0], sections, lead=PAYLOADS[1], facts={PAYLOADS[3]: PAYLOADS[4]}, command=PAYLOADS[6])
    page = assert_harmless(render_page(report))
    assert [text for _, text in page.find("h2")] == [*PAYLOADS, "How to repeat it"]
    assert [text for _, text in page.find("pre")] == [*PAYLOADS, PAYLOADS[6]]
    assert all(attributes["href"].startswith(("https://a.org/", "#section-")) for attributes, _ in page.find("a"))


def test_numbers_stand_right_and_the_best_is_the_one_the_caller_marks() -> None:
    table = Table(COLUMNS, [["lime", 0.5], ["shap", Cell(0.25, best=True, note="random 0.7")], ["none", None]])
    page = Page(render_page(Report("x", [Section("s", [table])])))
    numbers = page.find("td", "num")
    assert [text for _, text in numbers] == ["0.500", "0.250random 0.7", "n/a"]
    assert [text for _, text in page.find("td", "best")] == ["0.250random 0.7"]
    assert page.find("th", "num")[0][1] == "deletion ↓"
    assert any("deletion: probability left." in text for _, text in page.find("p", "note"))


def test_an_empty_table_says_so() -> None:
    assert "nothing to show" in render_page(Report("x", [Section("s", [Table(COLUMNS, [])])]))


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InputError, match="row 1 of a table has 1 cells for 2 columns"):
        Table(COLUMNS, [["a", 1], ["b"]])


def test_links_that_could_run_code_are_refused_when_they_are_made() -> None:
    with pytest.raises(InputError, match="javascript"):
        Links({"x": "javascript:alert(1)"})
    with pytest.raises(InputError, match="JavaScript"):
        Cell("x", link="JavaScript:alert(1)")


def test_pictures_are_inside_the_page() -> None:
    png = to_png(Figure(figsize=(1, 1)))
    page = Page(render_page(Report("x", [Section("s", [Picture(png, "a square", "Figure 1")])])))
    ((attributes, _),) = page.find("img")
    assert attributes["src"].startswith("data:image/png;base64,")
    assert attributes["alt"] == "a square"
    with pytest.raises(InputError, match="PNG or SVG"):
        Picture(b"GIF89a", "x")


def test_the_command_that_repeats_the_work_stands_at_the_end() -> None:
    page = Page(render_page(Report("x", [], command="interpreto-mlops run a.yaml \\\n  --seed 1")))
    assert page.find("pre")[-1][1] == "interpreto-mlops run a.yaml \\\n  --seed 1"
    assert not Page(render_page(Report("x", []))).find("pre")


def test_long_reports_have_a_way_to_each_section() -> None:
    page = Page(render_page(Report("x", [Section(f"part {i}", []) for i in range(3)])))
    targets = [attributes["href"][1:] for attributes, _ in page.find("a")]
    assert targets == [attributes["id"] for attributes, _ in page.find("section") if "id" in attributes]
    assert len(targets) == 3
