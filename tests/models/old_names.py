"""transformers' names of a ViT's tensors of before version 5, with which the public checkpoints were written."""

OLD = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layers.": "encoder.layer.",
}
