import gc
from collections.abc import Iterator

import pytest

from consumerkit.worker.gc import seldom_collected


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_garbage_is_looked_for_less_often_and_only_in_what_is_new() -> None:
    gc.set_threshold(700, 10, 10)

    with seldom_collected():
        assert gc.get_threshold() == (10_000, 10, 10)
        assert gc.get_freeze_count() > 0

    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("chosen", [0, 50_000])
def test_a_collector_that_is_off_or_rarer_already_stays_as_it_is(chosen: int) -> None:
    gc.set_threshold(chosen, 10, 10)

    with seldom_collected():
        assert gc.get_threshold() == (chosen, 10, 10)


def test_the_collector_is_as_before_when_consuming_fails() -> None:
    gc.set_threshold(700, 10, 10)

    with pytest.raises(OSError, match="gone"), seldom_collected():
        raise OSError("gone")

    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() == 0
