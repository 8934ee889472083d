"""A seed is a plan: always the same one, and of every kind."""

from __future__ import annotations

import pytest

from tests.stress import message_faults
from tests.stress.draw import plan
from tests.stress.faults import FAULTS
from tests.stress.mutants import MUTANTS, SEEDS
from tests.stress.plan import KINDS, SERVER, TWO_WORKERS
from tests.stress.test_stress import KEPT

PLANS = [plan(seed) for seed in range(600)]


def test_a_seed_always_names_the_same_plan() -> None:
    assert all(plan(one.seed) == one for one in PLANS[:50])
    assert plan(1) != plan(2)


def test_every_profile_every_form_and_every_fault_comes_up() -> None:
    assert {one.profile for one in PLANS} == {"general", "calm", "crossed", "relayed", "slowed", "narrow"}
    assert {fault for one in PLANS for fault in one.faults} == set(FAULTS)
    for option in ("form", "driver", "ordering", "database", "acks", "hold_key", "resend_runs", "on_duplicate"):
        assert len({getattr(one, option) for one in PLANS}) > 1, option
    kinds = {given.kind for one in PLANS for wave in one.waves for given in wave}
    assert kinds == {*KINDS, *message_faults.KINDS}
    met = {fault for one in PLANS for fault in one.message_faults}
    assert met == {*message_faults.KINDS, message_faults.SLOWED, message_faults.DROPPED}


@pytest.mark.parametrize("faults, wrong", [(SERVER, "sqlite"), (TWO_WORKERS, "sqlite")])
def test_a_file_is_spared_what_it_cannot_meet(faults: frozenset[str], wrong: str) -> None:
    assert not [one.seed for one in PLANS if one.database == wrong and one.has(*faults)]


def test_a_restore_has_its_backup_and_nothing_that_it_could_not_undo() -> None:
    restored = [one for one in PLANS if one.has("restore")]
    assert restored
    for one in restored:
        assert one.faults.index("backup") < one.faults.index("restore")
        assert not one.has("retention", "prune")


def test_nothing_is_sent_again_that_the_ledger_may_have_forgotten() -> None:
    assert not [one.seed for one in PLANS if one.has("prune") and (one.has_copies or one.has("redrive"))]


def test_what_is_not_asked_of_a_server_is_all_that_a_file_meets() -> None:
    met = {fault for one in PLANS if one.database == "sqlite" for fault in one.message_faults}
    assert met >= {"unknown table", *message_faults.GROUPS, *message_faults.UNREADABLE}
    assert not met & (message_faults.OWN | message_faults.PRESENT)


def test_a_minority_of_plans_has_faults_of_messages_and_the_seeds_that_are_kept_have_none() -> None:
    assert 0.15 < sum(bool(one.message_faults) for one in PLANS) / len(PLANS) < 0.5
    hard = [seed for mutant, (seeds, _) in SEEDS.items() if mutant != "aside" for seed in seeds]
    assert not [seed for seed in [*KEPT, *hard] if plan(seed).message_faults]


def test_each_mutant_has_its_seeds() -> None:
    assert SEEDS.keys() == MUTANTS.keys()
    assert {plan(seed).profile for seed in SEEDS["aside"][0]} == {"slowed"}


def test_a_first_message_is_the_first_of_its_id() -> None:
    for one in PLANS:
        seen: set[str] = set()
        for given in (given for wave in one.waves for given in wave):
            assert given.first == (given.id not in seen)
            seen.add(given.id)


def test_a_plan_tells_its_options() -> None:
    assert f"seed = {PLANS[3].seed}" in PLANS[3].shown()
