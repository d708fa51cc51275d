"""Which groups leave when a revision comes while others are under way."""

from worlds import World, raw_spec


def test_what_the_next_revision_retires_is_not_made_again_before_it_comes():
    world = World(raw_spec())
    world.settle()
    world.change("chat-d-0-0-0", failures=2)
    world.fail("chat-d-0-0-0")
    world.now += 601
    world.raw = raw_spec(image="engine:2")
    [made] = [text for text in world.round() if not text.startswith("unroute")]
    assert made.startswith("controllerrevision")
    assert "drain chat-d-0-0-0" in world.round()


def test_what_is_left_of_two_older_revisions_is_a_pair_of_one():
    """A spec changes while two revisions serve, and only one of them has all of a pair."""
    one = {"replicas": 1}
    world = World(raw_spec(prefill=one))
    world.settle()
    world.raw = raw_spec(prefill=one, image="engine:2")
    while not all(
        world.pods.get(f"chat-{r}-1-0-0") and world.pods[f"chat-{r}-1-0-0"].ready for r in "pd"
    ):
        world.round()
        world.turn_ready()
    world.change("chat-p-0-0-0", ready=False)
    world.raw = raw_spec(prefill=one, image="engine:3")
    world.round()
    actions = world.round()
    assert [text for text in actions if text.startswith("drain")] == [
        "drain chat-p-0-0-0",
        "drain chat-d-0-0-0",
    ]
