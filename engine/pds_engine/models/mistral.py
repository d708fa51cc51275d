"""Mistral: Llama whose first version sees a sliding window of tokens.

A window as long as the context changes nothing; `registry.check` refuses a shorter one. Without a
key `sliding_window` there is one of 4,096 tokens: later versions say null.
"""

from pds_engine.spec import Family

FAMILY = Family(architecture="MistralForCausalLM", model_type="mistral", kv_heads=8, window=4096)
