from __future__ import annotations

import io
import zipfile

import docx as python_docx
import pytest

from pipeline.core.chunking import chunk
from pipeline.core.documents import DocumentKind, Extracted
from pipeline.core.errors import Broken, NoText
from pipeline.ingest.extract import docx_package, extract
from tests.extract.sample_documents import R, W, cell, docx, p, rewritten, root, run, styled, table

BREAK = "<w:r><w:lastRenderedPageBreak/></w:r>"
NO_RELATIONS = b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"/>'
HARD = '<w:r><w:br w:type="page"/></w:r>'


def read(data: bytes) -> Extracted:
    return extract(data, DocumentKind.DOCX, "a.docx")


def text_of(body: str, **parts: str) -> str:
    return read(docx(body, parts)).text


def style(identity: str, name: str, properties: str = "", based_on: str = "") -> str:
    base = f'<w:basedOn w:val="{based_on}"/>' if based_on else ""
    return (
        f'<w:style w:type="paragraph" w:styleId="{identity}"><w:name w:val="{name}"/>{base}'
        f"<w:pPr>{properties}</w:pPr></w:style>"
    )


def inline(content: str) -> str:
    return f"<w:p>{content}</w:p>"


STYLES = root(
    "styles",
    style("Ttl", "Title")
    + style("berschrift1", "heading 1", '<w:outlineLvl w:val="0"/>')
    + style("Kop", "Kapitel", '<w:outlineLvl w:val="1"/>')
    + style("Own", "My own", based_on="Own2")
    + style("Own2", "My other", based_on="berschrift1")
    + style("TOCHeading", "TOC Heading", '<w:outlineLvl w:val="9"/>', based_on="berschrift1")
    + style("LoopA", "a", based_on="LoopB")
    + style("LoopB", "b", based_on="LoopA"),
)


class TestBody:
    def test_paragraphs_and_tables_stand_in_document_order(self) -> None:
        text = text_of(p("Before.") + table(["a", "b"], ["c", "d"]) + p("Between.") + table(["e", "f"]) + p("After."))
        assert text == "Before.\n\na | b\nc | d\n\nBetween.\n\ne | f\n\nAfter."

    def test_what_stands_inside_a_paragraph(self) -> None:
        content = (
            run("One")
            + "<w:r><w:tab/></w:r>"
            + '<w:hyperlink r:id="x">'
            + run("link")
            + "</w:hyperlink><w:r><w:br/></w:r>"
            + "<w:sdt><w:sdtPr/><w:sdtContent>"
            + run("control")
            + "</w:sdtContent></w:sdt>"
            + "<w:r><w:noBreakHyphen/></w:r><w:smartTag>"
            + run("tag")
            + "</w:smartTag><w:r><w:softHyphen/></w:r><m:oMath><m:r><m:t>=x</m:t></m:r></m:oMath>"
        )
        assert text_of(inline(content)) == "One link\ncontrol-tag=x"

    def test_runs_keep_the_spaces_between_them(self) -> None:
        assert text_of(inline(run("one") + run(" ") + run("two"))) == "one two"

    def test_changes_are_accepted_and_hidden_text_and_comments_left_out(self) -> None:
        content = (
            run("kept ")
            + "<w:ins>"
            + run("inserted ")
            + "</w:ins><w:del><w:r><w:delText>deleted </w:delText></w:r></w:del>"
            + "<w:moveFrom>"
            + run("moved away ")
            + "</w:moveFrom><w:moveTo>"
            + run("moved here")
            + "</w:moveTo><w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r>"
            + '<w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t xml:space="preserve"> shown</w:t></w:r>'
            + '<w:commentRangeStart w:id="0"/><w:r><w:commentReference w:id="0"/></w:r>'
        )
        comments = root("comments", f'<w:comment w:id="0">{p("a remark")}</w:comment>')
        assert text_of(inline(content), comments=comments) == "kept inserted moved here shown"

    def test_fields_show_their_result_and_not_their_code(self) -> None:
        def char(kind: str) -> str:
            return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'

        nested = char("begin") + "<w:r><w:instrText>IF </w:instrText></w:r>" + char("begin") + char("separate")
        nested += run("inside the code") + char("end") + char("separate") + run("result") + char("end")
        simple = '<w:fldSimple w:instr="AUTHOR">' + run(" Ann") + "</w:fldSimple>"
        assert text_of(inline(nested + simple)) == "result Ann"
        unending = inline(char("begin") + run("swallowed"))
        assert text_of(unending + p("The next paragraph is there.")) == "The next paragraph is there."

    def test_content_controls_keep_their_content_but_not_their_hints(self) -> None:
        filled = f"<w:sdt><w:sdtPr/><w:sdtContent>{p('filled in')}</w:sdtContent></w:sdt>"
        hint = f"<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>{p('Click here')}</w:sdtContent></w:sdt>"
        assert text_of(filled + hint) == "filled in"

    def test_readings_over_characters_are_left_out(self) -> None:
        ruby = f"<w:r><w:ruby><w:rt>{run('かんじ')}</w:rt><w:rubyBase>{run('漢字')}</w:rubyBase></w:ruby></w:r>"
        assert text_of(inline(ruby)) == "漢字"


