# ruff: noqa: E501 (a program in one line shows what it is)
"""Each rewrite is run against its original: same results, same exceptions, same effects on arguments."""

import ast
import copy
import random

import pytest

from manyskills.data.mining.functions import Function, parse_function
from manyskills.data.mining.rewriting import RULES, rewrite
from manyskills.data.mining.rewriting.context import Context
from manyskills.data.mining.rewriting.renaming import rename

NUMBERS = [-7, -2, -1, 0, 1, 2, 3, 5, 8, 100]
LISTS = [[], [0], [3, 1, 2], [5, 5, -1, 0, 7], [1, [2], "x"], "word", {"b": 1, "a": 2}, None, 4]

# (source, argument tuples); the functions are small and pure, so that running them says all.
NUMBER_PAIRS = [(a, b) for a in NUMBERS for b in NUMBERS]
BATTERY = {
    "counted": ("def f(n):\n    t = 0\n    for i in range(5):\n        t += i * n\n    return t, i", [(n,) for n in NUMBERS]),
    "counted with continue": (
        "def f(x, k):\n    t = []\n    for i in range(0, len(x), 2):\n        if i == k:\n            continue\n"
        "        if i > 6:\n            break\n        i += 1\n        t.append(i)\n    return t",
        [(list(range(a % 12)), b) for a, b in NUMBER_PAIRS],
    ),
    "counted down": (
        "def f(x):\n    t = ''\n    for i in range(9, -1, -3):\n        t += str(i) + str(x)\n    return t",
        [(n,) for n in NUMBERS],
    ),
    "list grows while counted": (
        "def f(x):\n    for i in range(len(x)):\n        x.append(i)\n    return x",
        [(a,) for a in LISTS],
    ),
    "iterated": (
        "def f(x):\n    out = []\n    for a in x:\n        if not a:\n            continue\n        out.append(a)\n    return out",
        [(a,) for a in LISTS],
    ),
    "pairs": (
        "def f(x):\n    out = {}\n    for i, a in enumerate(x):\n        out[i] = a\n        x = None\n    return out",
        [(a,) for a in LISTS],
    ),
    "stop iteration from the body": (
        "def f(x):\n    n = 0\n    for a in x:\n        n += 1\n        if n > 2:\n            raise StopIteration(n)\n    return n",
        [(a,) for a in LISTS],
    ),
    "else after for": (
        "def f(x):\n    for a in x:\n        if a == 1:\n            break\n    else:\n        return 'none'\n    return a",
        [(a,) for a in LISTS],
    ),
    "nested loops": (
        "def f(n, m):\n    out = []\n    for i in range(3):\n        for j in range(4):\n            if j == n:\n"
        "                break\n            if i == m:\n                continue\n            out.append((i, j))\n    return out",
        NUMBER_PAIRS,
    ),
    "while": ("def f(n, m):\n    while n > m and n > 0:\n        n -= 3\n        if n == 5:\n            continue\n    return n", NUMBER_PAIRS),
    "comprehension": (
        "def f(x, a):\n    y = [a for a in x if a != 3 if a]\n    z = {a + 1 for a in y}\n    return [a, y, sorted(z)]",
        [(x, a) for x in LISTS for a in (1, None)],
    ),
    "comprehension over itself": ("def f(x):\n    x = [x for x in x]\n    return [(a, b) for a, b in enumerate(x)]", [(a,) for a in LISTS]),
    "collecting": (
        "def f(x):\n    out = []\n    for a in x:\n        if a:\n            out.append(a * 2)\n    return out",
        [(a,) for a in LISTS],
    ),
    "collecting, target read later": (
        "def f(x):\n    out = []\n    for a in x:\n        out.append(a)\n    return out, a",
        [(a,) for a in LISTS],
    ),
    "collecting half, caught": (
        "def f(x):\n    out = []\n    try:\n        out = []\n        for a in x:\n            out.append(1 // a)\n"
        "    except ZeroDivisionError:\n        pass\n    return out",
        [(a,) for a in LISTS],
    ),
    "collecting into what it reads": (
        "def f(x):\n    out = []\n    for a in x:\n        out.append(len(out))\n    return out",
        [(a,) for a in LISTS],
    ),
    "branches": (
        "def f(a, b):\n    if a < b:\n        return 1\n    elif a == b:\n        return 2\n    else:\n        return 3",
        [*NUMBER_PAIRS, (float("nan"), 1), ({1}, {2}), ("a", 1)],
    ),
    "guards": (
        "def f(a, b):\n    if not a:\n        return None\n    if b > 2 and a != 1:\n        if a in (3, 5):\n            b += 1\n"
        "    x = a if b is not None else -a\n    if not (a or b) or not a and not b:\n        raise ValueError(a)\n    return x + b",
        NUMBER_PAIRS,
    ),
    "chained": ("def f(a, b):\n    return 0 < a <= b, -1 < b < 5, 3 > a, a == 2, not a is b", [*NUMBER_PAIRS, ("a", "b")]),
    "nan is not turned": (
        "def f(a, b):\n    if not a < b:\n        return 'no'\n    return 'yes'",
        [(float("nan"), 1.0), (1.0, float("nan")), ({1}, {2}), (1, 2)],
    ),
    "text": (
        "def f(a, b):\n    return f'{a}: {b!r} {{}}', '{} {!r:>9}%'.format(a, b), '%s%%-%r' % (a, b), f'{a:>4}|', f'{a=}'",
        [*NUMBER_PAIRS, ("x", "y"), (None, [1])],
    ),
    "percent of a tuple": ("def f(a):\n    return 'x %s' % a", [(1,), ((1,),), ((1, 2),)]),
    "order": (
        "def f(a, b):\n    x, y = a, b\n    p = 1\n    q = a\n    r = [p, q]\n    a, b = b, a\n    s = []\n    t = {}\n    return x, y, a, b, p, q, r, s, t",
        NUMBER_PAIRS,
    ),
    "aliased list": ("def f(a):\n    x = a\n    x += [1]\n    x = x + [2]\n    return a, x", [([],), ([3],), (4,)]),
    "aliased literal": ("def f():\n    x = []\n    y = x\n    x += [1]\n    return x, y", [()]),
    "numbers": ("def f(n):\n    x = 0\n    s = ''\n    x += 2\n    x = x - 5\n    s += 'a'\n    s += f'{n}'\n    return x * n, s", [(n,) for n in NUMBERS]),
    "closure": (
        "def f(n):\n    total = 0\n    fs = []\n    def add(k):\n        nonlocal total\n        total += k\n        return total\n"
        "    for i in range(3):\n        fs.append(lambda: i + n)\n        add(i)\n    return total, [g() for g in fs]",
        [(n,) for n in NUMBERS],
    ),
    "lambda over comprehension": ("def f(x):\n    fs = [lambda: a for a in x]\n    return [g() for g in fs]", [(a,) for a in LISTS]),
    "shadowing lambda": ("def f(x, y):\n    g = lambda x: x + y\n    return g(x) + x", NUMBER_PAIRS),
    "walrus": ("def f(x):\n    if (n := len(x)) > 1:\n        return [m := n, m]\n    return n", [(a,) for a in LISTS]),
    "walrus in comprehension": ("def f(x):\n    y = [last := a for a in x]\n    return y, last", [(a,) for a in LISTS]),
    "del": ("def f(a, b):\n    c = a\n    del a\n    d = 1\n    try:\n        e = a\n    except NameError:\n        e = b\n    return c, d, e", NUMBER_PAIRS),
    "recursion by keyword": ("def f(n, acc=1):\n    if n <= 1:\n        return acc\n    return f(n - 1, acc=acc * n)", [(n,) for n in (0, 1, 5)]),
    "keyword call of another": ("def f(a, b):\n    return dict(a=b, b=a), sorted([a, b], key=lambda key: -key)", NUMBER_PAIRS),
    "star arguments": ("def f(*args, **kwargs):\n    x = [a for a in args]\n    return x, kwargs, {'args': args}", [(1, 2), ()]),
    "default from outside": ("def f(a, b=len):\n    len = 3\n    return b([a]) + len", [(1,), (2,)]),
    "exception name": ("def f(a, b):\n    try:\n        return a // b\n    except ZeroDivisionError as e:\n        return str(e)", NUMBER_PAIRS),
    "match": (
        "def f(x):\n    match x:\n        case [a, *rest]:\n            return a, rest\n        case {'a': v, **more}:\n            return v, more\n"
        "        case int() as n if n > 2:\n            return n\n    return None",
        [(a,) for a in LISTS],
    ),
    "generator": (
        "def f(x):\n    for a in x:\n        if a == 3:\n            continue\n        got = yield a\n        if got:\n            return",
        [(a,) for a in LISTS],
    ),
    "finally sees the result": (
        "def f(log, n):\n    try:\n        x = 10 // n\n        return x\n    except ZeroDivisionError:\n        x = None\n"
        "    finally:\n        log.append(n)\n    return x",
        [([], n) for n in NUMBERS],
    ),
    "annotated": ("def f(a: int, b: 'list[a]' = ()) -> int:\n    c: int = a\n    return c + len(b)", [(1,), (2, [1])]),
    "shadowed range": ("def f(range):\n    out = []\n    for i in range(3):\n        out.append(i)\n    return out", [(lambda n: "ab",)]),
}  # fmt: skip


