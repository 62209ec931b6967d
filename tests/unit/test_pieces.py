"""Who is asked for which piece: everything comes, whatever the donors do, and the slow ones hold nobody up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.snapshots.pieces import Pieces

A, B, C = b"a", b"b", b"c"


def drain(pieces: Pieces, periods: dict[bytes, int], window: int, dies: dict[bytes, int]) -> dict[bytes, list[int]]:
    """Time in ticks: a donor answers its oldest request every `periods[donor]` ticks, and is gone after `dies` ones."""
    queues: dict[bytes, list[int]] = {donor: [] for donor in periods}
    gave: dict[bytes, list[int]] = {donor: [] for donor in periods}
    for tick in range(1, 100_000):
        for donor in list(queues):
            if tick > dies.get(donor, tick):
                pieces.dropped(donor)
                del queues[donor]
        for donor, queue in queues.items():
            if queue and tick % periods[donor] == 0:
                piece = queue.pop(0)
                if pieces.arrived(donor, piece):
                    gave[donor].append(piece)
            while len(queue) < window and (asked := pieces.ask(donor)) is not None:
                assert asked not in queue, "the same donor is not asked twice at a time"
                queue.append(asked)
        if pieces.done or not queues:
            return gave
    raise AssertionError("it never ends")


def test_a_faster_donor_gives_more() -> None:
    gave = drain(Pieces(range(200)), {A: 1, B: 4}, 4, {})
    assert 3 <= len(gave[A]) / len(gave[B]) <= 5


def test_what_a_slow_donor_owes_at_the_end_is_asked_again_elsewhere() -> None:
    pieces = Pieces(range(8))
    owed = [pieces.ask(A) for _ in range(4)]
    quick = [pieces.ask(B) for _ in range(4)]
    assert pieces.ask(B) is None, "it owes pieces itself"
    for piece in quick:
        assert piece is not None and pieces.arrived(B, piece)
    assert pieces.ask(B) == owed[-1], "the one that would come last"
    assert pieces.ask(C) == owed[-2], "not what two are asked for already"
    assert pieces.arrived(B, 3) and not pieces.arrived(A, 3), "the second copy is not news"


def test_what_a_dropped_donor_owes_comes_first_and_once() -> None:
    pieces = Pieces(range(6))
    assert [pieces.ask(A) for _ in range(3)] == [0, 1, 2]
    assert pieces.ask(B) == 3 and pieces.arrived(A, 1)
    pieces.dropped(A)
    assert [pieces.ask(B) for _ in range(4)] == [0, 2, 4, 5]
    pieces.dropped(A)
    assert pieces.ask(A) == 5 and pieces.missing == 5


def test_nothing_wanted_is_done() -> None:
    assert Pieces([]).done and Pieces([]).ask(A) is None


DONORS = st.dictionaries(st.binary(min_size=1, max_size=2), st.integers(1, 30), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 60), DONORS, st.integers(1, 8), st.data())
def test_everything_comes_once_while_one_donor_lives(
    count: int, periods: dict[bytes, int], window: int, data: st.DataObject
) -> None:
    mortal = sorted(periods)[1:]
    dies = {donor: data.draw(st.integers(1, 60)) for donor in mortal if data.draw(st.booleans())}
    pieces = Pieces(range(count))
    gave = drain(pieces, periods, window, dies)
    assert pieces.done
    assert sorted(piece for each in gave.values() for piece in each) == list(range(count))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), DONORS, st.integers(1, 8))
def test_the_fastest_donor_gives_at_least_its_share(count: int, periods: dict[bytes, int], window: int) -> None:
    gave = drain(Pieces(range(count)), periods, window, {})
    fastest = min(periods, key=lambda donor: periods[donor])
    assert len(gave[fastest]) >= count // len(periods) - window