class TestHeadings:
    def test_levels_by_name_outline_and_base_style(self) -> None:
        body = (
            styled("The title", "Ttl")
            + styled("One", "berschrift1")
            + p("Text.")
            + styled("Two", "Kop")
            + styled("Three", "Own")
            + styled("Contents", "TOCHeading")
            + p("Four", '<w:outlineLvl w:val="3"/>')
            + p("Body after all", '<w:pStyle w:val="berschrift1"/><w:outlineLvl w:val="9"/>')
            + styled("Loop", "LoopA")
            + styled("", "berschrift1")
            + styled("A sentence of prose. " * 20, "berschrift1")
        )
        document = read(docx(body, {"styles": STYLES}))
        assert [(heading.level, heading.title) for heading in document.headings] == [
            (1, "The title"),
            (1, "One"),
            (2, "Two"),
            (1, "Three"),
            (4, "Four"),
        ]
        for heading in document.headings:
            around = document.text[max(0, heading.offset - 2) : heading.offset + len(heading.title) + 2]
            assert around in (f"\n\n{heading.title}\n\n", f"{heading.title}\n\n")
        assert document.title == "The title"

    def test_a_heading_is_one_line_without_note_marks(self) -> None:
        notes = root("footnotes", f'<w:footnote w:id="2">{p("The note.")}</w:footnote>')
        properties = '<w:pPr><w:pStyle w:val="berschrift1"/></w:pPr>'
        content = properties + run("Two") + "<w:r><w:br/></w:r>" + run("lines")
        content += '<w:r><w:footnoteReference w:id="2"/></w:r>'
        document = read(docx(inline(content), {"styles": STYLES, "footnotes": notes}))
        assert document.text == "Two lines\n\n[1] The note."
        assert document.headings[0].title == "Two lines"

    def test_headings_that_python_docx_writes(self) -> None:
        document = python_docx.Document()
        document.add_heading("Title", 0)
        document.add_heading("First", 1)
        document.add_paragraph("Text.")
        document.add_heading("Second", 2)
        target = io.BytesIO()
        document.save(target)
        extracted = read(target.getvalue())
        assert [(heading.level, heading.title) for heading in extracted.headings] == [
            (1, "Title"),
            (1, "First"),
            (2, "Second"),
        ]
        assert "author" not in extracted.metadata


def level(number: int, form: str, text: str, extra: str = "", start: int = 1) -> str:
    return (
        f'<w:lvl w:ilvl="{number}"><w:start w:val="{start}"/><w:numFmt w:val="{form}"/>'
        f'<w:lvlText w:val="{text}"/>{extra}</w:lvl>'
    )


def item(text: str, number: int, depth: int = 0) -> str:
    return p(text, f'<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="{number}"/></w:numPr>')


NUMBERING = root(
    "numbering",
    '<w:abstractNum w:abstractNumId="0">'
    + level(0, "decimal", "%1.")
    + level(1, "lowerLetter", "%1.%2)")
    + level(2, "upperRoman", "%3")
    + "</w:abstractNum>"
    + '<w:abstractNum w:abstractNumId="1">'
    + level(0, "bullet", "\uf0b7")
    + level(1, "bullet", "o")
    + "</w:abstractNum>"
    + '<w:abstractNum w:abstractNumId="2">'
    + level(0, "decimal", "%1", '<w:pStyle w:val="H1"/>')
    + level(1, "decimal", "%1.%2", '<w:pStyle w:val="H2"/>')
    + "</w:abstractNum>"
    + '<w:abstractNum w:abstractNumId="3">'
    + level(0, "ganada", "%1.")
    + "</w:abstractNum>"
    + "".join(
        f'<w:num w:numId="{number}"><w:abstractNumId w:val="{abstract}"/>{override}</w:num>'
        for number, abstract, override in [
            (1, 0, ""),
            (2, 1, ""),
            (3, 2, ""),
            (4, 0, '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="7"/></w:lvlOverride>'),
            (5, 3, ""),
        ]
    ),
)


