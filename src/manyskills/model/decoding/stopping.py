"""Where the first function of a text ends, for answers that go on behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_DEFINITION = re.compile(r"(async\s+def|def|class)\b")

BRACES = ("java", "csharp")
LANGUAGES = ("python", *BRACES)
"""Languages whose functions are known to end."""


def function_end(text: str, language: str) -> int | None:
    """Where the first function ends, as a position in the text; None if it has not ended yet.

    More text behind it does not change the answer, so that it can be asked while the text is being written.

    Python: before the first line that is not blank, no comment, and no deeper indented than the definition. A text that
    starts with an indented line is the body of a function that the prompt began. Java and C#: behind the brace that
    closes the body of the first method, constructor or type, or behind the semicolon of a method without a body in
    braces; imports, fields and properties before it belong to the text. A body alone is not recognised. Brackets in
    strings, characters and comments do not count.

    Args:
        text: Code, from the beginning of the answer.
        language: One of `LANGUAGES`; of others nothing is known, and the answer is None.
    """
    if language == "python":
        return _python_end(text)
    return _braces_end(text) if language in BRACES else None


def may_end(piece: str, language: str) -> bool:
    """Whether a function may turn out to have ended with this piece of text, so that it is worth asking."""
    return "\n" in piece if language == "python" else "}" in piece or ";" in piece


@dataclass(frozen=True, slots=True)
class _Line:
    """A logical line of Python: with what continues it in brackets or strings.

    Attributes:
        start: Position of its first character that is not white space.
        indent: Width of the white space before that.
        end: Position behind it, without the line break.
    """

    start: int
    indent: int
    end: int


def _python_end(text: str) -> int | None:
    defined: int | None = None
    last = 0
    for line in _logical_lines(text):
        if defined is not None and line.indent <= defined:
            return last
        if defined is None:
            if line.indent and last == 0:
                defined = line.indent - 1  # the body of what the prompt defined
            elif _DEFINITION.match(text, line.start):
                defined = line.indent
        last = line.end
    return None


def _logical_lines(text: str) -> list[_Line]:
    """Lines with code in them. The last one counts as soon as its first character is there."""
    lines: list[_Line] = []
    at = 0
    while at < len(text):
        start = at + len(_WHITE.match(text, at)[0])  # pyright: ignore[reportOptionalSubscript]
        if start == len(text):
            break
        if text[start] in "\r\n":
            at = start + 1
        elif text[start] == "#":
            at = _line_break(text, start) + 1
        else:
            end = _end_of_logical_line(text, start)
            lines.append(_Line(start, len(text[at:start].expandtabs(8)), end))
            at = end + 1
    return lines


_WHITE = re.compile(r"[ \t\f]*")
_QUOTES = re.compile(r'"""|\'\'\'|"|\'')


def _end_of_logical_line(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        mark = text[at]
        if mark in "\"'":
            at = _python_string_end(text, at)
            continue
        if mark == "#":
            at = _line_break(text, at)
            continue
        if mark == "\\":
            at += 2
            continue
        if mark == "\n" and depth <= 0:
            return at
        depth += (mark in "([{") - (mark in ")]}")
        at += 1
    return len(text)


def _python_string_end(text: str, at: int) -> int:
    """Behind a string; one quote that is not closed on its line ends there, being a mistake."""
    found = _QUOTES.match(text, at)
    assert found is not None
    quote, at = found[0], found.end()
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text.startswith(quote, at):
            return at + len(quote)
        elif text[at] == "\n" and len(quote) == 1:
            return at
        else:
            at += 1
    return len(text)


def _line_break(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


_MARK = re.compile(
    r"""//|/\*|@\$?"|\$@"|\"{3}|@[\w.]+\s*\(|\b(?:class|interface|enum|struct|record|namespace)\b|=>|[=!<>]=|["'{}()\[\];=]"""
)


@dataclass(slots=True)
class _Member:
    """What a member (method, field, property, type, import) has had outside of brackets and braces so far.

    Attributes:
        parameters: Brackets that are neither an annotation's nor part of a value.
        type: The word for a type or name space.
        arrow: `=>`, behind which the body is an expression.
        value: `=`, behind which a field's value stands.
    """

    parameters: bool = False
    type: bool = False
    arrow: bool = False
    value: bool = False

    def note(self, mark: str) -> None:
        if mark == "=>":
            self.arrow = self.arrow or not self.value
        elif mark == "=":
            self.value = self.value or not self.arrow
        elif mark == "(":
            self.parameters = self.parameters or not (self.arrow or self.value)
        elif mark.isalpha():
            self.type = True

    def over(self, mark: str) -> bool:
        """Whether it is over with this semicolon or closing brace; an expression goes on behind its braces."""
        return mark == ";" or not (self.arrow or self.value)

    def is_function(self, mark: str) -> bool:
        """Whether what is over with this mark is what answers end with."""
        return (self.parameters and not self.value) or (self.type and mark == "}")


def _braces_end(text: str) -> int | None:
    member, braces, brackets, at = _Member(), 0, 0, 0
    while (found := _MARK.search(text, at)) is not None:
        mark, at = found[0], found.end()
        if mark[0] in "/\"'" or mark[-1] == '"':
            at = _behind(text, mark, at)
        elif braces:
            braces += (mark == "{") - (mark == "}")
        elif mark[-1] in "([":
            if not brackets:
                member.note(mark)  # an annotation's or attribute's is another mark than "("
            brackets += 1
        elif mark in ")]":
            brackets = max(brackets - 1, 0)
        elif brackets:
            continue  # a list in an annotation, a value of a parameter
        elif mark == "}":
            return at  # of what began before this text
        elif mark == "{":
            braces = 1
        else:
            member.note(mark)
        if mark in ("}", ";") and not (braces or brackets) and member.over(mark):
            if member.is_function(mark):
                return at
            member = _Member()
    return None


def _behind(text: str, mark: str, at: int) -> int:
    """Behind a comment, string or character that `mark` began."""
    if mark == "//":
        return _line_break(text, at)
    closing = {"/*": "*/", '"""': '"""'}.get(mark)
    if closing:
        found = text.find(closing, at)
        return len(text) if found < 0 else found + len(closing)
    verbatim = "@" in mark  # C#: a backslash is itself, two quotes are one
    while at < len(text):
        if text[at] == "\\" and not verbatim:
            at += 2
        elif text[at] == mark[-1]:
            if not (verbatim and text.startswith('""', at)):
                return at + 1
            at += 2
        elif text[at] == "\n" and not verbatim:
            return at
        else:
            at += 1
    return len(text)
