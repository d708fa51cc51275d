"""Groups that begin: how many at once, and what becomes of those that find no node."""

from pds_operator.decide.actions import Say
from worlds import World, problems, raw_spec


def test_groups_that_find_no_node_wait_and_the_scheduler_is_quoted():
    world = World(raw_spec())
    world.unschedulable = True
    for _ in range(5):
        world.round()
    world.change("chat-p-0-0-0", unscheduled="0/1 nodes are available")
    assert problems(world) == []  # a hiccup of the scheduler is no news
    world.now += 30
    assert problems(world) == ["Unschedulable"]
    assert not world.plan_writes()


def prefills(world: World) -> list[str]:
    return [name for name in world.pods if "-p-" in name]


def test_groups_of_one_pod_begin_at_once_the_roles_by_turns():
    world = World(raw_spec(prefill={"replicas": 4}, decode={"replicas": 2}))
    world.unschedulable = True
    world.round()
    world.round()
    made = [name.split("-")[1:3] for name in world.pods if name.startswith("chat-")]
    assert made == [["p", "0"], ["d", "0"], ["p", "1"], ["p", "2"], ["d", "1"], ["p", "3"]]
    assert not world.plan_writes()


def test_one_event_names_all_groups_of_a_role_that_begin():
    world = World(raw_spec(prefill={"replicas": 6}))
    world.round()

    def said() -> list[str]:
        found = [item for item in world.plan().actions if isinstance(item, Say)]
        return [item.message.split(" of ")[0] for item in found]

    assert said() == ["created prefill groups 0-5", "created decode group 0"]
    world.round()
    for lost in (2, 3, 5):
        del world.pods[f"chat-p-{lost}-0-0"]
    assert said() == ["created prefill groups 2-3, 5"]


def test_groups_of_several_pods_begin_one_at_a_time():
    world = World(raw_spec(prefill={"replicas": 3, "parallelism": {"pp": 2}}))
    made = []
    for _ in range(5):
        world.round()
        made.append(len(prefills(world)))
        world.turn_ready()
    assert made == [0, 2, 4, 6, 6]


def test_a_group_scheduled_in_part_gives_up_what_it_holds():
    world = World(raw_spec(prefill={"replicas": 1, "parallelism": {"pp": 2}}))
    world.unschedulable = True
    world.round()
    world.round()
    world.change("chat-p-0-0-0", scheduled=True)
    assert world.round() == []
    world.now += 301
    assert world.round() == [
        "drain chat-p-0-0-0",
        "drain chat-p-0-0-1",
        "delete pod chat-p-0-0-0",
        "delete pod chat-p-0-0-1",
        "hold schedule/prefill",
    ]
