"""The base: the checkpoint that a run starts from, its digest, its tensors and their fixed-point form."""
