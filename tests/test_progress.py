"""The time left that the bar shows."""

from rich.progress import Progress

from harness.progress import ConsoleObserver, _LeftColumn


def rendered(clock, **fields):
    with Progress(_LeftColumn(), get_time=lambda: clock[0], disable=True) as bar:
        task = bar.add_task("calibrate", total=None)
        bar.update(task, **fields)
        clock[0] += 5.0
        return str(_LeftColumn().render(bar.tasks[0]))


def test_the_time_left_is_the_jobs_own_counted_down():
    # 95 s when it was said, 5 s ago.
    assert rendered([100.0], completed=1, total=4, left_s=95.0, said_at=100.0) == "1:30 left"


def test_the_time_left_is_never_negative():
    assert rendered([100.0], completed=1, total=4, left_s=2.0, said_at=100.0) == "0:00 left"


def test_without_it_the_bars_own_guess_is_shown():
    assert "left" not in rendered([100.0], completed=0, total=4)


def test_an_observer_takes_the_time_left():
    with ConsoleObserver(quiet=True) as observer:
        observer.begin("calibrate", resumed=False)
        observer.progress(1, 4, left_s=30.0)


def test_what_delays_a_job_is_told_once_a_job(capsys):
    held = {"kind": "waiting", "job": "1", "what": "the board's lease, held by me@here"}
    with ConsoleObserver() as observer:
        for event in (
            held,
            {**held, "what": "the board's lease, held by me@here, for 5 s"},
            {"kind": "reconnect", "attempt": 1, "reason": "the link is down"},
            {"kind": "retry", "attempt": 1, "reason": "the job died by signal 9"},
            {"kind": "conditions", "reason": "board nano: power mode 5W was asked for"},
        ):
            observer.event(event)
    assert capsys.readouterr().err.splitlines() == [
        "! waiting for the board's lease, held by me@here",
        "! the connection to the board broke; trying again (the link is down)",
        "! the job died by signal 9; running it again",
        "! board nano: power mode 5W was asked for",
    ]
