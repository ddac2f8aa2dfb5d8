"""Where weights come from and what they are: files, headers, specs and the hub.

Knows formats and architectures. Does not know how a model is run: it hands out a `Checkpoint`, whose
tensors are places on disk.
"""