class TestLists:
    def test_numbers_are_counted_and_nested(self) -> None:
        body = item("a", 1) + item("b", 1) + item("c", 1, 1) + item("d", 1, 1) + item("e", 1, 2) + item("f", 1)
        body += item("g", 1, 1) + p("Text.") + item("h", 1) + item("i", 4) + item("j", 4)
        assert text_of(body, numbering=NUMBERING).split("\n") == [
            "1. a",
            "2. b",
            "  2.a) c",
            "  2.b) d",
            "    I e",
            "3. f",
            "  3.a) g",
            "",
            "Text.",
            "",
            "4. h",
            "7. i",
            "8. j",
        ]

    def test_bullets_korean_numbers_and_none(self) -> None:
        body = item("a", 2) + item("b", 2, 1) + item("가게", 5) + item("나무", 5) + item("plain", 0) + item("lost", 99)
        assert text_of(body, numbering=NUMBERING) == "- a\n  - b\n가. 가게\n나. 나무\n\nplain\n\nlost"

    def test_headings_take_the_numbers_of_their_style(self) -> None:
        number = '<w:numPr><w:numId w:val="3"/></w:numPr>'
        styles = root("styles", style("H1", "heading 1", number) + style("H2", "heading 2", number))
        body = styled("One", "H1") + styled("Deep", "H2") + styled("Deeper", "H2") + styled("Two", "H1")
        document = read(docx(body + styled("Last", "H2"), {"styles": styles, "numbering": NUMBERING}))
        assert [heading.title for heading in document.headings] == [
            "1 One",
            "1.1 Deep",
            "1.2 Deeper",
            "2 Two",
            "2.1 Last",
        ]
        assert document.text == "1 One\n\n1.1 Deep\n\n1.2 Deeper\n\n2 Two\n\n2.1 Last"


