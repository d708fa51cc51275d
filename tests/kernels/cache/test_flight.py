"""The lock of a key: who holds it, who leaves it alone, and who takes it over."""

import re
import time
from pathlib import Path

from cache_pods import INPUTS, build, never
from pds_kernels.cache import Cache, Held
from pds_kernels.cache.files import Files
from pds_kernels.cache.flight import Flight
from pds_kernels.cache.sharing import Watch


def test_a_slow_compiler_keeps_its_lease(pod):
    """Its rival comes back again and again, and never finds the lock stale."""
    volume = pod().volume
    volume.try_out()
    holder = Flight(volume, "lock", lease=0.2)
    assert holder.attempt()
    rival, begun = Flight(pod().volume, "lock", lease=0.2), time.monotonic()
    watch = Watch(lease=0.2, patience=1.0, now=begun)
    beats = set()
    while not watch.tired(time.monotonic()):
        assert not rival.attempt(watch.stale(time.monotonic()))
        beats.add(beat := rival.beat())
        watch.saw(beat, time.monotonic())
        time.sleep(0.01)
    assert len(beats) > 5
    holder.release()
    assert list(volume.locks.iterdir()) == []
    assert rival.attempt()
    rival.release()


def held(cache: Cache, lease: float = 20.0) -> Flight:
    """Another process's lock on the key of INPUTS, which it beats and never releases."""
    cache.volume.try_out()
    flight = Flight(cache.volume, cache.key(INPUTS), lease)
    assert flight.attempt()
    return flight


def test_a_key_that_another_process_builds_is_left_to_it_at_once(pod):
    holder = held(pod())
    cache = pod()
    seen = cache.attempt("k", INPUTS, never)
    assert isinstance(seen, Held) and seen.beat
    assert cache.attempt("k", {**INPUTS, "shape": "17"}, build).built
    assert cache.volume.trouble == ""
    holder.release()
    assert cache.attempt("k", INPUTS, build).built
    assert not pod().attempt("k", INPUTS, never).built


def test_a_lock_that_was_given_up_is_taken_over(pod):
    dead = held(pod(), lease=1e6)  # it never beats
    cache = pod()
    seen = cache.attempt("k", INPUTS, never)
    made = cache.attempt("k", INPUTS, build, stale=seen.beat)
    assert made.built and made.shared
    dead.release()
    assert not pod().attempt("k", INPUTS, never).built


def test_a_lock_that_has_changed_since_it_was_given_up_is_left_alone(pod):
    holder = held(pod())
    cache = pod()
    seen = cache.attempt("k", INPUTS, never, stale=b"another's")
    assert isinstance(seen, Held) and seen.beat == holder.beat()
    holder.release()


def test_a_living_lock_is_never_out_of_its_place(pod):
    """A warm-up looks at a held key again after builds of its own, and may take its holder for dead
    though it has beaten meanwhile. Had it moved the lock to see, a third would have found none."""
    holder, third = held(pod()), Flight(pod().volume, pod().key(INPUTS), 20.0)
    taken: list[bool] = []

    class Slow(Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            taken.append(third.attempt())

    seen = pod(files=Slow).attempt("k", INPUTS, never, stale=b"seen long ago")
    assert isinstance(seen, Held) and seen.beat == holder.beat()
    assert taken == []
    holder.release()


def test_who_waits_too_long_for_another_compiles_for_itself(pod):
    """The holder beats, and delivers nothing."""
    holder = held(pod(), lease=0.2)
    late = pod(lease=0.2)
    made = late.get("k", INPUTS, build, timeout=1.0)
    assert made.built and not made.shared
    assert re.search("a lock that another process holds for 0 s .*locks/", late.volume.trouble)
    holder.release()


def test_what_comes_at_last_is_not_compiled_alone(pod):
    pod().get("k", INPUTS, build)
    late = pod()
    assert late.build_alone("k", INPUTS, never, waited=900).shared
    assert late.volume.trouble == ""
