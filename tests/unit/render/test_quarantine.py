"""Which contents are refused, and for how long."""

from __future__ import annotations

import pytest

from latentfs.render.quarantine import Quarantine

HOUR_S = 3600.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(clock=clock)


def test_the_first_loss_is_forgiven(quarantine: Quarantine) -> None:
    quarantine.blame("a")
    assert quarantine.refused_for_s("a") == 0
    assert len(quarantine) == 0


def test_after_two_losses_a_content_is_refused_for_a_minute_and_no_other_is(
    quarantine: Quarantine, clock: Clock
) -> None:
    quarantine.blame("a")
    clock.now_s += 30
    quarantine.blame("a")
    quarantine.blame("b")
    assert quarantine.refused_for_s("a") == 60
    assert quarantine.refused_for_s("b") == quarantine.refused_for_s("c") == 0
    assert len(quarantine) == 1
    clock.now_s += 59
    assert quarantine.refused_for_s("a") == 1
    clock.now_s += 1
    assert quarantine.refused_for_s("a") == 0
    assert len(quarantine) == 0


def test_two_losses_told_at_once_count_as_two(quarantine: Quarantine) -> None:
    quarantine.blame("a", losses=2)
    assert quarantine.refused_for_s("a") == 60


def test_each_further_loss_doubles_the_time_up_to_an_hour(
    quarantine: Quarantine, clock: Clock
) -> None:
    quarantine.blame("a")
    refused_s = []
    for _ in range(8):
        quarantine.blame("a")
        refused_s.append(quarantine.refused_for_s("a"))
        clock.now_s += refused_s[-1]
        assert quarantine.refused_for_s("a") == 0
    assert refused_s == [60, 120, 240, 480, 960, 1920, HOUR_S, HOUR_S]


def test_a_render_clears_it(quarantine: Quarantine) -> None:
    quarantine.blame("a", losses=3)
    quarantine.clear("a")
    quarantine.clear("never seen")
    assert quarantine.refused_for_s("a") == 0
    quarantine.blame("a")
    assert quarantine.refused_for_s("a") == 0


def test_losses_are_forgotten_after_two_hours(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.blame("single")
    quarantine.blame("refused", losses=3)
    clock.now_s += 2 * HOUR_S + 1
    quarantine.blame("single")
    quarantine.blame("refused", losses=2)
    assert quarantine.refused_for_s("single") == 0
    assert quarantine.refused_for_s("refused") == 60


def test_it_remembers_4096_contents_those_blamed_last(quarantine: Quarantine) -> None:
    for content in ("first", "second"):
        quarantine.blame(content, losses=2)
    for n in range(4094):
        quarantine.blame(n)
    quarantine.blame("first")
    quarantine.blame("one more")
    assert quarantine.refused_for_s("first") == 120
    assert quarantine.refused_for_s("second") == 0
    quarantine.blame(0)
    assert quarantine.refused_for_s(0) == 60
