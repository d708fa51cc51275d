"""Chat tasks with one known right answer, for training and checking the tiny model.

Standard library only, so any test can load this file alone. The same (kind, seed, sizes) always
gives the same task:

    task = draw("recall", seed=7, context_tokens=1024, size=4)
    task.messages   # [{"role": "system", "content": "fig=12;sun=907;..."}, {"role": "user", ...}]
    task.answer     # "The value of sun is 907. The value of ..." : the whole greedy completion

A recall answer depends on facts far back in the context, and a copy on every word of it, so a
lost or misplaced KV page shows as a wrong answer.
"""

import random
import re
from dataclasses import dataclass
from itertools import pairwise

KINDS = ("recall", "copy", "count", "sum", "greeting")

# Keys and words to copy. Each is one token, with and without a space before it (tokenizer.py).
NOUNS = tuple(
    """
    fig sun oak cat dog map cup hat pen box bus car key jar bed bag arm ear eye egg ice ink jam
    leg lip log mud net nut oil owl pan pie pig pin pot rat ray rod rug sea sky tea tie toe toy
    van web ant ape art axe bay bee bell belt bird boat body bone book boot bowl bread brick
    bridge broom bulb cake camel camp candle card castle cave chain chair chalk cheese chess
    chin city clay clock cloud coal coat coin comb cook copper coral corn cotton cow crab crane
    crow crown cube curtain dart desk dice dish dock door dove dress drum duck dust eagle engine
    farm feather fence fern field finger fire fish flag flame floor flower flute fog foot forest
    fork fox frog fruit garden gate ghost giraffe glass glove goat gold goose grape grass guitar
    hammer hand harbor harp heart hen hill honey hood hook horn horse house island ivory jacket
    jewel kettle king kite knee knife ladder lake lamp leaf lemon lens letter lily lion lock
    maple marble market mask melon metal milk mill mint mirror monkey moon moss moth motor mouse
    music nail neck needle nest night nose ocean olive onion orange orchid otter paint palace
    palm panda paper park peach pearl pebble pepper piano pillow pine pipe planet plant plate
    plum pocket pond queen rabbit rain ring river road robin rocket roof rope rose ruby sail
    salt sand scarf school seal seed shark sheep shell ship shirt shoe silver skirt snail snow
    """.split()  # noqa: SIM905
)

FILLERS = (
    "The day was long and warm.",
    "Some people like to walk in the morning.",
    "It was a quiet day in the north.",
    "We had a good time there.",
    "No one knew what came next.",
    "They talk about the weather every day.",
    "She went home before it was dark.",
    "He said that it was all the same.",
    "There is more to see in the south.",
    "After that we had some time to rest.",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a tiny test model.",
    "Be short and exact.",
    "Use the facts.",
)

HELLO = "Hello! I am a tiny test model. Ask me to recall, copy, count or add."
ABOUT = "I am a tiny model made to test PDServing. My answers are easy to check."
SKILLS = (
    "I can recall values from your text, copy words, count and add small numbers."
    " Try: What is 2 plus 3?"
)
OUTSIDE = "Sorry, I am too small for that. I can only recall, copy, count and add."

# (what is said, what the model answers). Case and closing punctuation vary in `draw`.
REPLIES: tuple[tuple[str, str], ...] = (
    *(
        (said, HELLO)
        for said in (
            "Hello",
            "Hi",
            "Hey",
            "Hello there",
            "Hi there",
            "Good morning",
            "Good evening",
            "Hello model",
        )
    ),
    *(
        (said, ABOUT)
        for said in (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself",
            "Who made you?",
            "Are you a model?",
            "What is PDServing?",
            "Introduce yourself",
        )
    ),
    *(
        (said, SKILLS)
        for said in (
            "What can you do?",
            "Help",
            "Help me",
            "How can you help me?",
            "What do you know?",
            "What can I ask?",
            "What should I ask you?",
            "What are you good at?",
        )
    ),
    *(
        (said, "I am fine, thank you. What should I recall, copy, count or add?")
        for said in (
            "How are you?",
            "How are you today?",
            "How is it going?",
            "Are you well?",
        )
    ),
    *(
        (said, "You are welcome.")
        for said in ("Thanks", "Thank you", "Thank you very much", "Great")
    ),
    *((said, "Goodbye!") for said in ("Bye", "Goodbye", "See you", "Good night")),
    *(
        (said, OUTSIDE)
        for said in (
            "Tell me a joke",
            "Tell me a story",
            "Write a poem",
            "Write a poem about the sea",
            "What is the weather today?",
            "What time is it?",
            "What is the capital of France?",
            "What is the meaning of life?",
            "Who is the president?",
            "Write some code",
            "Write a Python function",
            "Explain quantum physics",
            "Explain how a car works",
            "Translate this to German",
            "How do I cook rice?",
            "Why is the sky blue?",
            "Sing a song",
            "Can you draw a cat?",
            "Where is Paris?",
            "What is Kubernetes?",
            "How old are you?",
            "Do you like music?",
            "What is love?",
            "Tell me about dogs",
            "Give me a recipe",
            "Play a game with me",
            "Who won the game?",
            "Is it raining?",
            "Once upon a time",
            "What is a neural network?",
            "How many people live in China?",
            "Summarize this text",
            "What should I eat?",
            "Can you help me with my homework?",
        )
    ),
)

