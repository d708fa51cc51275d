"""The skeleton on a real Kubernetes: P and D in different pods, and real clients."""

import httpx
import openai
import pytest
from serving import Serving

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def served(chat: Serving) -> Serving:
    chat.sized(prefill=1, decode=1)
    return chat


def test_the_openai_sdk_streams_a_chat_and_a_completion(served: Serving) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        question = "The value of fig is 12. The value of plum is 47. What is the value of plum?"
        chat = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(chat)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert "47" in text
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 1
        whole = client.completions.create(
            model="tiny", prompt="The value of", temperature=0, max_tokens=8
        )
        streamed = client.completions.create(
            model="tiny", prompt="The value of", temperature=0, max_tokens=8, stream=True
        )
        assert "".join(c.choices[0].text for c in streamed) == whole.choices[0].text


def test_the_pages_went_through_both_roles_and_are_free_again(served: Serving) -> None:
    before = [s["steps_done"] for role in ("prefill", "decode") for s in served.states(role)]
    with httpx.Client() as client:
        assert served.complete(client, list(range(16, 216)), max_tokens=8).status_code == 200
    took = (2, 7)  # 200 tokens by chunks of 128; all tokens but the first

    def counted() -> bool:
        """The servers hear of steps a little after the client hears of their tokens."""
        after = [s["steps_done"] for role in ("prefill", "decode") for s in served.states(role)]
        return all(a >= b + n for a, b, n in zip(after, before, took, strict=True))

    served.until("steps of both roles", counted, 10)

    def free() -> bool:
        states = [*served.states("prefill"), *served.states("decode")]
        return all(s["kv_used"] == 0 and s["in_flight"] == 0 for s in states)

    served.until("free of pages", free, 10)


def test_kubectl_get_pds_tells_the_truth(served: Serving) -> None:
    row = served.cluster.kubectl("-n", served.namespace, "get", "pds", "--no-headers").split()
    assert row[:6] == ["chat", "tiny", "1/1", "1/1", "True", "Complete"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": [5] * 3000}, 400, "2048"),
        ({"prompt": "x", "model": "other"}, 404, "other"),
        ({"prompt": "x" * (10 << 20)}, 413, "bytes"),
    ],
)
def test_bad_input_gets_a_clear_error(
    served: Serving, body: dict[str, object], status: int, named: str
) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", json={"model": "tiny", **body}, timeout=30)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert named in f"{error['message']} {error['param']}"
