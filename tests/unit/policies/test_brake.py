"""The brake as a value: successes earn tokens, dead letters spend them, and probes have their times."""

import pytest

from consumerkit.errors import ConfigurationError
from consumerkit.policies.brake import Brake, BrakeState
from consumerkit.policies.retry import exponential, fixed

POLICY = Brake(allowance=10, earned=0.25, probe=exponential(1, max=60, jitter=0))


def spent(state: BrakeState, times: int, now: float = 0.0) -> int:
    """How many of so many dead letters were allowed."""
    return sum(state.spend(now) for _ in range(times))


def test_with_everything_failing_the_allowance_is_all_there_is() -> None:
    state = BrakeState(POLICY)
    assert spent(state, 10_000) == 10
    assert state.on


def test_the_brake_is_off_until_a_dead_letter_is_refused() -> None:
    state = BrakeState(POLICY)
    assert spent(state, 10) == 10
    assert not state.on
    assert not state.spend(0.0)
    assert state.on


def test_probes_come_at_growing_intervals() -> None:
    state = BrakeState(POLICY)
    spent(state, 11, now=100.0)
    assert state.next_probe == 101.0
    waits = []
    now = state.next_probe
    for _ in range(8):
        state.failed_probe(now)
        waits.append(state.next_probe - now)
        now = state.next_probe
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_one_success_takes_it_off_and_leaves_a_token() -> None:
    state = BrakeState(POLICY)
    spent(state, 11)
    assert state.succeeded(1)
    assert not state.on
    assert spent(state, 2) == 1
    assert not state.succeeded(0)
    assert state.on


def test_the_next_outage_begins_with_short_intervals_again() -> None:
    state = BrakeState(POLICY)
    spent(state, 11)
    for now in (1.0, 2.0, 3.0):
        state.failed_probe(now)
    state.succeeded(1)
    spent(state, 2, now=50.0)
    assert state.next_probe == 51.0


def test_successes_earn_up_to_the_allowance() -> None:
    state = BrakeState(POLICY)
    spent(state, 10)
    assert not state.succeeded(1_000_000)
    assert spent(state, 100) == 10


def test_duplicates_earn_nothing() -> None:
    state = BrakeState(POLICY)
    spent(state, 10)
    state.succeeded(0)
    assert spent(state, 1) == 0


@pytest.mark.parametrize("share", [0.05, 0.19])
def test_a_steady_share_of_poison_never_puts_it_on(share: float) -> None:
    state = BrakeState(POLICY)
    dead = 0.0
    for _ in range(10_000):
        dead += share
        if dead >= 1:
            dead -= 1
            assert state.spend(0.0)
        else:
            state.succeeded(1)
    assert not state.on


def test_more_poison_than_successes_pay_for_puts_it_on() -> None:
    state = BrakeState(POLICY)
    allowed = [state.spend(0.0) if n % 3 else state.succeeded(1) for n in range(60)]
    assert not all(allowed[n] for n in range(60) if n % 3)


def test_dead_letters_beside_what_will_succeed_are_paid_in_advance() -> None:
    state = BrakeState(POLICY)
    assert state.funded(25, 475) == 25
    # While that transaction is under way, the tokens are there for others.
    assert spent(state, 10) == 10
    assert not state.on
    state.succeeded(475, funded=25)
    assert spent(state, 100) == 10


def test_what_succeeds_pays_for_no_more_than_it_earns() -> None:
    state = BrakeState(POLICY)
    assert state.funded(25, 7) == 1
    assert state.funded(25, 0) == 0
    state.succeeded(4, funded=1)
    assert spent(state, 100) == 10


def test_dead_letters_beside_duplicates_are_paid_afterwards() -> None:
    state = BrakeState(POLICY)
    assert not state.succeeded(0, funded=8)
    assert spent(state, 100) == 2


def test_what_was_not_written_is_given_back() -> None:
    state = BrakeState(POLICY)
    spent(state, 10)
    state.refund(4)
    assert spent(state, 10) == 4
    state.refund(1_000)
    assert spent(state, 100) == 10


@pytest.mark.parametrize(
    "values",
    [{"allowance": 0}, {"allowance": True}, {"allowance": 2.0}, {"earned": 0}, {"earned": 1.5}, {"earned": True}],
)
def test_a_value_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        Brake(**values)  # type: ignore[arg-type] # what the test is about


def test_the_probe_is_a_wait() -> None:
    assert Brake(probe=fixed(3)).probe == fixed(3)
    with pytest.raises(ConfigurationError, match="probe=5"):
        Brake(probe=5)  # type: ignore[arg-type] # what the test is about


def test_a_reject_spends_nothing_however_many_there_are_of_one_key() -> None:
    state = BrakeState(POLICY)
    assert all(state.reject("key", 0.0) for _ in range(10_000))
    assert not state.on
    assert spent(state, 11) == 10


def test_rejects_of_many_keys_without_a_success_put_the_brake_on() -> None:
    state = BrakeState(Brake(rejected_keys=100))
    assert all(state.reject(key, 0.0) for key in range(100))
    assert not state.reject(100, 5.0)
    assert state.on
    assert state.next_probe > 5.0
    # Messages of known keys are held back too, until one succeeds.
    assert not state.reject(3, 6.0)
    assert state.succeeded(1)
    assert all(state.reject(key, 7.0) for key in range(100))
    assert not state.reject(100, 8.0)


def test_a_success_between_them_breaks_the_run_and_a_duplicate_does_not() -> None:
    state = BrakeState(Brake(rejected_keys=3))
    for key in range(3):
        assert state.reject(key, 0.0)
    state.succeeded(1)
    assert all(state.reject(key, 0.0) for key in range(3))
    state.succeeded(0)
    assert not state.reject(3, 0.0)


def test_the_wait_that_is_told_during_a_probe_is_the_one_that_follows_it() -> None:
    state = BrakeState(POLICY)
    spent(state, 11, now=100.0)
    state.failed_probe(101.0)  # it begins
    told = state.next_probe - 101.0
    state.wait_again(104.0)  # it took three seconds
    assert state.next_probe - 104.0 == told == 2.0
