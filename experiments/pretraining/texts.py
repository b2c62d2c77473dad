"""Texts of phases 2 and 3 of the small LLaVA: scenes in words, questions about them, plain captions."""

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from presel.data.digits.glyphs import GLYPHS
from presel.data.digits.scenes import CELLS, COLORS, MAX_ITEMS, Scene
from presel.data.digits.tasks import TASKS, Turns, background
from presel.data.prompts import IMAGE_TOKEN, TEMPLATES, Turn

TEMPLATE = "plain"
_IGNORED = -100
_SPECIAL = ("<pad>", "<s>", "</s>", IMAGE_TOKEN)
# Words with their leading space, single digits, and the "0." of a box as one unit: boxes are long enough.
_UNITS = r"[,\[]? ?0\.| ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s"
_VOCABULARY = 640
_LONG = ("caption", "describe", "box")


def scene_words(rng: np.random.Generator, scene: Scene, every_cell: bool = False) -> str:
    """A scene in words: what lies where, in some order.

    Args:
        rng: Chooses the order.
        scene: What to write down.
        every_cell: Name the empty cells too.
    """
    cells = {item.cell: item.name for item in scene.items}
    order = list(range(len(CELLS))) if every_cell else list(cells)
    if rng.random() < 0.5:
        order = [order[i] for i in rng.permutation(len(order))]
    parts = [f"{CELLS[cell]} {cells.get(cell, 'empty')}" for cell in order]
    parts.insert(0 if rng.random() < 0.5 else len(parts), f"background {background(scene)}")
    return "; ".join(parts)


def text_conversation(rng: np.random.Generator, scene: Scene, questions: int) -> list[Turn]:
    """Questions of all tasks about a scene that is given in words only.

    Args:
        rng: Chooses the questions.
        scene: What they are about.
        questions: At least so many answers.
    """
    turns: Turns = []
    # The long answers teach the least per token here; half as many will do.
    tasks = [task for name, task in TASKS.items() for _ in range(1 if name in _LONG else 2)]
    while len(turns) < questions:
        turns += tasks[int(rng.integers(len(tasks)))].write(rng, scene) or []
    return _messages([(f"{scene_words(rng, scene)}\n{turns[0][0]}", turns[0][1]), *turns[1:]])


def drill_conversation(rng: np.random.Generator) -> list[Turn]:
    """Short questions about every thing of a list: dense practice in looking things up."""
    cells = rng.permutation(len(CELLS))[: int(rng.integers(3, 7))]
    colors = [COLORS[rng.integers(len(COLORS))] for _ in cells]
    kinds = [GLYPHS[rng.integers(len(GLYPHS))] for _ in cells]
    names = [f"{color} {kind}" for color, kind in zip(colors, kinds, strict=True)]
    turns: Turns = []
    for row in rng.permutation(len(cells)):
        place = CELLS[cells[row]]
        questions = [(f"{place}?", names[row])]
        if names.count(names[row]) == 1:
            questions.append((f"{names[row]}?", place))
        if kinds.count(kinds[row]) == 1:
            questions.append((f"{kinds[row]}?", colors[row]))
        turns.append(questions[int(rng.integers(len(questions)))])
    listed = "; ".join(f"{CELLS[cell]} {name}" for cell, name in zip(cells, names, strict=True))
    return _messages([(f"{listed}\n{turns[0][0]}", turns[0][1]), *turns[1:]])


def caption_conversation(rng: np.random.Generator, scene: Scene) -> list[Turn]:
    """A picture with a listing of its cells and no question at all."""
    return _messages([(IMAGE_TOKEN, scene_words(rng, scene, every_cell=rng.random() < 1 / 3))])


def build_tokenizer(scenes: list[Scene], seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the built-in texts; every other text falls back to bytes."""
    rng = np.random.default_rng(seed)
    texts = [
        "".join(piece for piece, _ in TEMPLATES[TEMPLATE].render(text_conversation(rng, scene, MAX_ITEMS)))
        for scene in scenes
    ]
    texts += [scene_words(rng, scene, every_cell=True) for scene in scenes]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_UNITS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # As LLaVA's own tokenizer does, open every prompt with <s>.
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=512,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Turn]], image_tokens: int
) -> tuple[Tensor, Tensor]:
    """Right-padded token ids and labels, both (n, length); labels stand on the responses alone."""
    texts, spans = [], []
    for conversation in conversations:
        text, supervised = "", []
        for raw, counts in TEMPLATES[TEMPLATE].render(conversation):
            piece = raw.replace(IMAGE_TOKEN, IMAGE_TOKEN * image_tokens)
            if counts:
                supervised.append((len(text), len(text) + len(piece)))
            text += piece
        texts.append(text)
        spans.append(supervised)
    encoded = tokenizer(texts, return_offsets_mapping=True)
    length = max(len(ids) for ids in encoded["input_ids"])
    pad = tokenizer.pad_token_id
    ids_rows, label_rows = [], []
    for ids, offsets, supervised in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
        labels = [
            token if any(start < last and end > first for first, last in supervised) else _IGNORED
            for token, (start, end) in zip(ids, offsets, strict=True)
        ]
        gap = length - len(ids)
        ids_rows.append(ids + [pad] * gap)
        label_rows.append(labels + [_IGNORED] * gap)
    return torch.tensor(ids_rows), torch.tensor(label_rows)


def _messages(turns: Turns) -> list[Turn]:
    messages: list[Turn] = []
    for question, answer in turns:
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return messages
