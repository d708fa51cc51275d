"""A group in virtual time: for schedules, counts and ratios that depend on no machine.

The scheduler, the messages and the stages' coroutines are the engine's own. Time, transfers and
the computation are simulated: hidden states and tokens are hashes of what each stage was given, so
that a wrong order, row, page, position or token shows as a wrong answer. No torch, no socket.

    events     virtual time, and signals that something has happened
    wire       one direction between two ranks, as gloo (rendezvous) or buffered
    exchange   parallel.stage.Exchange upon wires
    model      the hashes that stand for a model; `answer` computes a request from scratch
    runner     parallel.stage.StageRunner: pages, slots, and the model's layers of one stage
    worker     one rank: orders strictly as they come, steps by parallel.stage.Stage
    group      a scheduler, its workers and its clients
    replicas   several dp ranks, a group each, which gather and step together
    agreement  what dp ranks did, judged again from the rows that they gathered
    transfers, cluster   hand-overs: a rank's part in them; groups that hand over to each other
    schedules, dp_schedules   random ones, each from a seed
    explore         every interleaving of what the stages wait for and send
    explore_passes  every interleaving of what two dp ranks do and are told
"""
