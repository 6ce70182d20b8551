"""Adapters: LoRA and kin. Small files that change the weights of a model, merged into them once when it is loaded."""