class TestTables:
    def test_merged_cells_are_not_repeated(self) -> None:
        wide = cell("wide", '<w:gridSpan w:val="2"/>')
        top = cell("tall", '<w:vMerge w:val="restart"/>')
        below = cell("", "<w:vMerge/>")
        assert text_of(table([wide, "c"], [top, "d", "e"], [below, "f", "g"])) == "wide | | c\ntall | d | e\n| f | g"

    def test_what_follows_a_wide_cell_stays_below_the_name_of_its_column(self) -> None:
        wide = cell("closed", '<w:gridSpan w:val="2"/>')
        old = [cell("closed", '<w:hMerge w:val="restart"/>'), cell("", "<w:hMerge/>")]
        rows = table(
            ["Place", "Opens", "Shuts", "Keeper"], ["a", wide, "Ola"], ["b", *old, "Per"], ["c", "8", "17", "Sif"]
        )
        document = read(docx(marked(rows, 1)))
        assert document.text.splitlines()[1:3] == ["a | closed | | Ola", "b | closed | | Per"]
        huge = text_of(table(["x", cell("y", '<w:gridSpan w:val="2000000000"/>'), "z"]))
        assert (huge.startswith("x | y |"), huge.endswith("| z"), len(huge) < 200) == (True, True, True)

    def test_a_cell_is_one_line_and_empty_rows_are_left_out(self) -> None:
        assert text_of(table([p("two") + p("lines"), "b"], ["", ""], ["c", ""])) == "two lines | b\nc"

    def test_nested_tables_follow_their_row(self) -> None:
        assert text_of(table(["a", p("b") + table(["x", "y"], ["z", "w"]) + p("")], ["c", "d"])) == (
            "a | b\n  x | y\n  z | w\nc | d"
        )

    def test_a_table_of_one_column_is_a_frame(self) -> None:
        framed = table([styled("Heading", "berschrift1") + p("Text.") + table(["a", "b"])])
        document = read(docx(framed, {"styles": STYLES}))
        assert document.text == "Heading\n\nText.\n\na | b"
        assert len(document.headings) == 1

    def test_deleted_rows_are_left_out(self) -> None:
        rows = table(["a", "b"], ["c", "d"]).replace("<w:tr>", "<w:tr><w:trPr><w:del/></w:trPr>", 1)
        assert text_of(rows) == "c | d"

    def test_a_marked_header_is_known_with_its_place(self) -> None:
        rows = table(["Place", "Pieces"], ["a", "1"], ["b", "2"])
        document = read(docx(p("Before.") + marked(rows, 1) + p("After.")))
        assert parts_of(document) == [("Place | Pieces\n", "a | 1\nb | 2\n\n")]

    def test_several_marked_rows_are_one_header_and_only_the_first_ones_count(self) -> None:
        rows = table(["Stock", "of 2024"], ["Place", "Pieces"], ["a", "1"], ["b", "2"])
        assert parts_of(read(docx(marked(rows, 2)))) == [("Stock | of 2024\nPlace | Pieces\n", "a | 1\nb | 2")]
        assert parts_of(read(docx(marked(rows, 4)))) == []
        names = [[f"Name {n}", f"name {n}"] for n in range(4)]
        deep = marked(table(*names, *([f"row {n}", str(n)] for n in range(6))), 4)
        assert [header.count("Name") for header, _ in parts_of(read(docx(deep)))] == [4]

    @pytest.mark.parametrize("look", ['w:firstRow="1"', 'w:val="04A0"', 'w:firstRow="true" w:val="0000"'])
    def test_the_first_row_of_a_table_that_is_formatted_so_is_its_header(self, look: str) -> None:
        rows = table(["Place", "Pieces"], ["a", "1"], ["b", "2"]).replace(
            "<w:tblPr/>", f"<w:tblPr><w:tblLook {look}/></w:tblPr>"
        )
        assert parts_of(read(docx(rows))) == [("Place | Pieces\n", "a | 1\nb | 2")]

    def test_a_bold_first_row_is_a_header(self) -> None:
        bold = [
            p("").replace("<w:r>", "<w:r><w:rPr><w:b/></w:rPr>").replace("></w:t>", f">{t}</w:t>")
            for t in ("Place", "Pieces")
        ]
        assert parts_of(read(docx(table(bold, ["a", "1"], ["b", "2"])))) == [("Place | Pieces\n", "a | 1\nb | 2")]

    @pytest.mark.parametrize(
        "first",
        [["Place", "12"], ["Place", "Place"], ["Place", ""], ["", ""], ["Place", "x" * 80], ["2024 | 2025", "3"]],
    )
    def test_a_first_row_that_reads_like_any_other_is_none(self, first: list[str]) -> None:
        rows = table(first, ["a", "1"], ["b", "2"]).replace(
            "<w:tblPr/>", '<w:tblPr><w:tblLook w:firstRow="1"/></w:tblPr>'
        )
        assert parts_of(read(docx(rows))) == []

    def test_a_table_without_a_sign_of_a_header_has_none(self) -> None:
        rows = table(["Place", "Pieces"], ["a", "1"], ["b", "2"])
        plain = rows.replace("<w:tblPr/>", '<w:tblPr><w:tblLook w:firstRow="0" w:val="0600"/></w:tblPr>')
        assert parts_of(read(docx(rows))) == parts_of(read(docx(plain))) == []
        assert parts_of(read(docx(rows.replace("<w:tblPr/>", '<w:tblPr><w:tblLook w:val="zz"/></w:tblPr>')))) == []

    def test_names_above_a_column_of_figures_are_a_header_that_nobody_marked(self) -> None:
        names, body = ["Place", "Pieces", "Keeper"], [["a", "1", "x"], ["b", "22 kg", "y"], ["c", "3.5", "z"]]
        assert parts_of(read(docx(table(names, *body)))) == [
            ("Place | Pieces | Keeper\n", "a | 1 | x\nb | 22 kg | y\nc | 3.5 | z")
        ]
        wide = [cell("d", '<w:gridSpan w:val="2"/>'), "x"]
        for other in (["d", "none", "x"], ["d", "", "x"], wide):
            assert parts_of(read(docx(table(names, *body, other)))) == []
        assert parts_of(read(docx(table(["4", "5", "6"], *body)))) == []
        form = table(["Name", "Mara"], ["Age", "41"], ["Berth", "7"], ["Fee", "900"])
        assert parts_of(read(docx(form))) == []

    def test_two_tables_have_a_header_each_and_a_table_in_a_cell_has_none(self) -> None:
        inner = marked(table(["x", "y"], ["z", "w"]), 1)
        outer = marked(table(["A", "B"], ["a", p("b") + inner + p("")]), 1).replace("<w:trPr>", "<w:trPr>", 1)
        document = read(docx(outer + p("Between.") + marked(table(["C", "D"], ["c", "d"]), 1)))
        assert parts_of(document) == [("A | B\n", "a | b\n  x | y\n  z | w\n\n"), ("C | D\n", "c | d")]

    def test_long_tables_carry_their_header_into_each_chunk(self) -> None:
        rows = [["Place", "Pieces"], *([f"Store {n}", f"{n * 7} crates"] for n in range(60))]
        document = read(docx(p("Before. " * 20) + marked(table(*rows), 1) + p("After.")))
        chunks = chunk(document, Words(), limit=40, overlap=0)
        assert len(chunks) > 6
        for piece in chunks:
            assert "Place | Pieces" in piece.prefix + piece.text or "Store" not in piece.text
            assert piece.text == document.text[piece.start : piece.end]
            assert len(piece.tokens) <= 40


