"""Text in, token ids out, and back: tokenizers, detokenization, stop strings, chat templates, calls of tools.

Knows checkpoints' tokenizer data; knows nothing of engines, requests or HTTP.
"""
