"""Sentences of Python's documentation."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from isoflop.data import pocket, text_corpus
from isoflop.data.text_corpus import sentences
from isoflop.errors import DataError


def test_sentences_are_many_plain_and_distinct(split: tuple[list[str], list[str]]) -> None:
    heldout, train = split
    corpus = heldout + train
    assert len(corpus) > 5000
    assert len(set(corpus)) == len(corpus)
    assert all(re.fullmatch(r"[A-Z][A-Za-z',;: -]*[.!?]", sentence) for sentence in corpus)
    lengths = [len(sentence.split()) for sentence in corpus]
    assert (min(lengths), max(lengths)) == (4, 30)


def test_the_split_is_by_sentence_and_about_the_share(split: tuple[list[str], list[str]]) -> None:
    heldout, train = split
    assert not set(heldout) & set(train)
    assert len(heldout) / (len(heldout) + len(train)) == pytest.approx(0.03, abs=0.008)


@pytest.fixture
def small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the standard library by files of the test, without the language reference."""
    monkeypatch.setattr(text_corpus.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(text_corpus, "_topics", lambda: iter(()))
    return tmp_path


CASES = [
    ("This one is plain enough.", ["This one is plain enough."]),
    (
        "The first goes here. The second goes there!",
        ["The first goes here.", "The second goes there!"],
    ),
    ("It is broken\n    over two lines.", ["It is broken over two lines."]),
    ("The `name` of a *thing* is kept.", ["The name of a thing is kept."]),
    ("Said twice is once. Said twice is once.", ["Said twice is once."]),
    ("Too short this.", []),
    ("It has 4 of these digits.", []),
    ("It names os.path in passing.", []),
    ("it begins with no capital.", []),
    ("It has no end at all", []),
    ("A first example >>> is code here.", []),
    ("Not this caf\u00e9 over there.", []),
    ("Word " * 29 + "thirty.", ["Word " * 29 + "thirty."]),
    ("Word " * 30 + "more.", []),
]


@pytest.mark.parametrize(("docstring", "expected"), CASES)
def test_sentences_of_a_docstring(docstring: str, expected: list[str], small_library: Path) -> None:
    (small_library / "module.py").write_text(f'"""{docstring}"""\n', encoding="utf-8")
    assert sentences() == expected


def test_docstrings_of_classes_functions_and_methods_are_read(small_library: Path) -> None:
    (small_library / "a.py").write_text(
        '"""The module is the first."""\n'
        "try:\n    def f():\n        '''The function comes in third.'''\n"
        "except ValueError:\n    pass\n"
        "class C:\n    '''The class comes in second.'''\n"
        "    async def m(self):\n        '''The method comes in fourth.'''\n"
    )
    order = ["The module is the first.", "The class comes in second."]
    assert sentences() == [*order, "The function comes in third.", "The method comes in fourth."]


BLOCKS = """
try:
    F
except ValueError:
    F
else:
    if f:
        F
finally:
    F
while f():
    F
else:
    for _ in ():
        F
match f:
    case 1:
        F
    case _:
        with f:
            F
class C:
    F
"""


def test_functions_in_every_block_are_read_in_the_order_of_the_syntax_tree(
    small_library: Path,
) -> None:
    ordinals = iter("abcdefghi")
    source = re.sub("F", lambda _: f"def f(): 'This is the function {next(ordinals)}.'", BLOCKS)
    (small_library / "module.py").write_text(source)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert sentences() == [ast.get_docstring(function) for function in functions]
    assert len(functions) == 9


def test_other_files_and_folders_are_left_out(small_library: Path) -> None:
    good = '"""This one can be read."""\n'
    (small_library / "b.py").write_text(good)
    (small_library / "bad.py").write_text('"""This one is broken here."""\ndef (')
    (small_library / "null.py").write_bytes(b'"""This one has nothing."""\n\0')
    (small_library / "latin.py").write_bytes('"""This one is caf\u00e9."""\n'.encode("latin-1"))
    warning = '"""This one warns, but reads."""\nx = "\\d"\n'  # a SyntaxWarning
    (small_library / "escape.py").write_text(warning)
    (small_library / "nowhere.py").symlink_to("absent.py")
    (small_library / "round.py").symlink_to("round.py")
    (small_library / "folder.py").mkdir()
    for folder in ("site-packages", "test"):
        (small_library / folder).mkdir()
        (small_library / folder / "other.py").write_text('"""This one is not ours."""\n')
    assert sentences() == ["This one can be read.", "This one warns, but reads."]


def test_a_library_without_documentation_is_refused_in_one_line(small_library: Path) -> None:
    (small_library / "b.py").write_text('"""This one can be read."""\n')
    with pytest.raises(
        DataError, match="at least 100 of each are needed: use a complete Python"
    ) as problem:
        pocket.split_sentences(0.03, 0)
    assert "\n" not in str(problem.value)
