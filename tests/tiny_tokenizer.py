"""A small real tokenizer for tiny checkpoints: byte-level BPE, trained in a moment on a fixed text."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = """\
The quick brown fox jumps over the lazy dog, and the dog, being lazy, lets the fox jump.
def forward(self, hidden, positions):
    return self.norm(hidden + self.attention(hidden, positions))
for token in tokens: print(token, end="")  # the number of tokens is 1234567890
Größe, naïve café, Ελληνικά, русский, 日本語, العربية, emoji 🙂🚀
"""


@dataclass(frozen=True)
class TinyTokenizer:
    """The tokenizer and its parts as a GGUF file stores them."""

    tokenizer: Tokenizer
    tokens: list[str]  # one for each id of the model's vocabulary, padded
    merges: list[str]
    num_used: int  # ids that the tokenizer knows; the rest of the vocabulary is padding
    num_special: int = len(SPECIAL)
    chat_template: str = CHAT_TEMPLATE

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        self.tokenizer.save(str(directory / "tokenizer.json"))
        fields = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[0],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": CHAT_TEMPLATE,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(fields, indent=2))


@functools.cache
def train_tokenizer(vocab_size: int) -> TinyTokenizer:
    """Byte-level BPE in the manner of GPT-2 with at most `vocab_size` tokens (at least 259: the bytes)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    by_id = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return TinyTokenizer(tokenizer, tokens, [" ".join(merge) for merge in merges], len(by_id))
