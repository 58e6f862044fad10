"""The tables of the documents are what the records say, and renewing them twice changes nothing."""

from pathlib import Path

import pytest

from bench import figures
from bench.figures import DOCUMENTS, renew, sections

ROOT = Path(__file__).resolve().parents[2]
TEXT = """before
<!-- figures: a -->
old
<!-- /figures -->
between
<!-- figures: b -->
<!-- /figures -->
behind
"""


def test_what_is_between_the_marks_is_written_anew() -> None:
    once = renew(TEXT, {"a": lambda: "| new |\n", "b": lambda: "\nb"})
    assert once == TEXT.replace("old", "| new |").replace("b -->\n", "b -->\nb\n")
    assert renew(once, {"a": lambda: "| new |", "b": lambda: "b"}) == once


def test_a_section_that_nobody_writes_is_a_named_error() -> None:
    with pytest.raises(ValueError, match="figures: wanted sections of a, got b"):
        renew(TEXT, {"a": lambda: ""})


def test_a_mark_without_its_end_is_a_named_error() -> None:
    with pytest.raises(ValueError, match="has no `<!-- /figures -->`"):
        renew("<!-- figures: a -->\n", {"a": lambda: ""})


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_the_documents_say_what_the_records_say(document: Path) -> None:
    """If this fails, run `python -m bench.figures`."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "<!-- figures: " in text
    assert renew(text, sections(ROOT)) == text


def test_every_section_stands_in_a_document() -> None:
    texts = "".join((ROOT / document).read_text(encoding="utf-8") for document in DOCUMENTS)
    assert [name for name in sections(ROOT) if f"<!-- figures: {name} -->" not in texts] == []


def test_a_second_run_says_that_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    for document in DOCUMENTS:
        (tmp_path / document).write_text("<!-- figures: a -->\n<!-- /figures -->\n")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "sections", lambda root: {"a": lambda: "a table"})
    figures.main([])
    figures.main([])
    lines = [f"{document}: {what}" for what in ("renewed", "as it was") for document in DOCUMENTS]
    assert capsys.readouterr().out.splitlines() == lines