def outcome(code, arguments):
    """What a call gives: value or exception, and what became of the arguments."""
    namespace = {}
    exec(compile(code, "<test>", "exec"), namespace)
    function = next(value for name, value in namespace.items() if callable(value) and name != "__builtins__")
    arguments = copy.deepcopy(arguments)
    try:
        value = function(*arguments)
        value = list(value) if hasattr(value, "send") else value
    except Exception as error:  # noqa: BLE001 (any exception must be the same)
        return type(error).__name__, repr(arguments)
    return repr(value), repr(arguments)


def function_of(code, **options):
    return Function("p", "p.m", parse_function(code).name, 1, code, **options)


@pytest.mark.parametrize("name", BATTERY)
def test_rewrites_keep_behaviour(name):
    code, inputs = BATTERY[name]
    expected = [outcome(code, arguments) for arguments in inputs]
    for seed in range(25):
        made = rewrite(function_of(code), random.Random(seed))
        if made is None:
            continue
        assert [outcome(made.code, arguments) for arguments in inputs] == expected, made.code


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_alone_keeps_behaviour(rule):
    changed = 0
    for code, inputs in BATTERY.values():
        tree = parse_function(code)
        context = Context(tree, random.Random(1), rate=1.0)
        if context.scope.dynamic:
            continue
        RULES[rule](context)
        changed += context.changes
        text = ast.unparse(tree)
        assert [outcome(text, a) for a in inputs[:40]] == [outcome(code, a) for a in inputs[:40]], text
    assert changed > 0, "the battery does not exercise the rule"


