"""The JSON files of the demo model's folder."""

from pathlib import Path

from dynaserve.demo import weights as shape
from dynaserve.demo.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, TURN_END, VOCAB_SIZE

MAX_POSITIONS = 8192

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

_PAD_ID, _BOS_ID, _EOS_ID, _TURN_END_ID = (
    SPECIAL_TOKENS.index(token) for token in (PAD, BOS, EOS, TURN_END)
)

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": _BOS_ID,
    "eos_token_id": _EOS_ID,
    "pad_token_id": _PAD_ID,
    "head_dim": shape.HEAD_DIM,
    "hidden_act": "silu",
    "hidden_size": shape.HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": shape.INTERMEDIATE,
    "max_position_embeddings": MAX_POSITIONS,
    "mlp_bias": False,
    "num_attention_heads": shape.HEADS,
    "num_hidden_layers": shape.LAYERS,
    "num_key_value_heads": shape.KV_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    # Both spellings: older readers look for the first.
    "torch_dtype": "float32",
    "dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}

GENERATION_CONFIG: dict[str, object] = {
    "bos_token_id": _BOS_ID,
    "eos_token_id": [_EOS_ID, _TURN_END_ID],
    "pad_token_id": _PAD_ID,
}

TOKENIZER_CONFIG: dict[str, object] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "additional_special_tokens": [*SPECIAL_TOKENS[3:]],
    "clean_up_tokenization_spaces": False,
    "model_max_length": MAX_POSITIONS,
}

SPECIAL_TOKENS_MAP: dict[str, object] = {
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "additional_special_tokens": [*SPECIAL_TOKENS[3:]],
}
