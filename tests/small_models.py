"""Small models of several families, built from their configurations with weights large enough to matter."""

from typing import Any

import torch
import transformers

torch.set_num_threads(1)

N_BLOCKS = 3
WIDTH = 32
N_TOKENS = 60

_LLAMA = {
    "hidden_size": WIDTH,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": N_TOKENS,
    "max_position_embeddings": 64,
}
_GPT2 = {
    "n_embd": WIDTH,
    "n_layer": N_BLOCKS,
    "n_head": 4,
    "vocab_size": N_TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_OPT = {
    "hidden_size": WIDTH,
    "ffn_dim": 64,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "vocab_size": N_TOKENS,
    "word_embed_proj_dim": WIDTH,
    "max_position_embeddings": 64,
}
_BLOOM = {"hidden_size": WIDTH, "n_layer": N_BLOCKS, "n_head": 4, "vocab_size": N_TOKENS}
_T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": N_BLOCKS, "num_heads": 4, "vocab_size": N_TOKENS}
_BART = {
    "d_model": WIDTH,
    "encoder_layers": N_BLOCKS,
    "decoder_layers": N_BLOCKS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": N_TOKENS,
}

# family: (configuration, its arguments, base model, model with a head)
_MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "gpt_neox": ("GPTNeoXConfig", _LLAMA | {"eos_token_id": 0}, "GPTNeoXModel", "GPTNeoXForCausalLM"),
    "gpt2": ("GPT2Config", _GPT2, "GPT2Model", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", _LLAMA, "LlamaModel", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", _LLAMA | {"num_key_value_heads": 2}, "Qwen2Model", "Qwen2ForCausalLM"),
    "bert": ("BertConfig", _LLAMA, "BertModel", "BertForMaskedLM"),
    "roberta": ("RobertaConfig", _LLAMA, "RobertaModel", "RobertaForMaskedLM"),
    "opt": ("OPTConfig", _OPT, "OPTModel", "OPTForCausalLM"),
    "bloom": ("BloomConfig", _BLOOM, "BloomModel", "BloomForCausalLM"),
    "t5": ("T5Config", _T5, "T5Model", "T5ForConditionalGeneration"),
    "bart": ("BartConfig", _BART, "BartModel", "BartForConditionalGeneration"),
    "albert": ("AlbertConfig", _LLAMA | {"embedding_size": 16}, "AlbertModel", "AlbertForMaskedLM"),
    "deberta": (
        "DebertaV2Config",
        _LLAMA | {"relative_attention": True, "norm_rel_ebd": "layer_norm"},
        "DebertaV2Model",
        "DebertaV2ForMaskedLM",
    ),
    "clip": ("CLIPTextConfig", _LLAMA, "CLIPTextModel", "CLIPTextModel"),
}
CORE = ("gpt_neox", "gpt2", "llama", "bert", "opt")
FAMILIES = (*CORE, "qwen2", "roberta", "bloom", "t5")


def small_model(family: str, *, head: bool = False, **changes: Any) -> Any:
    """Build the model of a family, always with the same weights, in eval mode."""
    config, arguments, base, headed = _MODELS[family]
    torch.manual_seed(0)
    model = getattr(transformers, headed if head else base)(getattr(transformers, config)(**(arguments | changes)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter.data, std=0.2)
    return model.eval()