def apply(rule, code, **options):
    tree = parse_function(code)
    context = Context(tree, random.Random(0), rate=1.0, **options)
    RULES[rule](context)
    return ast.unparse(tree), context.changes


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("for to while", "def f(x):\n    for a in x:\n        pass\n    else:\n        return 1"),
        ("for to while", "async def f(x):\n    async for a in x:\n        pass"),
        ("for to while", "def f(x, next):\n    for a in x:\n        pass"),
        ("loop to comprehension", "def f(x):\n    out = []\n    for a in x:\n        out.append(a)\n    return a"),
        ("loop to comprehension", "def f(x, a):\n    out = []\n    for a in x:\n        out.append(a)"),
        ("loop to comprehension", "def f(x):\n    out = []\n    for a in x:\n        out.append((yield a))"),
        ("loop to comprehension", "def f(x):\n    out = []\n    for a in x:\n        out.append(super().g(a))"),
        ("loop to comprehension", "def f(x):\n    global out\n    out = []\n    for a in x:\n        out.append(a)"),
        ("comprehension to loop", "def f(x):\n    return [lambda: a for a in x]"),
        ("comprehension to loop", "async def f(x):\n    return [a async for a in x]"),
        ("comprehension to loop", "def f(x, y):\n    return [a for y.z in x]"),
        ("turned comparisons", "def f(a, b):\n    return a < b or a == b or 1.5 < a"),
        ("reordered assignments", "def f(a):\n    x = a\n    y = x\n    return y"),
        ("reordered assignments", "def f(a):\n    x = a()\n    y = 1\n    return y"),
        ("split tuples", "def f(a, b):\n    a, b = b, a\n    return a"),
        ("augmented assignment", "def f(a):\n    a += 1\n    return a"),
        ("augmented assignment", "def f(a):\n    x = 0\n    x += a\n    return x"),
        ("augmented assignment", "def f():\n    global x\n    x = 0\n    x += 1"),
        ("string formatting", "def f(a):\n    return '%s' % a, '%d' % (a,), '{0}{0}'.format(a), f'{a:{a}}', '{a}'.format(a=a)"),
        ("named result", "def f(a):\n    x = a\n    g = lambda: x\n    x = a\n    return x\n    "),
    ],
)  # fmt: skip
def test_rules_refuse_where_they_cannot_know(rule, code):
    assert apply(rule, code) == (ast.unparse(ast.parse(code)), 0)


