"""Llama 2 and 3, and whatever names itself LlamaForCausalLM."""

from pds_engine.spec import Family

FAMILY = Family(architecture="LlamaForCausalLM", model_type="llama")
