"""The scheduler: one authority over a group's slots, pages and steps (engine.md §3).

All but `process` is pure: no torch, no socket, no clock. Messages and the time go in,
messages come out.

    process    the edge: sockets, clock, coalesced State
    peers      the connections to prefill schedulers, for `process`
    scheduler  what each message does; deadlines, drain
    admission  what is refused at once
    handover_p, handover_d   the two sides of a hand-over: offers, leases, aborts, quarantine
    steps      which rows make the next StepPlan
    lifecycle  what a request holds, from its reservation to the last page's return
    pages, prefix   who holds which page; which tokens' keys it holds
    prefill, finish, queue, request, slots, digest, settings, party   the vocabulary
"""
