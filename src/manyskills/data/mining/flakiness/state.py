"""Shared state: the test relies on what other tests, or its own earlier run, left behind."""

from __future__ import annotations

from manyskills.data.mining.edits import Edit
from manyskills.data.mining.flakiness.subject import Subject


def inject(subject: Subject, flaky: bool) -> list[Edit]:
    """Use a module's container, the environment or a fixed file: as found, or cleared first."""
    return subject.rng.choice([_container, _container, _environment, _file])(subject, flaky)


def _container(subject: Subject, flaky: bool) -> list[Edit]:
    word = subject.words(1)[0]
    shared = subject.pick("_", "") + subject.pick("cache", "registry", "seen", "calls", "pool", "store", word).upper()
    key, count = repr(word), "1"
    put, clear = subject.pick(
        f"{shared}.append({key})|{shared}.clear()",
        f"{shared}.add({key})|{shared}.clear()",
        f"{shared}[{key}] = {subject.rng.randint(1, 99)}|{shared}.clear()",
    ).split("|")
    check = subject.check("assertEqual", f"len({shared})", count)
    if flaky:  # clearing afterwards does not help against what came before
        return subject.around([put], [check] if subject.rng.random() < 0.4 else [check, clear])
    if subject.rng.random() < 0.6:
        return subject.around([clear, put], [check])
    present = subject.check("assertGreaterEqual", f"len({shared})", count)
    return subject.around([put], [present] if subject.rng.random() < 0.5 else [present, clear])


def _environment(subject: Subject, flaky: bool) -> list[Edit]:
    key = "_".join(subject.words(2)).upper()
    value = repr(subject.pick("1", "0", "on", "yes", "test"))
    put, drop = f"os.environ['{key}'] = {value}", f"os.environ.pop('{key}', None)"
    absent = subject.check("assertNotIn", f"'{key}'", "os.environ")
    present = subject.check("assertEqual", f"os.environ['{key}']", value)
    if flaky:
        return subject.around(
            [absent, put], subject.rng.choice([[present], [present, drop.replace(", None", "")], [present]])
        )
    if subject.rng.random() < 0.5:
        return subject.around([drop, absent, put], [present, drop])
    patched = f"with mock.patch.dict(os.environ, {{'{key}': {value}}}):"
    return subject.inserted([patched, f"    {present}"])


def _file(subject: Subject, flaky: bool) -> list[Edit]:
    path, handle, word = subject.name("path", "file", "target"), subject.name("f", "fp", "out"), subject.words(1)[0]
    fixed = f"{path} = {subject.pick(f'os.path.join(tempfile.gettempdir(), {word!r})', repr(f'/tmp/{word}.txt'))}"
    own = f"{path} = os.path.join(tempfile.mkdtemp(), {word!r})"
    write = [f"with open({path}, {{mode}}) as {handle}:", f"    {handle}.write({word!r})"]
    check = subject.check("assertEqual", f"os.path.getsize({path})", str(len(word)))
    mode = subject.pick("'a'", "'a+'")
    if not flaky:
        fixed, mode = (own, mode) if subject.rng.random() < 0.6 else (own, "'w'")
    return subject.around([fixed, *(line.format(mode=mode) for line in write)], [check])
