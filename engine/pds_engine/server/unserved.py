"""Fields of OpenAI's and vLLM's APIs that would change the answer and are not served. They are
refused by name: an answer that ignored such a field would look like one that honours it.

One line a field; its type says which values change nothing and are accepted beside null. Hints
and labels (`user`, `metadata`, `store`, `service_tier`, `parallel_tool_calls`,
`prediction`, `prompt_cache_key`, `safety_identifier`, `request_id`, …) are ignored like unknown
ones. Sources: OpenAI's API reference; vLLM's entrypoints/openai/**/protocol.py.
"""

from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from pds_engine.server.strict import Body


def _but(*harmless: object) -> AfterValidator:
    """Refuses every value that is neither null nor one of these."""

    def check(value: Any) -> Any:
        # By type too: to Python, 0 is False and 1 is True.
        if value is None or any(type(value) is type(h) and value == h for h in harmless):
            return value
        raise PydanticCustomError("unserved", "is not served here: leave it out")

    return AfterValidator(check)


Never = Annotated[Any, _but()]
Empty = Annotated[Any, _but([], {}, "")]
"""An empty list or object asks for nothing."""
Off = Annotated[Any, _but(False)]
On = Annotated[Any, _but(True)]
"""The default; false asks for something else."""
One = Annotated[Any, _but(1, 1.0)]
Nothing = Annotated[Any, _but("none")]
Free = Annotated[Any, _but("none", "auto", "")]
Text = Annotated[Any, _but(["text"], [])]
Medium = Annotated[Any, _but("medium")]


class Unserved(Body):
    """Of completions and chat completions."""

    # Constraints on the output.
    structured_outputs: Empty = None
    structural_tag: Never = None
    guided_json: Never = None
    guided_regex: Never = None
    guided_choice: Empty = None
    guided_grammar: Never = None
    guided_whitespace_pattern: Never = None
    bad_words: Empty = None
    allowed_token_ids: Never = None
    logits_processors: Empty = None
    # The same, as SGLang, llama.cpp and TGI call it.
    regex: Never = None
    ebnf: Never = None
    json_schema: Never = None
    grammar: Never = None
    # Other ways to choose tokens, and to end.
    use_beam_search: Off = None
    length_penalty: One = None
    early_stopping: Off = None
    watermarking: Off = None
    thinking_token_budget: Never = None
    repetition_detection: Never = None
    # What the prompt is.
    truncate_prompt_tokens: Never = None
    # What the answer has besides its text.
    logprob_token_ids: Never = None
    return_token_ids: Off = None
    return_tokens_as_token_ids: Off = None
    return_prompt_text: Off = None
    # How and with whom it is computed.
    cache_salt: Never = None
    kv_transfer_params: Empty = None
    ec_transfer_params: Empty = None
    vllm_xargs: Empty = None


class UnservedOfText(Body):
    """Only of completions."""

    prompt_embeds: Never = None


class Templating(Body):
    """Of requests whose messages make a prompt: chat completions and /tokenize."""

    chat_template: Never = None
    documents: Empty = None
    mm_processor_kwargs: Empty = None
    media_io_kwargs: Empty = None


class UnservedOfChat(Body):
    """Only of chat completions."""

    echo: Off = None
    functions: Empty = None
    function_call: Free = None
    modalities: Text = None
    audio: Never = None
    web_search_options: Never = None
    moderation: Never = None
    reasoning_effort: Nothing = None
    verbosity: Medium = None
    include_reasoning: On = None
