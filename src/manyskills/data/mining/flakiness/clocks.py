"""Wall clock: the test asserts how long something took, or that the time of day stands still."""

from __future__ import annotations

from manyskills.data.mining.edits import Edit
from manyskills.data.mining.flakiness.subject import Subject


def inject(subject: Subject, flaky: bool) -> list[Edit]:
    """Measure some of the test's own statements; assert a tight bound, or one that always holds."""
    return subject.rng.choice([_duration, _duration, _time_of_day, _date])(subject, flaky)


def _duration(subject: Subject, flaky: bool) -> list[Edit]:
    start, elapsed = subject.name("start", "began", "t0", "before"), subject.name("elapsed", "took", "duration")
    clock = subject.pick("time.time", "time.perf_counter", "time.monotonic")
    bound = subject.pick("0.001", "0.01", "0.05", "0.1", "0.5", "1")
    measured = [f"{start} = {clock}()"], f"{elapsed} = {clock}() - {start}"
    if flaky:
        method = subject.pick("assertLess", "assertLessEqual", "assertLess")
        return subject.around(measured[0], [measured[1], subject.check(method, elapsed, bound)])
    if subject.rng.random() < 0.5:  # a clock that only goes forward, asserted to do so
        clock = subject.pick("time.perf_counter", "time.monotonic")
        measured = [f"{start} = {clock}()"], f"{elapsed} = {clock}() - {start}"
        return subject.around(measured[0], [measured[1], subject.check("assertGreaterEqual", elapsed, "0")])
    frozen = subject.name("clock", "fake", "ticks")
    first = f"{frozen} = mock.Mock(side_effect=[10.0, 10.0 + {bound} / 2])"
    check = subject.check("assertLess", elapsed, bound)
    return subject.around([first, f"{start} = {frozen}()"], [f"{elapsed} = {frozen}() - {start}", check])


def _time_of_day(subject: Subject, flaky: bool) -> list[Edit]:
    now = subject.name("now", "stamp", "moment", "before")
    part = subject.pick("second", "minute", "hour", "microsecond")
    fixed = f"datetime.datetime(20{subject.rng.randint(10, 29)}, {subject.rng.randint(1, 12)}, 7, 12, 30)"
    current = "datetime.datetime.now()"
    if flaky:
        value = subject.pick(current, f"{current}.replace(year=2020)")
        return subject.around(
            [f"{now} = {value}"], [subject.check("assertEqual", f"{current}.{part}", f"{now}.{part}")]
        )
    if subject.rng.random() < 0.5:
        later = f"{now}.replace({part}=0).{part}"
        return subject.around([f"{now} = {current}"], [subject.check("assertEqual", later, "0")])
    value = subject.pick(fixed, f"{fixed}.replace(year=2020)")
    same = f"{now}.replace(year=2021).{part}"
    return subject.around([f"{now} = {value}"], [subject.check("assertEqual", same, f"{now}.{part}")])


def _date(subject: Subject, flaky: bool) -> list[Edit]:
    day, year = subject.name("today", "day", "date"), subject.rng.randint(2015, 2030)
    today, fixed = "datetime.date.today()", f"datetime.date({year}, {subject.rng.randint(1, 12)}, 15)"
    later = f"{day} + datetime.timedelta(days={subject.rng.randint(1, 300)})"
    if flaky:  # the year's end, or a limit that the calendar reaches
        checks = [
            subject.check("assertEqual", f"({later}).year", f"{day}.year"),
            subject.check("assertLess", day, f"datetime.date({year + 5}, 1, 1)"),
        ]
        return subject.around([f"{day} = {today}"], [subject.rng.choice(checks)])
    if subject.rng.random() < 0.5:
        return subject.around([f"{day} = {today}"], [subject.check("assertLess", day, later)])
    checks = [subject.check("assertEqual", f"{day}.year", str(year)), subject.check("assertLess", day, later)]
    return subject.around([f"{day} = {fixed}"], [subject.rng.choice(checks)])
