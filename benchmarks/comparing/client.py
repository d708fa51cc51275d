"""One client for all servers: streams completions over a connection each, and notes when events
come. On asyncio's streams, since it shares the cores with what it measures."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

PATH = "/v1/completions"


@dataclass(slots=True)
class Answer:
    """When it was asked, and when each event with text came."""

    asked: float
    times: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds until the first token."""
        return self.times[0] - self.asked if self.times else float("inf")

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def stream(
    url: str, prompt: Sequence[int], tokens: int, limit: float | None = None
) -> Answer:
    """Ask for so many tokens, greedily, and read to the end, or until `limit` seconds are over."""
    host, _, port = url.removeprefix("http://").partition(":")
    asked = {
        "model": "default",
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
    }
    body = json.dumps(asked).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    answer = Answer(time.perf_counter())
    try:
        async with asyncio.timeout(limit):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(head.encode() + body)
                status = await reader.readuntil(b"\r\n\r\n")
                if b" 200 " not in status.partition(b"\r\n")[0]:
                    answer.error = (status + await reader.read(300)).decode(errors="replace")
                    return answer
                await _events(reader, answer)
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


async def _events(reader: asyncio.StreamReader, answer: Answer) -> None:
    """Until the end: chunks' sizes and journals are lines like any other, and mean nothing here."""
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:]).get("choices")
            if choices and choices[0].get("text"):
                answer.times.append(time.perf_counter())
            elif b'"error"' in line:
                answer.error = line.decode(errors="replace")
                return
        elif line.startswith(b"data: [DONE]"):
            return
    answer.error = answer.error or "the stream broke off"


async def together(url: str, prompts: Sequence[Sequence[int]], tokens: int) -> list[Answer]:
    """All at once.

    Raises:
        RuntimeError: one was refused, or broke off.
    """
    answers = await asyncio.gather(*(stream(url, prompt, tokens) for prompt in prompts))
    for answer in answers:
        if answer.error or not answer.times:
            raise RuntimeError(f"{url}: {answer.error[-500:] or 'no tokens'}")
    return answers


def prefill_seconds(answers: Sequence[Answer]) -> float:
    """Until each of them, asked at once, had its first token."""
    return max(a.times[0] for a in answers) - min(a.asked for a in answers)


def step_seconds(answers: Sequence[Answer]) -> float:
    """A step's, while all had begun and none had ended; events may hold several tokens each when
    a client is slow, so this is of the whole time and not of single gaps."""
    begun, ended = max(a.times[0] for a in answers), min(a.times[-1] for a in answers)
    within = [sum(begun < at <= ended for at in a.times) for a in answers]
    steps = sum(within) / len(answers)
    return (ended - begun) / steps if steps else float("nan")
