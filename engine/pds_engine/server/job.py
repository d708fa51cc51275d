"""From a client's body to its work: prompts, sampling, and the shape of the answer (pure)."""

import secrets
import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from pds_engine.config import EngineConfig
from pds_engine.errors import InvalidRequest, TooLong, UnknownModel
from pds_engine.messages import Sampling, Submit
from pds_engine.messages.bounds import BIAS, MAX_BIASED, SEED_BITS
from pds_engine.request_fields import request_fields
from pds_engine.server.headers import InternalHeaders
from pds_engine.server.protocol import ChatRequest, Common, CompletionRequest, Templated
from pds_engine.text.emit import Rules
from pds_engine.text.stops import Stops
from pds_engine.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
"""For a completion that names none, as OpenAI has it; a chat may fill the context."""


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request: choice i is submits[i]; all have the same rules."""

    id: str
    created: int
    model: str
    submits: tuple[Submit, ...]
    rules: Rules
    eos_ids: tuple[int, ...]
    copies: int
    """Choices of each prompt (n)."""
    prompt_tokens: int
    """Tokens of all prompts; each prompt counts once, however many choices it has."""
    stream: bool
    include_usage: bool
    journal: bool
    first_only: bool
    """role=prefill: the answer is the first token's events."""
    replayed: int
    """So many first tokens make no event: another group sends theirs, or has sent it before."""
    echoes: tuple[str, ...] = field(default=())
    """Per choice, the prompt's text that goes before the output."""
    prompt_logprobs: int | None = None
    """How many of the likeliest stand beside each token of the prompt; None: no scores at all."""


def check_model(name: str | None, config: EngineConfig) -> None:
    """Raises UnknownModel unless `name` is the one that is served, or None."""
    if name is not None and name != config.model.name:
        raise UnknownModel(
            f"the model {name!r} is not served here",
            hint=f"this engine serves {config.model.name!r}",
            param="model",
        )


def text_prompts(
    body: CompletionRequest, tokenizer: Tokenizer, max_model_len: int
) -> list[list[int]]:
    """The prompts of a completion as ids."""
    if body.suffix:
        raise InvalidRequest("suffix is not served", param="suffix")
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise InvalidRequest("best_of above n is not served", param="best_of")
    prompt = body.prompt
    texts = [prompt] if isinstance(prompt, str) else [p for p in prompt if isinstance(p, str)]
    if texts:
        special = body.add_special_tokens is not False
        return [encode(text, tokenizer, max_model_len, "prompt", special) for text in texts]
    lists = [p for p in prompt if isinstance(p, list)]
    return lists or [[p for p in prompt if isinstance(p, int)]]


def chat_prompt(body: Templated, tokenizer: Tokenizer, max_model_len: int) -> list[int]:
    """The ids that the chat template makes of messages.

    Raises:
        InvalidRequest: there is no template, or it refuses them.
    """
    template = tokenizer.template
    if template is None:
        raise InvalidRequest(
            "this model has no chat template", hint="use /v1/completions", param="messages"
        )
    going_on = bool(body.continue_final_message)
    if going_on and body.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    messages = [_plain(message.model_dump(exclude_none=True)) for message in body.messages]
    last = messages[-1].get("content") if going_on else None
    variables = {
        **{name: tokenizer.special(name) for name in ("bos_token", "eos_token", "pad_token")},
        **(body.chat_template_kwargs or {}),
        "messages": messages,
        "tools": body.tools or None,
        "documents": None,
        "add_generation_prompt": not going_on and body.add_generation_prompt is not False,
    }
    text = template.render(variables, max_length=max_model_len * tokenizer.longest)
    if isinstance(last, str) and last.strip() in text:
        text = text[: text.rindex(last.strip()) + len(last.strip())]
    return encode(text, tokenizer, max_model_len, "messages", bool(body.add_special_tokens))


def encode(
    text: str, tokenizer: Tokenizer, max_model_len: int, param: str, special: bool
) -> list[int]:
    """Ids of a prompt; one that cannot fit is refused before the tokenizer works on it.

    Raises:
        TooLong: they are more than `max_model_len`.
    """
    if len(text) > max_model_len * tokenizer.longest:
        raise TooLong(
            f"the text's {len(text)} characters cannot fit the context of {max_model_len} tokens",
            param=param,
        )
    found = tokenizer.encoding(text, special=special)
    check_length(found, max_model_len, param)
    return list(found.ids)


def check_length(tokens: Sized, max_model_len: int, param: str) -> None:
    """Raises TooLong when they are more than the context holds."""
    if len(tokens) > max_model_len:
        raise TooLong(
            f"{param}: {len(tokens)} tokens exceed the context of {max_model_len}", param=param
        )


