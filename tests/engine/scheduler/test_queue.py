from pds_engine.messages import Sampling, Submit
from pds_engine.scheduler.party import Party
from pds_engine.scheduler.queue import WaitingQueue
from pds_engine.scheduler.request import Request


def request(arrival: int, priority: int = 0) -> Request:
    submit = Submit(
        request_id=str(arrival),
        prompt_ids=(1,),
        sampling=Sampling(max_tokens=1),
        seed=0,
        priority=priority,
    )
    return Request(submit, Party("server"), arrival, 0.0)


def test_order_is_by_priority_then_by_arrival() -> None:
    queue = WaitingQueue()
    for item in (request(0), request(1, priority=1), request(2, priority=-1), request(3)):
        queue.push(item)
    served = []
    while (first := queue.first()) is not None:
        served.append(first.id)
        queue.remove(first)
    assert served == ["2", "0", "3", "1"]


def test_removed_from_the_middle_it_never_comes_up() -> None:
    queue = WaitingQueue()
    items = [request(arrival) for arrival in range(3)]
    for item in items:
        queue.push(item)
    queue.remove(items[1])
    queue.remove(items[0])
    assert queue.first() is items[2]
    assert [item.id for item in queue] == ["2"]


def test_what_was_removed_takes_no_room_for_ever() -> None:
    queue = WaitingQueue()
    queue.push(request(0, priority=-1))  # stays in front, so that nothing behind it comes up
    for arrival in range(1, 5000):
        item = request(arrival)
        queue.push(item)
        queue.remove(item)
    assert len(queue) == 1
    assert len(queue._heap) < 200
