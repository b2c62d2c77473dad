"""Small tokenizers trained here, each configured as that of a family of language models."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence, Split
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import CLIPImageProcessorPil, LlamaTokenizer, PreTrainedTokenizerFast

from presel.models.assembly import llava_processor

TEXT = [
    "USER: What is on the table? ASSISTANT: A bowl of apples.",
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: How many dogs are there? ASSISTANT: There are dogs. yes no",
] * 3
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SENTENCEPIECE = ["<unk>", "<s>", "</s>"]
_LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Llama 3's, but for case and contractions.
_WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def sentencepiece_bpe(legacy: bool = False) -> PreTrainedTokenizerFast:
    """As Vicuna's and Llama 2's; the legacy one puts a space before whatever follows a special token."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first", split=True)
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=[*_SENTENCEPIECE, *_BYTES],
        initial_alphabet=list("0123456789"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    fast = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    if not legacy:
        return fast
    backend = fast.backend_tokenizer
    backend.pre_tokenizer = None  # type: ignore[assignment]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_names())


def sentencepiece_unigram() -> PreTrainedTokenizerFast:
    """As T5's, with bytes for unknown characters."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first")
    special = [*_SENTENCEPIECE, *_BYTES]
    trainer = UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    vocabulary = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    tokenizer.model = Unigram(vocabulary, unk_id=0, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_names())


def _names() -> dict[str, str]:
    return {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def llama_3(eos: str = "<|eot_id|>") -> PreTrainedTokenizerFast:
    """As Llama 3's: that of the base model names another end of sequence."""
    tokenizer = byte_level(_LLAMA_3)
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def chatml() -> PreTrainedTokenizerFast:
    """As Qwen's and SmolLM's, without a token at the start."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(_CHATML), eos_token="<|im_end|>")


def byte_level(special_tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = Sequence(
        [Split(_WORDS, behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=special_tokens,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def save_processor(make: Callable[[], PreTrainedTokenizerFast], folder: Path) -> str:
    """Writes the processor of a LLaVA with this tokenizer, as `presel assemble` does, but no weights."""
    tokenizer = make()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": tokenizer.unk_token or "<pad>"})
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    llava_processor(images, tokenizer, 14).save_pretrained(folder)
    return str(folder)
