"""Text in, token ids out, and back: tokenizers, incremental detokenization, stop strings, chat templates, calls.

Knows checkpoints' tokenizer data; knows nothing of engines, requests or HTTP.
"""
