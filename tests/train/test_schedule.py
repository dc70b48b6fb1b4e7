import pytest

from core.train.schedule import Schedule


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 10, 100])
def test_the_rate_rises_to_the_peak_and_ends_at_the_floor(kind: str, warmup: int) -> None:
    schedule = Schedule(kind, peak=1e-3, floor=1e-5, warmup=warmup, total=100)
    rates = [schedule.lr(step) for step in range(1, 101)]
    assert max(rates) <= 1e-3
    assert min(rates) > 0
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[max(0, warmup - 1) :] == sorted(rates[max(0, warmup - 1) :], reverse=True)
    if warmup:
        assert rates[0] == pytest.approx(1e-3 / warmup)
        assert rates[warmup - 1] == pytest.approx(1e-3)
    if warmup < 100:
        assert rates[-1] == pytest.approx(1e-5)


def test_cosine_is_half_way_at_half_time() -> None:
    assert Schedule("cosine", peak=1.0, floor=0.0, warmup=20, total=120).lr(70) == pytest.approx(0.5)


def test_wsd_is_constant_until_its_decay_which_is_linear() -> None:
    schedule = Schedule("wsd", peak=1.0, floor=0.2, warmup=10, total=100, decay_share=0.25)
    assert {schedule.lr(step) for step in range(10, 76)} == {1.0}
    assert schedule.lr(76) == pytest.approx(1.0 - 0.8 / 25)
    assert schedule.lr(90) == pytest.approx(1.0 - 0.8 * 15 / 25)


def test_a_run_of_one_step_has_a_rate() -> None:
    assert Schedule("cosine", peak=1.0, floor=0.1, warmup=1, total=1).lr(1) == 1.0
    assert Schedule("wsd", peak=1.0, floor=0.1, warmup=0, total=1).lr(1) == pytest.approx(0.1)
