"""Named locks: all at once, in order, nobody starves."""

from __future__ import annotations

from serai.controller.jobs.locks import Locks


def test_a_request_gets_all_of_its_locks_or_waits_for_the_first_holder() -> None:
    locks = Locks()
    first = locks.request("first", ["a", "b"])
    second = locks.request("second", ["b", "c"])
    other = locks.request("other", ["d"])
    assert first.granted.is_set()
    assert other.granted.is_set()
    assert not second.granted.is_set()
    assert locks.blockers(second) == {"b": "first"}
    locks.release(first)
    assert second.granted.is_set()
    assert locks.blockers(second) == {}


def test_a_free_lock_is_kept_for_those_that_asked_before() -> None:
    locks = Locks()
    holder = locks.request("holder", ["a"])
    wide = locks.request("wide", ["a", "b"])
    late = locks.request("late", ["b"])
    assert not late.granted.is_set()
    assert locks.blockers(late) == {"b": "wide"}
    assert (locks.ahead(wide), locks.ahead(late)) == ({"holder"}, {"wide"})
    locks.release(holder)
    assert (wide.granted.is_set(), late.granted.is_set()) == (True, False)
    locks.release(wide)
    assert late.granted.is_set()


def test_who_leaves_the_queue_is_in_nobodys_way() -> None:
    locks = Locks()
    locks.request("holder", ["a"])
    gone, late = locks.request("gone", ["a", "b"]), locks.request("late", ["b"])
    locks.release(gone)
    assert late.granted.is_set()