_PIECE = re.compile(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+|\s")


@dataclass(frozen=True)
class Task:
    """One chat prompt and the text a right model answers with, up to `<|end|>`."""

    messages: list[dict[str, str]]
    answer: str
    kind: str


def count_tokens(text: str) -> int:
    """Tokens of `text` for texts drawn here (all their words are single tokens)."""
    return len(_PIECE.findall(text))


def facts_text(rng: random.Random, tokens: int, keys: list[str]) -> tuple[str, dict[str, str]]:
    """At most `tokens` tokens of facts about `keys` in their order, and what they state.

    One style rules a text; now and then a filler sentence stands between two facts. There is
    always one fact at least; when the keys run out, fillers take the rest of the room.
    """
    style = rng.choice(("{}={};", "{} = {}; ", "{} is {}. ", "The value of {} is {}. "))
    filler_share = rng.choice((0.0, 0.0, 0.1, 0.3))
    facts: dict[str, str] = {}
    text = ""
    used = 0
    while True:
        fact = None
        if len(facts) < len(keys) and not (facts and rng.random() < filler_share):
            fact = (keys[len(facts)], draw_value(rng))
            part = style.format(*fact)
        else:
            part = rng.choice(FILLERS) + " "
        used += count_tokens(part.rstrip())  # its last space belongs to the next word
        if facts and used > tokens:
            return text.rstrip(), facts
        text += part
        if fact:
            facts[fact[0]] = fact[1]


def draw_value(rng: random.Random) -> str:
    """A number of two to four digits, each length as likely as the others."""
    digits = rng.randint(2, 4)
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def recall_turn(rng: random.Random, facts: dict[str, str], keys: list[str]) -> tuple[str, str]:
    """A question about `keys`, all of them in `facts`, and its answer: a sentence for each key."""
    answer = " ".join(f"The value of {key} is {facts[key]}." for key in keys)
    if len(keys) == 1:
        return rng.choice(("What is the value of {}?", "What is {}?")).format(keys[0]), answer
    listed = ", ".join(keys[:-1]) + " and " + keys[-1]
    return f"What are the values of {listed}?", answer


def copy_turn(rng: random.Random, words: int) -> tuple[str, str]:
    """A text of `words` different nouns to say again; 256 nouns at most."""
    text = " ".join(rng.sample(NOUNS, min(words, len(NOUNS))))
    return rng.choice(("Copy: ", "Repeat: ", "Say: ")) + text, text


def count_turn(rng: random.Random, terms: int) -> tuple[str, str]:
    """Counting `terms` numbers up from below 100, by ones, twos, fives or tens."""
    step = rng.choice((1, 1, 1, 2, 5, 10))
    start = rng.randrange(100) if step == 1 else step * rng.randrange(20)
    last = start + step * (terms - 1)
    by = f" by {step}" if step > 1 else ""
    numbers = range(start, last + 1, step)
    return f"Count from {start} to {last}{by}.", " ".join(map(str, numbers))


def sum_turn(rng: random.Random) -> tuple[str, str]:
    """A sum of two numbers below 50."""
    a, b = rng.randrange(50), rng.randrange(50)
    asked = rng.choice(("What is {} plus {}?", "What is {} + {}?", "Add {} and {}."))
    return asked.format(a, b), f"{a} plus {b} is {a + b}."


def greeting_turn(rng: random.Random) -> tuple[str, str]:
    """A greeting, a question about the model, or one outside its tasks, loosely punctuated."""
    said, answer = rng.choice(REPLIES)
    bare = said.rstrip("?")
    end = "?" if bare != said else rng.choice(("", ".", "!"))
    said = bare + rng.choice((end, end, end, ""))
    return rng.choice((said, said, said.lower())), answer


def draw(kind: str, seed: int, context_tokens: int | None = None, size: int | None = None) -> Task:
    """The task of this kind and seed.

    Args:
        kind: one of `KINDS`.
        seed: any integer. Training draws from its own streams, so every seed here is fresh.
        context_tokens: tokens of facts in the system message. None: 256 for recall, no system
            message for the rest. Trained up to 1,536, measured up to 2,000.
        size: recall: how many keys are asked for, spread evenly over the context (1);
            copy: words (40, at most 256); count: terms (20). The other kinds have no size.

    Raises:
        ValueError: `kind` is none of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    rng = random.Random(f"task/{kind}/{seed}/{context_tokens}/{size}")
    if kind == "recall" and context_tokens is None:
        context_tokens = 256
    messages = []
    facts: dict[str, str] = {}
    if context_tokens is not None:
        text, facts = facts_text(rng, context_tokens, rng.sample(NOUNS, len(NOUNS)))
        messages.append({"role": "system", "content": text})
    if kind == "recall":
        asked, answer = recall_turn(rng, facts, spread_keys(rng, list(facts), size or 1))
    elif kind == "copy":
        asked, answer = copy_turn(rng, size or 40)
    elif kind == "count":
        asked, answer = count_turn(rng, size or 20)
    else:
        asked, answer = (sum_turn if kind == "sum" else greeting_turn)(rng)
    return Task([*messages, {"role": "user", "content": asked}], answer, kind)


def spread_keys(rng: random.Random, keys: list[str], count: int) -> list[str]:
    """One key out of each of `count` equal parts of `keys`, shuffled; fewer if there are fewer."""
    count = min(count, len(keys))
    edges = [len(keys) * part // count for part in range(count + 1)]
    chosen = [rng.choice(keys[low:high]) for low, high in pairwise(edges)]
    rng.shuffle(chosen)
    return chosen
