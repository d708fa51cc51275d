"""The circuit: every transition, in order."""

from pds_engine.router.circuit import Circuit, CircuitLimits, failed, spared, succeeded, tried

LIMITS = CircuitLimits(open_after=3, seconds=1.0, longest=5.0)


def fail(circuit, *times):
    for now in times:
        circuit = failed(circuit, now, LIMITS)
    return circuit


def test_it_opens_after_failures_in_a_row_only():
    circuit = fail(Circuit(), 0.0, 0.1)
    assert circuit.phase(0.2) == "closed"
    assert succeeded(circuit) == Circuit()
    circuit = fail(circuit, 0.2)
    assert [circuit.phase(now) for now in (0.3, 1.1, 1.2)] == ["open", "open", "halfOpen"]
    assert [circuit.admits(now) for now in (0.3, 1.3)] == [False, True]


def test_half_open_it_takes_one_trial_at_a_time():
    circuit = tried(fail(Circuit(), 0.0, 0.0, 0.0), 2.0)
    assert not circuit.admits(2.0)
    assert spared(circuit).admits(2.0)  # the trial's client left: nothing was learnt
    assert succeeded(circuit) == Circuit()


def test_a_failed_trial_doubles_the_wait_up_to_the_longest():
    circuit, now, waits = fail(Circuit(), 0.0, 0.0, 0.0), 0.0, []
    for _ in range(5):
        waits.append(circuit.until - now)
        now = circuit.until
        circuit = failed(tried(circuit, now), now, LIMITS)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_failures_of_requests_sent_before_it_opened_do_not_prolong_it():
    circuit = fail(Circuit(), 0.0, 0.0, 0.0)
    assert fail(circuit, 0.5, 0.6).until == circuit.until


def test_a_closed_circuit_takes_any_number():
    assert tried(Circuit(failures=2), 0.0) == Circuit(failures=2)
    assert spared(Circuit(failures=2)) == Circuit(failures=2)
