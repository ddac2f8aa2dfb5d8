"""Write tests/golden/tokenizer/*.json: what llama.cpp's tokenizer makes of a corpus.

    python tests/tools/make_tokenizer_goldens.py [FOLDER OF GGUF FILES]

Needs llama-cpp-python and gguf. The folder (by default ~/.cache/outpace-models) holds the real models;
one that is missing keeps its golden file as it is. Two more files need no model: a small byte-level
vocabulary read with every pre-tokenizer that Outpace knows, and a small SentencePiece vocabulary.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from outpace.text.pretokenizers import PRE_TOKENIZERS

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizer"
REAL = {
    "smollm2-135m": "smollm2-135m-instruct-q4_1.gguf",
    "qwen2.5-coder": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
}

CORPUS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", "\r\n", "\r\n\r\n \r\n",
    " \n \n\n \t\t \t\n  \n   \n    ", "Hello world", " Hello world",
    "Hello, world!  How's it going?  I'LL we'Ve DON'T 's 'T", "'", "''", "don'ſt 'S'm'LL",
    "def f(x):\n    if x > 1:\n        return x**2  # sq\n\n\nclass A(B):\n\tpass\n",
    "for(int i=0;i<10;++i){a[i]+=b[i]<<3;}\r\n\r\n#include <x.h>\r\n",
    "0 12 123 1234 12345678901234567890 3.14159e-10 0xDEADBEEF １２３ ٣٤٥ ½ Ⅷ ²",
    "中文测试，你好。日本語のテスト、カタカナ。한국어 시험입니다.",
    "مرحبا بالعالم ، كيف حالك؟ שלום עולם \u200f",
    "สวัสดีชาวโลก ภาษาไทย", "नमस्ते दुनिया क्षत्रिय বাংলা தமிழ் తెలుగు",
    "\u00e9 e\u0301 \u00f1 n\u0303 \u00c5 A\u030a ﬁ ﬀ ǅ ŉ \u1e9b\u0323", "Z̸̢̛a͙͚l̵g̷o̶",
    "👨\u200d👩\u200d👧\u200d👦 👍🏽 🏳\ufe0f\u200d🌈 🇩🇪 😀😃 ❤\ufe0f",
    "\x00\x01\x02\x07\x08\x0b\x0c\x0e\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f\xa0\xad\u200b\u200d\u2028\u2029"
    "\u202e\ufeff\ufffd\ufffe\uffff",
    "a\u00a0b\u2003c\u3000d\u1680e\u202ff\u205fg\u0085h", " " * 100, "x" + " " * 77 + "y", "\t" * 33 + "z",
    "\n" * 50 + "a", (" " * 7 + "\n") * 9, "a" * 300, "ab" * 200, "=" * 100, "-" * 79,
    "▁▁ ▁ a▁b <0x0A> <0xFF> Ġ Ċ ▁▁▁",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|></s><s><unk>[INST] x [/INST]<|eot_id|><|begin_of_text|>x",
    "<|im_start|", "<<s>>", " <s> </s> ", "x</s>y", "<|im_start|><|im_start|>  <|im_end|>x",
    "<fim_prefix>a<fim_suffix>b<fim_middle><reponame><file_sep><|fim_pad|>",
    "ÉCOLE école aÉb CamelCaseWord HTMLParser iPhone XMLhttpRequest ΑΒΓαβγ ДОМдом",
    "https://example.com/a?b=c&d=e#f user@host.org $HOME/.bashrc C:\\Users\\x",
    "𝕳𝖊𝖑𝖑𝖔 𐍈 𠜎 𒀀 🧑\u200d🚀", "…—–“”‘’«»¿¡€£¥§©®™°±×÷", "¹²³ ⁴ ① ㊀ Ⅳ ↃↄⰀ 𞤀",
    "!?.,;: (a) [b] {c} <d> `e` ~f ^g |h \\i /j +k =l *m &n %o $p #q @r",
    "word\u0301s mark\u0902\u0903 ก็ \u0e47 \u094d", "   leading and trailing   ", "a  b   c    d     e",
    " \u00a0 \u2003 x", "[ \u3000あ \u3000“", "tab\tsep\t\tvals \t mixed \t", "'s't're've'm'll'd'S'T",
    "I'M YOU'RE WE'VE I'D THEY'LL it's", "1,234,567.89 10-20 a1b2c3 v1.2.3 7th",
    "line1\rline2\r\rline3\n\rline4", "x=\n\n\n\n\ny  \n\n  z",
]  # fmt: skip


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(_level: int, _text: bytes, _data: int) -> None: ...


class LlamaTokenizer:
    """llama.cpp's own tokenizer of a GGUF file."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        self._model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        room = 3 * len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        assert count >= 0
        return list(ids[:count])

    def ends(self) -> list[int]:
        return [i for i in range(self.size) if llama_cpp.llama_vocab_is_eog(self._vocab, i)]

    def piece(self, token_id: int, *, special: bool = True) -> bytes:
        buffer = ctypes.create_string_buffer(4096)
        count = llama_cpp.llama_token_to_piece(self._vocab, token_id, buffer, 4096, 0, special)
        assert count >= 0
        return buffer.raw[:count]


