"""Memory, time and disk of a plan before it starts, from stages run on tensors without numbers."""
