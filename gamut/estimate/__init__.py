"""What a run would take on devices that are not here, from an account of its step on tensors without values."""