class Words:
    """A token a word."""

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]


def marked(rows: str, count: int) -> str:
    """The table with its first rows marked as header."""
    return rows.replace("<w:tr>", "<w:tr><w:trPr><w:tblHeader/></w:trPr>", count)


def parts_of(document: Extracted) -> list[tuple[str, str]]:
    """Header and body of each table with a header."""
    return [(document.text[t.start : t.body], document.text[t.body : t.end]) for t in document.tables]


class TestAround:
    def test_headers_and_footers_once(self) -> None:
        def section(content: str) -> str:
            return f"<w:sectPr>{content}</w:sectPr>"

        def reference(margin: str, kind: str, name: str) -> str:
            return f'<w:{margin}Reference w:type="{kind}" r:id="{name}"/>'

        first = section(reference("header", "default", "header1") + reference("footer", "default", "footer1"))
        last = section(
            reference("header", "default", "header2")
            + reference("header", "first", "header3")
            + reference("header", "even", "header4")
            + reference("footer", "default", "footer2")
        )
        parts = {
            "styles": STYLES,
            "header1": root("hdr", styled("Company", "berschrift1")),
            "header2": root("hdr", p("Company")),
            "header3": root("hdr", p("First page only")),
            "header4": root("hdr", p("Even pages only")),
            "footer1": root("ftr", p("Confidential")),
            "footer2": root("ftr", p("17")),
        }
        document = read(docx(p("One.") + f"<w:p><w:pPr>{first}</w:pPr></w:p>" + p("Two.") + last, parts))
        assert document.text == "Company\n\nOne.\n\nTwo.\n\nConfidential"
        assert list(document.headings) == []
        shown = last.replace("<w:sectPr>", "<w:sectPr><w:titlePg/>")
        settings = {"settings": root("settings", "<w:evenAndOddHeaders/>")}
        assert read(docx(p("Body.") + shown, {**parts, **settings})).text == (
            "Company\n\nFirst page only\n\nEven pages only\n\nBody."
        )

    def test_footnotes_follow_their_paragraph_and_endnotes_the_body(self) -> None:
        separator = '<w:footnote w:type="separator" w:id="0"><w:p/></w:footnote>'
        parts = {
            "footnotes": root(
                "footnotes",
                f'{separator}<w:footnote w:id="1">{p("First.") + p("More.")}</w:footnote>'
                f'<w:footnote w:id="2">{p("In a cell.")}</w:footnote><w:footnote w:id="3">{p("Unused.")}</w:footnote>',
            ),
            "endnotes": root("endnotes", f'<w:endnote w:id="1">{p("At the end.")}</w:endnote>'),
        }

        def reference(kind: str, number: int) -> str:
            return f'<w:r><w:{kind}Reference w:id="{number}"/></w:r>'

        body = inline(run("Text") + reference("footnote", 1) + run(", more") + reference("endnote", 1))
        body += table([inline(run("cell") + reference("footnote", 2)), "b"]) + p("Last.")
        assert read(docx(body, parts)).text == (
            "Text[1], more[i]\n\n[1] First.\n\nMore.\n\ncell[2] | b\n\n[2] In a cell.\n\nLast.\n\n[i] At the end."
        )

    def test_text_boxes_once(self) -> None:
        box = f"<w:txbxContent>{p('In the box.')}</w:txbxContent>"
        choice = f'<mc:Choice Requires="wps"><w:drawing><wps:txbx>{box}</wps:txbx></w:drawing></mc:Choice>'
        fallback = f"<mc:Fallback><w:pict><v:shape><v:textbox>{box}</v:textbox></v:shape></w:pict></mc:Fallback>"
        both = f"<w:r><mc:AlternateContent>{choice}{fallback}</mc:AlternateContent></w:r>"
        assert text_of(inline(run("Anchor.") + both) + p("After.")) == "Anchor.\n\nIn the box.\n\nAfter."
        empty = '<mc:Choice Requires="new"><w:drawing/></mc:Choice>'
        older = f"<w:r><mc:AlternateContent>{empty}{fallback}</mc:AlternateContent></w:r>"
        assert text_of(inline(run("Anchor.") + older)) == "Anchor.\n\nIn the box."
        assert text_of(inline(f"<w:r><w:pict><v:textbox>{box}</v:textbox></w:pict></w:r>")) == "In the box."


