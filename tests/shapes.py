"""Sizes of models that tests write."""

STAND_IN = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 1500,
    "hidden_size": 320,
    "intermediate_size": 512,
    "num_hidden_layers": 9,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
"""Larger than the tiny reasoner in every size, as a Qwen3 is."""

TINY_DRAFT = {
    "hidden_size": 192,
    "target_hidden_size": 192,
    "vocab_size": 640,
    "draft_vocab_size": 512,
    "eagle_aux_hidden_state_layer_ids": (1, 3, 4),
    "intermediate_size": 160,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
"""A draft of the tiny reasoner whose layer has sizes of its own."""