def test_a_builtin_that_the_module_shadows_is_not_trusted():
    code = "def f(x):\n    for a in x:\n        pass"
    assert apply("for to while", code)[1] == 1
    assert apply("for to while", code, shadowed=frozenset({"iter"}))[1] == 0


@pytest.mark.parametrize("call", ["locals()", "eval('a')", "exec('a = 1')", "vars()", "sys._getframe().f_locals"])
def test_code_that_sees_names_as_data_is_left_alone(call):
    code = f"def f(a):\n    if a:\n        return 1\n    return {call}"
    assert rewrite(function_of(code), random.Random(0)) is None


def test_a_class_inside_is_left_alone():
    code = "def f(a):\n    class A:\n        a = a\n    if a:\n        return A\n    return None"
    assert rewrite(function_of(code), random.Random(0)) is None


def renamed(code, **options):
    tree = parse_function(code)
    rename(Context(tree, random.Random(3), rate=1.0), **options)
    return tree


def test_renaming_keeps_what_is_not_the_functions_own():
    code = (
        "def f(self, a, *args, __b, key=default):\n    global g\n    import os as o\n    g = a.a + o.x\n"
        "    for i in args:\n        print(f'{i}', 'a', key=i)\n    return [z for z in a] + [self, __b, key]"
    )
    text = ast.unparse(renamed(code))
    for kept in ("self", "__b", "default", "global g", "import os as o", ".a", "'a'", "key=", "z for z in"):
        assert kept in text
    for gone in ("def f(", " a,", "*args", " i in"):
        assert gone not in text


def test_recursion_is_renamed_in_functions_but_not_in_methods():
    code = "def f(a):\n    return f(a - 1)"
    function, method = renamed(code), renamed(code, is_method=True)
    assert function.name != "f" and f"return {function.name}(" in ast.unparse(function)
    assert method.name != "f" and "return f(" in ast.unparse(method)


def test_same_seed_same_rewrite():
    code = BATTERY["guards"][0]
    first, second = (rewrite(function_of(code), random.Random("s")) for _ in range(2))
    assert first == second
    assert first is not None and len(first.rules) >= 2