class TestPages:
    def pages(self, body: str) -> list[str]:
        document = read(docx(body))
        position = 0
        for number, page in enumerate(document.pages, 1):
            assert (page.number, page.start) == (number, position)
            position = page.end
        assert position == (len(document.text) if document.pages else 0)
        return [document.text[page.start : page.end] for page in document.pages]

    def test_none_where_word_never_laid_the_document_out(self) -> None:
        assert self.pages(p("One.") + inline(HARD + run("Two."))) == []

    def test_a_page_may_begin_inside_a_paragraph(self) -> None:
        assert self.pages(inline(run("one ") + BREAK + run("two")) + p("three")) == ["one ", "two\n\nthree"]
        assert self.pages(inline(run("전기") + BREAK + run("로"))) == ["전기", "로"]

    def test_word_marks_the_page_after_a_hard_break_too(self) -> None:
        assert self.pages(p("One.") + inline(HARD) + inline(BREAK + run("Two."))) == ["One.\n\n", "Two."]
        assert self.pages(p("One.") + inline(run("Two.") + HARD + BREAK + run("Three."))) == [
            "One.\n\nTwo.\n\n",
            "Three.",
        ]
        before = f"<w:p><w:pPr><w:pageBreakBefore/></w:pPr>{BREAK}{run('Two.')}</w:p>"
        assert self.pages(p("One.") + before) == ["One.\n\n", "Two."]

    def test_an_empty_page_keeps_its_number(self) -> None:
        assert self.pages(p("One.") + inline(HARD) + inline(BREAK + HARD) + inline(BREAK + run("Three."))) == [
            "One.\n\n",
            "",
            "Three.",
        ]

    def test_a_row_that_is_parted_counts_one_page(self) -> None:
        rows = table([inline(run("a ") + BREAK + run("b")), inline(run("c ") + BREAK + run("d"))], ["e", "f"])
        assert self.pages(p("One.") + rows) == ["One.\n\n", "a b | c d\ne | f"]

    def test_headings_stay_with_their_lines(self) -> None:
        body = p("One.") + inline('<w:pPr><w:pStyle w:val="berschrift1"/></w:pPr>' + BREAK + run("Two")) + p("Text.")
        document = read(docx(body, {"styles": STYLES}))
        assert document.headings[0].offset == document.pages[1].start == document.text.index("Two")


