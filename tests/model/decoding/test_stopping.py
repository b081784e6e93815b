"""Where functions end, on code as models write it."""

from __future__ import annotations

import pytest

from manyskills.model.decoding.stopping import function_end, may_end

PYTHON = [
    ("def f(x):\n    return x\n", "\nprint(f(1))\n"),
    ("def f(x):\n    return x\n", "\n\ndef g():\n    pass\n"),
    ("async def f(x):\n    await x\n", "\n@decorated\ndef g(): pass\n"),
    ("import os\n\n@cache\ndef f(x):\n\n    # a comment\n    return os\n", "# about what follows\nx = 1\n"),
    ("def f(x):\n# not indented\n    return 1\n", "y\n"),
    ('def f(x):\n    """Text.\n\nnot indented {\n"""\n    return "def g():"\n', "if x:\n    f(x)\n"),
    ("def f(a,\n  b=(1,\n2)):\n    x = [\n1]\n    return x\n", "f(1)\n"),
    ("def f(x): return {'a': '''\n'''}\n", "f(1)\n"),
    ("def f(x):\n\tif x:\n\t\treturn 1 \\\n+ 2\n\treturn '\\''\n", "z\n"),
    ("    def inner(x):\n        return 1\n    return inner\n", "\ndef g():\n    return 2\n"),
    ("    return x + 1\n", "\ndef g():\n    return 2\n"),
    ("class A:\n    def f(self):\n        return 1\n", "a = A()\n"),
    ("def f():\n    x = 'it''s' # don't (\n    return x\n", "g\n"),
    ("def f():\r\n    return 1\r\n", "\r\nprint(1)"),
]
BRACES = [
    ("java", "int f(int x) {\n  return x;\n}", "\n\nint g() { return 1; }"),
    ("java", "String f() { return \"}\" + '}' + '\\'' + \"\\\"}\"; // }\n /* } { */ }", " }"),
    ("java", 'String f() { return """\n } " \n"""; }', " rest"),
    ("java", "@A(b = {1}, c = \"x\")\nvoid f() { for (;;) { } }", "}"),
    ("java", "import a.b;\nimport c;\nint f() { if (x) { y(); } else { z(); } }", "\nint g;"),
    ("java", "abstract int f(int x);", "\nint g() { }"),
    ("csharp", "public int F() => x.Y(a, b);", "\npublic int G() { }"),
    ("csharp", 'string F() { return @"\\" + $@"a""}" + $"{x}"; }', "}"),
    ("csharp", "[Obsolete]\nvoid F() { var c = '{'; lock (a) { } }", "\n}"),
    ("csharp", "int F() => x switch { 1 => 2, _ => 3 };", "\nint G() { }"),
    ("csharp", "Func<int> F() => () => { return 1; };", " }"),
    ("csharp", "int F(int y = 1) => x = y;", " int G() => 2;"),
    ("csharp", "public int X { get; set; } = 3;\nint F() { return X; }", "\nint G() { }"),
    ("csharp", "int X => Get(1);\nFunc<int> f = () => { return 1; };\n[A(b = 1)] int y;\nint F() { }", "\nint G() { }"),
    ("csharp", "public static bool operator ==(A a, A b) { return a.Equals(b); }", "\nint G() { }"),
    ("csharp", "A(int x) : base(new[] { x }) { }", "\nint G() { }"),
    ("csharp", "T F<T>(T x) where T : class;", "\nint G() { }"),
    ("java", "private static final int[] A = {1,2};\nint f() { return A[0]; }", "\nint g() { }"),
    ("java", "int x = 3;\n@A(\"b\") int y;\nstatic { y = f(); }\nint f() { }", "\nint g() { }"),
    ("java", "F f = new F() { int h() { return 1; } };\nint f() { }", "\nint g() { }"),
    ("java", "@A\npublic class B extends C { int f() { } int g; }", "\nclass D { }"),
    ("java", "@A(b = {1, 2})\nint x = y(1);\nabstract int f();", "\nint g() { }"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "rest"), PYTHON)
def test_python(function, rest):
    check(function, rest, "python")


@pytest.mark.parametrize(("language", "function", "rest"), BRACES)
def test_braces(language, function, rest):
    check(function, rest, language)


def check(function, rest, language):
    """The end is found, and asking while the text grows gives the same, never an earlier or a later place."""
    text = function + rest
    end = function_end(text, language)
    assert end is not None
    assert text[:end].strip() == function.strip()
    found = [function_end(text[:length], language) for length in range(len(text) + 1)]
    first = next(length for length, place in enumerate(found) if place is not None)
    assert set(found[:first]) == {None}
    assert set(found[first:]) == {end}
    assert any(may_end(piece, language) for piece in (text[first - 1 : first], text[first - 2 : first - 1]))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", "python"),
        ("def f(x):\n    return (1,\n", "python"),
        ("def f(x):\n    return 1\n\n\n# comment\n", "python"),
        ("x = 1\ny = 2\n", "python"),
        ("", "java"),
        ("int f() { if (x) { y(); }", "java"),
        ("import a.b;\nint x;\nint[] y = {f(1), 2};", "java"),
        ("int F() => x switch { 1 => 2 }", "csharp"),
        ("public int X { get; set; }", "csharp"),
        ('int f() { return "', "csharp"),
        ("adds two numbers. It returns { x }.", "english"),
    ],
)
def test_not_yet(text, language):
    assert function_end(text, language) is None