def encodings(llama: LlamaTokenizer) -> dict[str, object]:
    """The corpus with and without special tokens, and the ids that end a generation."""
    plain = [llama.encode(text, add_special=False, parse_special=False) for text in CORPUS]
    special = [llama.encode(text, add_special=True, parse_special=True) for text in CORPUS]
    return {"texts": CORPUS, "plain": plain, "special": special, "ends": llama.ends()}


def write_vocabulary(path: Path, fields: dict[str, object]) -> None:
    """A GGUF file with nothing but a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(str(fields["model"]))
    writer.add_tokenizer_pre(str(fields["pre"]))
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    if "merges" in fields:
        writer.add_token_merges(fields["merges"])
    if "scores" in fields:
        writer.add_token_scores(fields["scores"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def llama_for(fields: dict[str, object]) -> LlamaTokenizer:
    """llama.cpp's tokenizer of a vocabulary that is in no file yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocabulary(path, fields)
        return LlamaTokenizer(path)


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Trained on the corpus without splitting it, so that wrong splits show as other merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1100, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, max_token_length=10,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(merge) for merge in model["merges"]]


def splitters() -> dict[str, object]:
    """One small vocabulary with every pre-tokenizer: for each text, which of them give which ids."""
    tokens, merges = byte_level_vocabulary()
    fields = {"model": "gpt2", "tokens": tokens, "merges": merges, "types": [1] * len(tokens)}
    llamas = {pre: llama_for({**fields, "pre": pre}) for pre in PRE_TOKENIZERS}
    names = {pre: llamas[pre].encode("a", add_special=True, parse_special=False) for pre in llamas}
    groups: list[list[list[object]]] = []
    for text in CORPUS:
        by_ids: dict[tuple[int, ...], list[str]] = {}
        for pre, llama in llamas.items():
            ids = tuple(llama.encode(text, add_special=False, parse_special=False))
            by_ids.setdefault(ids, []).append(pre)
        # The commonest result is every pre-tokenizer's that is not named with another.
        ranked = sorted(by_ids.items(), key=lambda each: -len(each[1]))
        groups.append([[[] if i == 0 else pres, list(ids)] for i, (ids, pres) in enumerate(ranked)])
    return {**fields, "texts": CORPUS, "groups": groups, "a_with_special": names}


def scored() -> dict[str, object]:
    """A small SentencePiece vocabulary, some of whose characters have no token of their own."""
    rng = random.Random(5)
    text = "".join(CORPUS).replace(" ", "▁").replace("\0", "")  # llama.cpp reads tokens as C strings
    starts = [rng.randrange(len(text) - 8) for _ in range(700)]
    pieces = {text[s : s + n] for s in starts for n in range(2, rng.randint(3, 8))}
    characters = dict.fromkeys("".join(sorted(pieces)))
    singles = [c for c in characters if c.isascii() or c == "▁" or rng.random() < 0.5]
    words = sorted(p for p in pieces if p not in singles)
    tokens = ["<s>", *(f"<0x{i:02X}>" for i in range(256)), *singles, *words]
    tokens = list(dict.fromkeys(tokens))
    scores = [0.0] * 257 + [-float(s) for s in rng.sample(range(1, 10_000), len(tokens) - 257)]
    types = [3] + [6] * 256 + [1] * (len(tokens) - 257)
    fields = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "types": types}
    return {**fields, **encodings(llama_for(fields))}


def main() -> None:
    """Write what can be written here."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.home() / ".cache" / "outpace-models"
    GOLDEN.mkdir(parents=True, exist_ok=True)
    present = {name: folder / file for name, file in REAL.items() if (folder / file).is_file()}
    results = {name: encodings(LlamaTokenizer(path)) for name, path in present.items()}
    results |= {"splitters": splitters(), "scored": scored()}
    for name, result in results.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
        print(f"wrote {GOLDEN / name}.json")


if __name__ == "__main__":
    main()
