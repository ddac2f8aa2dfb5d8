"""tokenizer.json directories: the same ids as the `tokenizers` library gives, the same text back."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from outpace.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from outpace.text.bpe import SHORT_TEXT
from outpace.text.detokenizer import Detokenizer
from outpace.text.huggingface_template import template_from_directory
from outpace.text.huggingface_tokenizer import HuggingFaceCodec
from outpace.text.tokenizer import Tokenizer
from tiny_tokenizer import TEXT, train_tokenizer

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def train(tokenizer: Library, **settings: Any) -> Library:
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, **settings)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def byte_level() -> Library:
    tokenizer = Library(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    train(
        tokenizer, special_tokens=["<|bos|>", "<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken(" é ", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=20)
    return tokenizer


def sentencepiece_like() -> Library:
    """As Llama 2's: a space first, spaces marked, bytes for what is not in the vocabulary."""
    tokenizer = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    train(tokenizer, special_tokens=tokens, limit_alphabet=60)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < 3]
    tokenizer = Library.from_str(json.dumps(made))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def metaspace() -> Library:
    tokenizer = Library(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return train(tokenizer, special_tokens=["<s>"])


MAKERS = {"byte_level": byte_level, "sentencepiece_like": sentencepiece_like, "metaspace": metaspace}


@pytest.fixture(scope="module", params=MAKERS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Library]:
    directory = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param]().save(str(directory / "tokenizer.json"))
    library = Library.from_file(str(directory / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    return Tokenizer(HuggingFaceCodec(directory)), library


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        ANY_TEXT,
        st.lists(
            st.sampled_from(["<|bos|>", "<|end|>", "<tool>", " é ", "<s>", "</s>", " ", "the", "\n", "é"])
        ).map("".join),
    )
)
def test_ids_are_the_librarys(pair: tuple[Tokenizer, Library], text: str) -> None:
    tok, library = pair
    assert tok.encode(text, parse_special=True) == library.encode(text).ids
    assert (
        tok.encode(text, parse_special=True, add_special=False)
        == library.encode(text, add_special_tokens=False).ids
    )
    plain = tok.encode(text, add_special=False)
    assert not tok.special_ids & set(plain) - {library.token_to_id("<unk>")}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_text_is_the_librarys(pair: tuple[Tokenizer, Library], data: st.DataObject) -> None:
    tok, library = pair
    ids = tok.encode(data.draw(ANY_TEXT), parse_special=True)
    assert tok.decode(ids) == library.decode(ids)
    detokenizer = Detokenizer(tok)
    assert "".join([*(detokenizer.push([i]) for i in ids), detokenizer.flush()]) == library.decode(ids)


def test_prompts_are_never_cut_or_padded(pair: tuple[Tokenizer, Library]) -> None:
    tok, _ = pair
    assert len(tok.encode("one two three four five six seven " * 50)) > 100
    assert len(tok.encode("a", add_special=False)) < 5


def test_a_long_text_has_the_librarys_ids(pair: tuple[Tokenizer, Library]) -> None:
    tok, library = pair
    text = (TEXT + "<|bos|><|end|> é <tool></s>\n\n") * (1 + SHORT_TEXT // len(TEXT))
    assert len(text) > SHORT_TEXT
    for special in (True, False):
        expected = library.encode(text, add_special_tokens=special).ids
        assert tok.encode(text, parse_special=True, add_special=special) == expected


def test_special_text_is_parsed_only_on_request(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer(HuggingFaceCodec(tmp_path))
    end, tool = tok.token_id("<|end|>"), tok.token_id("<tool>")
    assert tok.encode("<|end|><tool>", parse_special=True, add_special=False) == [end, tool]
    plain = tok.encode("<|end|><tool>", add_special=False)
    assert end not in plain
    assert plain[-1] == tool
    assert tok.decode(plain) == "<|end|><tool>"
    assert tok.special_ids == {tok.token_id("<|bos|>"), end}


def test_threads_do_not_mix_up_parse_special(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer(HuggingFaceCodec(tmp_path))
    expected = {parse: tok.encode("<|end|>", parse_special=parse) for parse in (True, False)}
    assert expected[True] != expected[False]
    wrong: list[bool] = []

    def work(parse: bool) -> None:
        wrong.extend(
            True for _ in range(300) if tok.encode("<|end|>", parse_special=parse) != expected[parse]
        )

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_ends_are_gathered_from_every_file(tmp_path: Path) -> None:
    train_tokenizer(300).save(tmp_path)
    known = {0, 2}  # <|endoftext|> and <|im_end|>, by their texts
    assert HuggingFaceCodec(tmp_path).eos_ids == known
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [270, 271]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 272}')
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": "a", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    codec = HuggingFaceCodec(tmp_path)
    assert codec.eos_ids == known | {270, 271, 272, codec.token_id("a")}
    assert codec.bos_id == 0


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_damaged_tokenizer_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
        HuggingFaceCodec(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_neighbours(tmp_path: Path, name: str, content: bytes) -> None:
    train_tokenizer(300).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFormatError, match=name):
        HuggingFaceCodec(tmp_path)


def test_no_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        HuggingFaceCodec(tmp_path)


def test_other_decoders_are_refused_by_name(tmp_path: Path) -> None:
    library = byte_level()
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        HuggingFaceCodec(tmp_path)


def test_templates_of_a_directory(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    tools = [{"type": "function"}]
    assert template_from_directory(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"

    def render(**extra: Any) -> str:
        template = template_from_directory(tmp_path)
        assert template is not None
        return template.render(messages, **extra)

    config.write_text(
        json.dumps(
            {
                "chat_template": "one {{ bos_token }}{{ pad_token }}",
                "bos_token": {"content": "B"},
                "pad_token": "P",
            }
        )
    )
    assert render() == "one BP"
    entries = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "tools"}]
    config.write_text(json.dumps({"chat_template": entries}))
    assert (render(), render(tools=tools)) == ("two", "tools")
    (tmp_path / "chat_template.jinja").write_text("three")
    assert render() == "three"
    for wrong in (5, [{"name": "default"}]):
        config.write_text(json.dumps({"chat_template": wrong}))
        with pytest.raises(ModelFormatError, match="chat_template"):
            template_from_directory(tmp_path)