def make(
    body: CompletionRequest | ChatRequest,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    config: EngineConfig,
    internal: InternalHeaders,
) -> Job:
    """The work of one request.

    Raises:
        InvalidRequest, TooLong: a bound that the model or the configuration sets.
    """
    chat = isinstance(body, ChatRequest)
    resumed = _resumed(body, prompts, tokenizer, internal)
    wants = request_fields(stream=body.stream, n=body.n, seed=body.seed)
    copies = wants.choices
    count = len(prompts) * copies
    if count > config.most_open:
        raise InvalidRequest(
            f"{count} choices are more than this engine takes at once",
            param="n" if copies > 1 else "prompt",
        )
    id = internal.request_id or f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
    name = f"{id}.{internal.attempt}" if internal.attempt else id
    given = wants.seed if internal.seed is None else internal.seed
    limit = config.http.request_timeout
    deadline = None if limit is None else time.time() + limit
    seed = secrets.randbits(SEED_BITS) if given is None else given
    stop_ids = _stop_ids(body, tokenizer)
    stream = wants.stream
    journal = internal.journal and stream and count == 1
    submits: list[Submit] = []
    for prompt in prompts:
        max_tokens = _max_tokens(prompt, body, tokenizer, config, "messages" if chat else "prompt")
        for copy in range(copies):
            submits.append(
                Submit(
                    request_id=name if count == 1 else f"{name}#{len(submits)}",
                    prompt_ids=tuple(prompt),
                    output_ids=resumed,
                    sampling=_sampling(body, max_tokens, stop_ids, tokenizer.vocabulary, copy),
                    seed=seed,
                    priority=body.priority or 0,
                    deadline=deadline,
                    role_hint=config.role,
                    source=internal.source,
                    since=internal.created,
                    resumable=journal,
                )
            )
    options = body.stream_options
    echo = isinstance(body, CompletionRequest) and bool(body.echo)
    echoes = [tokenizer.decode(prompt) for prompt in prompts] if echo else []
    return Job(
        id=id,
        created=internal.created or int(time.time()),
        model=config.model.name,
        submits=tuple(submits),
        rules=Rules(
            tokenizer=tokenizer,
            stops=Stops(_stops(body)),
            stop_ids=frozenset(stop_ids),
            min_tokens=body.min_tokens or 0,
            include_stop=bool(body.include_stop_str_in_output),
            skip_special=body.skip_special_tokens is not False,
        ),
        eos_ids=tokenizer.eos_ids,
        copies=copies,
        prompt_tokens=sum(map(len, prompts)),
        stream=stream,
        include_usage=bool(options and options.include_usage),
        journal=journal,
        first_only=config.role == "prefill",
        replayed=(len(resumed) + (config.role == "decode")) if stream else 0,
        echoes=tuple(echo for echo in echoes for _ in range(copies)),
        prompt_logprobs=body.prompt_logprobs,
    )


def _resumed(
    body: Common, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, internal: InternalHeaders
) -> tuple[int, ...]:
    if body.pds_resume is None:
        return ()
    if not internal.signed:
        raise InvalidRequest("pds_resume is for the router alone", param="pds_resume")
    if len(prompts) * (body.n or 1) != 1:
        raise InvalidRequest("only a single choice can be resumed", param="pds_resume")
    check_ids(body.pds_resume.output_ids, tokenizer.vocabulary, "pds_resume")
    return tuple(body.pds_resume.output_ids)


def _max_tokens(
    prompt: Sequence[int],
    body: CompletionRequest | ChatRequest,
    tokenizer: Tokenizer,
    config: EngineConfig,
    param: str,
) -> int:
    """The request's max_tokens, when it fits behind this prompt."""
    if not prompt:
        raise InvalidRequest("the prompt is empty", param=param)
    check_ids(prompt, tokenizer.vocabulary, param)
    left = config.max_model_len - len(prompt)
    wanted = body.max_tokens
    if isinstance(body, ChatRequest):
        wanted = body.max_completion_tokens or wanted or max(left, 1)
    wanted = wanted or min(DEFAULT_MAX_TOKENS, max(left, 1))
    if wanted > left:
        raise TooLong(
            f"the prompt's {len(prompt)} tokens and max_tokens {wanted} exceed the context of"
            f" {config.max_model_len} tokens",
            param=param if left < 1 else "max_tokens",
        )
    if (body.min_tokens or 0) > wanted:
        raise InvalidRequest("min_tokens is above max_tokens", param="min_tokens")
    return wanted


def _sampling(
    body: CompletionRequest | ChatRequest,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    vocabulary: int,
    choice: int,
) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-6),
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_bias(body.logit_bias or {}, vocabulary),
        stop_token_ids=stop_ids,
        min_tokens=body.min_tokens or 0,
        logprobs=_logprobs(body),
        choice=choice,
        prompt_logprobs=_prompt_logprobs(body),
    )


def _logprobs(body: CompletionRequest | ChatRequest) -> int | None:
    if isinstance(body, CompletionRequest):
        return body.logprobs
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _prompt_logprobs(body: CompletionRequest | ChatRequest) -> int | None:
    """By its own field, or by the scores of an answer that begins with its prompt."""
    asked = body.prompt_logprobs
    if asked is not None and body.stream:
        raise InvalidRequest("prompt_logprobs is not served with stream", param="prompt_logprobs")
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        return max(asked or 0, body.logprobs)
    return asked


def _bias(given: dict[str, Any], vocabulary: int) -> dict[int, float]:
    if len(given) > MAX_BIASED:
        raise InvalidRequest(f"logit_bias names more than {MAX_BIASED} tokens", param="logit_bias")
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocabulary):
            raise InvalidRequest(f"logit_bias: {key[:32]!r} is no token id", param="logit_bias")
        if isinstance(value, bool) or not isinstance(value, int | float) or not BIAS.holds(value):
            raise InvalidRequest(
                f"logit_bias[{key}] is not a number from -100 to 100", param="logit_bias"
            )
        bias[int(key)] = float(value)
    return bias


def _stops(body: Common) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _stop_ids(body: Common, tokenizer: Tokenizer) -> tuple[int, ...]:
    given = body.stop_token_ids or []
    check_ids(given, tokenizer.vocabulary, "stop_token_ids")
    return tuple(sorted({*given, *(() if body.ignore_eos else tokenizer.eos_ids)}))


def check_ids(ids: Sequence[int], vocabulary: int, param: str) -> None:
    """Raises InvalidRequest when an id is not in the vocabulary."""
    largest = max(ids, default=0)
    if largest >= vocabulary:
        raise InvalidRequest(
            f"{param}: token id {largest} is not below the vocabulary's {vocabulary}", param=param
        )


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates know them: content as text, and system for OpenAI's developer."""
    content = message.get("content", "")
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": content}
