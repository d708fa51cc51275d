"""The scheduler: one authority over a group's slots, pages and steps (scheduling.md).

All but `process` and `peers` is pure: no torch, no socket, no clock. Messages and the time go in,
messages come out.

    process    the loop around the core: sockets, clock, State
    peers      the connections to prefill schedulers, for `process`
    scheduler  what each message does; deadlines, drain
    admission  which requests are rejected at once
    handover_p, handover_d   the two sides of a hand-over: offers, leases, aborts, quarantine
    pick       which rows the next step has; prefill: how long a chunk is; cost: what it costs
    preemption who is preempted when pages run out
    steps      the steps in flight, and their plans
    lifecycle  the transitions of a request, from its arrival to the last page's return
    allocation the slot and the pages of each: admission, growth, prefix cache
    pages, prefix   who holds which page; which tokens' keys it holds
    finish, queue, request, slots, digest, settings, party   the vocabulary
"""
