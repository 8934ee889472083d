"""The rules for messages that carry a fault: it affects them, and no other message."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from tests.stress.message_faults import GROUPS, NEVER_COUNTED, OWN, REJECTED, SLOWED, SUSPECTS, UNREADABLE, is_permanent
from tests.stress.oracle import OPEN, History, Logged, Told
from tests.stress.plan import Given

_AWAY: Final = ("terminate", "terminate busy", "backup", "restore")
_VERDICTS: Final = frozenset({"exhausted", "rejected", *UNREADABLE})


def judge_messages(history: History) -> list[str]:
    """Return what is wrong, in words; an empty list if nothing is."""
    rules = (_unreadable, _deaths, _attempts, _first_suspected, _companions, _unsuspected, _standing)
    return [problem for rule in rules for problem in rule(history)]


def _unreadable(history: History) -> Iterator[str]:
    """Each record that cannot be read has one open dead letter, and nothing else has one for that reason."""
    kinds = {(one.partition, one.offset): one.given.kind for one in history.log}
    letters = Counter((one.partition, one.offset, one.reason) for one in history.end.dead if one.state == OPEN)
    for (partition, offset), kind in kinds.items():
        count = letters[partition, offset, kind]
        if kind in UNREADABLE and count != 1:
            yield f"what is {kind} at {partition}@{offset} has {count} open dead letters"
    for partition, offset, reason in letters:
        if reason in UNREADABLE and kinds.get((partition, offset)) != reason:
            yield f"{partition}@{offset} is dead as {reason}, and can be read"


def _deaths(history: History) -> Iterator[str]:
    """Only messages that must die become dead letters, each with the right reason."""
    given = _given(history)
    for one in () if _overruns(history) else history.told:
        found = given.get(one.id)
        if one.what in _VERDICTS - UNREADABLE and found is not None and _need_not_die(found):
            yield f"{one.id} ({found.kind}) died: {one.what}"
    wrong = {"rejected": OWN | SUSPECTS, "exhausted": REJECTED}
    for letter in history.end.dead:
        found = given.get(letter.id or "")
        if found is not None and letter.state == OPEN and found.kind in wrong.get(letter.reason, ()):
            yield f"{letter.id} ({found.kind}) is dead as {letter.reason}"


def _overruns(history: History) -> bool:
    """Return whether a worker pauses within a transaction: on a slow machine for longer than its handlers may."""
    return history.plan.has("zombie in its transaction")


def _need_not_die(given: Given) -> bool:
    return not is_permanent(given) and given.kind != "swallow"


def _attempts(history: History) -> Iterator[str]:
    """A message that succeeded has as many attempts as failures were counted; a suspect's first failure is not."""
    given = _given(history)
    for done in () if _overruns(history) else history.end.effects:
        found = given.get(done.id)
        if found is None or found.variant or is_permanent(found):
            continue
        most = _most_attempts(found)
        if most is not None and done.attempt > most:
            yield f"{done.id} ({found.kind}, {found.times} times) succeeded at attempt {done.attempt}, and has {most}"


def _most_attempts(given: Given) -> int | None:
    if given.kind in NEVER_COUNTED or given.kind == "ok":
        return 1
    if given.kind in SUSPECTS:
        return max(1, given.times)
    return given.times + 1 if given.kind in OWN | GROUPS else None


def _first_suspected(history: History) -> Iterator[str]:
    """An error that may affect all messages counts as no attempt at first, in each process."""
    for worker, name, told in _suspects(history):
        if told[0][1].what == "attempt":
            yield f"{worker} counted the first failure of {name} alone, which may have been the trouble of all"


def _companions(history: History) -> Iterator[str]:
    """An attempt of a suspect behind which no other waits is counted only after another message has succeeded."""
    ordering, given = history.plan.ordering, _given(history)
    committed: defaultdict[str, list[int]] = defaultdict(list)
    for moment, one in enumerate(history.told):
        if one.what == "committed":
            committed[one.worker].append(moment)
    for worker, name, told in _suspects(history):
        if ordering == "partition" or (ordering == "key" and given[name].key is not None):
            continue
        first = next((moment for moment, one in told if one.what == "attempt"), None)
        if first is not None and not any(told[0][0] < moment < first for moment in committed[worker]):
            yield f"{worker} counted an attempt of {name}, and no other message had succeeded"


def _suspects(history: History) -> Iterator[tuple[str, str, list[tuple[int, Told]]]]:
    """Yield what each worker announced of each suspect, with the moments."""
    given = _given(history)
    found: defaultdict[tuple[str, str], list[tuple[int, Told]]] = defaultdict(list)
    for moment, one in enumerate(history.told):
        if one.what in ("suspected", "attempt") and one.id in given and given[one.id].kind in SUSPECTS:
            found[one.worker, one.id].append((moment, one))
    for (worker, name), told in found.items():
        yield worker, name, told


def _unsuspected(history: History) -> Iterator[str]:
    """Errors of database code, of policies and of groups count as attempts from the first failure on."""
    if history.plan.has(*_AWAY):
        return  # a connection that is ended beside it may look like its fault, or like that of all
    given = _given(history)
    for one in history.told:
        if one.what == "suspected" and (found := given.get(one.id)) is not None and found.kind not in SUSPECTS:
            yield f"{one.id} ({found.kind}) was suspected to be the trouble of all"


def _standing(history: History) -> Iterator[str]:
    """One message alone pauses no handler, and no Reject and no record that cannot be read puts the brake on."""
    told = Counter(one.what for one in history.told)
    suspects = Counter(one.given.kind for one in history.log if one.given.kind in SUSPECTS)
    alone = not history.plan.has(*_AWAY) and all(count < 2 for count in suspects.values())
    if told["paused"] and alone:
        yield f"the handler paused {told['paused']} times, and no two messages failed alike"
    if told["braked"]:
        yield f"the handler's brake went on {told['braked']} times"
    if told[SLOWED] and SLOWED not in history.plan.message_faults:
        yield f"partitions were slowed down {told[SLOWED]} times"


def _given(history: History) -> dict[str, Given]:
    """Return what each ID does, for the IDs whose copies all do the same."""
    found: dict[str, Given] = {}
    odd = {one.given.id for one in history.log if one.given.variant}
    for one in _first(history):
        if one.given.id not in odd:
            found[one.given.id] = one.given
    return found


def _first(history: History) -> Iterator[Logged]:
    return (one for one in history.log if one.given.first)