class TestPackage:
    CORE = (
        '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><dc:title>Given title</dc:title>'
        "<dc:creator>Ann</dc:creator><cp:keywords>a, b</cp:keywords>"
        '<dcterms:created xsi:type="dcterms:W3CDTF">2024-05-06T07:08:09Z</dcterms:created></cp:coreProperties>'
    )

    def test_title_and_metadata(self) -> None:
        package = "http://schemas.openxmlformats.org/package/2006"
        relations = (
            f'<Relationships xmlns="{package}/relationships">'
            f'<Relationship Id="r1" Type="{R}/officeDocument" Target="word/document.xml"/><Relationship Id="r2" '
            f'Type="{package}/relationships/metadata/core-properties" Target="docProps/core.xml"/></Relationships>'
        )
        data = docx(styled("Heading", "berschrift1"), {"styles": STYLES})
        types = (
            f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
            '"application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" '
            'ContentType="application/xml"/><Override PartName="/word/document.xml" ContentType="application/'
            'vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/><Override PartName='
            '"/docProps/core.xml" ContentType="application/vnd.openxmlformats-package.core-properties+xml"/></Types>'
        )
        changes = {"_rels/.rels": relations, "docProps/core.xml": self.CORE, "[Content_Types].xml": types}
        document = read(rewritten(data, {name: content.encode() for name, content in changes.items()}))
        assert document.title == "Given title"
        assert dict(document.metadata) == {"author": "Ann", "keywords": "a, b", "created": "2024-05-06T07:08:09+00:00"}
        bare = read(data)
        assert (bare.title, dict(bare.metadata)) == ("Heading", {})

    def test_strict_open_xml_is_read(self) -> None:
        data = docx(styled("Heading", "berschrift1") + p("Text."), {"styles": STYLES})
        names = ("word/document.xml", "word/styles.xml", "_rels/.rels", "word/_rels/document.xml.rels")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            changes = {
                name: archive.read(name)
                .replace(W.encode(), b"http://purl.oclc.org/ooxml/wordprocessingml/main")
                .replace(R.encode(), b"http://purl.oclc.org/ooxml/officeDocument/relationships")
                for name in names
            }
        document = read(rewritten(data, changes))
        assert document.text == "Heading\n\nText."
        assert len(document.headings) == 1

    def test_a_relationship_that_leads_nowhere_does_no_harm(self) -> None:
        relations = (
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="a" Type="{R}/image" Target="NULL"/>'
            f'<Relationship Id="b" Type="{R}/hyperlink" Target="http://example.org" TargetMode="External"/>'
            f'<Relationship Id="styles" Type="{R}/styles" Target="/word/styles.xml"/></Relationships>'
        )
        data = docx(styled("Heading", "berschrift1"), {"styles": STYLES})
        document = read(rewritten(data, {"word/_rels/document.xml.rels": relations.encode()}))
        assert [heading.title for heading in document.headings] == ["Heading"]

    def test_documents_with_macros_are_read(self) -> None:
        assert read(docx(p("Hello"), main="application/vnd.ms-word.document.macroEnabled.main+xml")).text == "Hello"

    def test_entities_are_not_resolved_and_their_document_is_refused(self) -> None:
        secret = (
            '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd"><!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]>'
            + root("document", f"<w:body>{p('before')}{p('&x;&b;')}{p('after')}</w:body>").split("?>", 1)[1]
        )
        with pytest.raises(Broken, match=r"its part word/document\.xml declares entities"):
            read(rewritten(docx(p("x")), {"word/document.xml": secret.encode()}))

    def test_a_bomb_is_refused_before_it_is_unpacked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(docx_package, "LARGEST_PACKAGE", 3 << 20)
        monkeypatch.setattr(docx_package, "LARGEST_XML_PART", 2 << 20)
        with pytest.raises(Broken, match="refused: it would unpack to 4 MiB, more than 3 MiB"):
            read(docx(p("Hello"), others={"word/media/image1.png": bytes(4 << 20)}))
        with pytest.raises(Broken, match=r"refused: its part word/other\.xml would unpack to 2 MiB"):
            read(docx(p("Hello"), others={"word/other.xml": bytes((2 << 20) + 1)}))
        assert read(docx(p("Hello"), others={"word/media/image1.png": bytes(1 << 20)})).text == "Hello"

    def test_the_limits_are_those_of_documents(self) -> None:
        assert docx_package.LARGEST_XML_PART < docx_package.LARGEST_PACKAGE == 512 << 20

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"word/document.xml": b"<w:document"}, "the XML inside this DOCX cannot be read"),
            ({"_rels/.rels": NO_RELATIONS}, "parts of this DOCX are missing"),
        ],
    )
    def test_damage_is_said(self, changes: dict[str, bytes], reason: str) -> None:
        with pytest.raises(Broken) as caught:
            read(rewritten(docx(p("Hello")), changes))
        assert caught.value.reason == f"damaged: {reason}"
        assert caught.value.__cause__ is not None

    def test_a_document_without_text(self) -> None:
        with pytest.raises(NoText, match=r"^no text in the document$"):
            read(docx(p("") + p("...")))
        relations = (
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="a" Type="{R}/image" Target="media/a.png"/></Relationships>'
        )
        scan = docx(p(""), others={"word/media/a.png": b"\x89PNG"})
        with pytest.raises(NoText) as caught:
            read(rewritten(scan, {"word/_rels/document.xml.rels": relations.encode()}))
        assert caught.value.reason == "no text in the document (only a picture): it seems to be scanned and needs OCR"
