"""Every family of models people tune, tiny and random: its processor, losses, positions, and a whole run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedModel, SiglipImageProcessorPil

from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.errors import PreselError
from presel.models.chat import ChatModel
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.decoding import first_token_entropies, generate_answers, prompt_batch
from presel.models.encoder import LvlmEncoder
from presel.models.gradients import GradientProjector
from presel.models.image_preparation import ImagePreparer
from presel.models.image_tokens import ImageTokenEncoder
from presel.models.losses import Scorer, image_losses, token_losses, two_passes
from presel.models.lvlm import Lvlm
from presel.models.markers import special_tokens
from presel.models.multimodal import MultimodalEncoder
from presel.models.positions import rope_positions
from presel.models.processors import load_processor
from presel.models.prompt_pairs import pair_batch
from presel.models.tuner import add_lora
from tests.families import FAMILIES, save_family
from tests.helpers import OWN_STORE, Program, last_run
from tests.training import CPU, settings

# Square, wide and tall.
SIZES = [(40, 40), (90, 30), (50, 120)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{width}x{height}.png" for width, height in SIZES]
    for path, (width, height) in zip(paths, SIZES, strict=True):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lvlm(family: str, tmp_path_factory: pytest.TempPathFactory) -> Lvlm:
    return save_family(FAMILIES[family], tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def encoder(lvlm: Lvlm) -> ConversationEncoder:
    return ConversationEncoder(lvlm)


@pytest.fixture(scope="module")
def model(lvlm: Lvlm) -> PreTrainedModel:
    return lvlm.load_model()


def conversation(question: str, *responses: str) -> list[Turn]:
    turns: list[Turn] = []
    for number, response in enumerate(responses):
        turns += [{"from": "human", "value": "Why?" if number else question}]
        turns += [{"from": "gpt", "value": response}]
    return turns


@pytest.fixture(scope="module")
def single(files: list[Path]) -> list[Example]:
    """Images of three shapes, each with a conversation."""
    answers = [("yes",), ("There are dogs.", "no"), ("no", "yes yes")]
    return [
        Example([file], conversation("<image>\nHow many dogs?", *responses))
        for file, responses in zip(files, answers, strict=True)
    ]


@pytest.fixture(scope="module")
def several(files: list[Path]) -> Example:
    return Example(files[:2], conversation("Is <image> before <image>?", "no"))


def loss(
    model: PreTrainedModel, encoder: ConversationEncoder, example: Example, question: bool = True
) -> float:
    return float(model(**encoder.batch([example], question)).loss)


@torch.inference_mode()
def test_the_losses_of_a_batch_are_those_of_its_samples(
    model: PreTrainedModel, encoder: ConversationEncoder, single: list[Example], several: Example
) -> None:
    """Beside samples with one image, one with two and one without."""
    examples = [*single, several, Example([], conversation("Are there dogs?", "yes"))]
    batch = encoder.batch(examples)
    losses = token_losses(model, **batch).sum(dim=1) / (batch["labels"] != IGNORED).sum(dim=1)
    expected = [loss(model, encoder, example) for example in examples]
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)
    chosen = batch.part(torch.tensor([3, 1]))
    assert chosen.keys() == batch.keys()
    assert token_losses(model, **chosen).sum(dim=1).tolist() == pytest.approx(
        token_losses(model, **batch).sum(dim=1)[[3, 1]].tolist(), abs=1e-4
    )
    assert "pixel_values" not in batch.part(slice(4, 5))


@torch.inference_mode()
def test_a_tokenizer_without_a_padding_token_pads_by_its_end(
    lvlm: Lvlm, encoder: ConversationEncoder, single: list[Example], tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(lvlm.path, copy)
    settings_file = copy / "tokenizer_config.json"
    content = json.loads(settings_file.read_text())
    del content["pad_token"]
    settings_file.write_text(json.dumps(content))
    padded = ConversationEncoder(replace(lvlm, path=str(copy))).batch(single)
    assert padded["attention_mask"].equal(encoder.batch(single)["attention_mask"])
    assert set(padded["input_ids"][padded["attention_mask"] == 0].tolist()) == {
        encoder.tokenizer.eos_token_id
    }


@torch.inference_mode()
def test_a_loss_is_that_of_the_models_own_processor(
    model: PreTrainedModel, encoder: ConversationEncoder, lvlm: Lvlm, files: list[Path]
) -> None:
    processor: Any = lvlm.load_processor()
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many dogs?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "There are dogs."}]},
    ]
    text = processor.tokenizer.apply_chat_template(
        chat, chat_template=processor.chat_template, tokenize=False
    )
    answer = [*processor.tokenizer("There are dogs.")["input_ids"], encoder.end_token]
    for file in files:
        given = processor(text=[text], images=[[Image.open(file)]], return_tensors="pt")
        own = encoder.batch([Example([file], conversation("<image>\nHow many dogs?", "There are dogs."))])
        ids = given["input_ids"][0].tolist()
        assert own["input_ids"][0].tolist() == ids
        end = len(ids) - ids[::-1].index(encoder.end_token)
        assert ids[end - len(answer) : end] == answer
        labels = torch.full_like(given["input_ids"], IGNORED)
        labels[0, end - len(answer) : end] = torch.tensor(answer)
        expected = float(model(**given, labels=labels).loss)
        assert float(model(**own).loss) == pytest.approx(expected, abs=1e-5)


@torch.inference_mode()
def test_one_pass_gives_the_losses_of_two(
    family: str,
    model: PreTrainedModel,
    encoder: ConversationEncoder,
    single: list[Example],
    several: Example,
) -> None:
    """But for a conversation whose second image stands behind a word of its question.

    LLaVA-OneVision's template moves all images to the front.
    """
    examples = [*single, several]
    batch = pair_batch(encoder, examples)
    scorer = Scorer(model)
    scored = scorer.losses(batch)
    assert scorer.single_pass is FAMILIES[family].one_pass
    one = 1 if FAMILIES[family].one_pass else 2
    assert scorer.passes(batch).tolist() == [one, one, one, 1 if family == "llava_onevision" else 2]
    separate = two_passes(model, batch)
    for row, example in enumerate(examples):
        with_question, without = (loss(model, encoder, example, question) for question in (True, False))
        for found in (scored, separate):
            assert found.with_question[row] == pytest.approx(with_question, abs=1e-5)
            assert found.without_question[row] == pytest.approx(without, abs=1e-5)
    assert (scored.with_question - scored.without_question).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_images_have_rows_and_columns_of_positions(
    model: PreTrainedModel, encoder: ConversationEncoder, single: list[Example]
) -> None:
    """A model that numbered its tokens would give other losses."""
    inputs = encoder.batch(single[1:2])
    own = token_losses(model, **inputs).sum()
    numbered = torch.arange(inputs["input_ids"].shape[1])[None]
    given = inputs.without("mm_token_type_ids", "labels")
    plain = token_losses(model, inputs["labels"], **given, position_ids=numbered).sum()
    assert abs(own - plain) > 1e-3
    with pytest.raises(TypeError, match="mm_token_type_ids"):
        token_losses(model, inputs["labels"], **given)


def test_lengths_are_known_without_decoding_pixels(
    encoder: ConversationEncoder, single: list[Example], tmp_path: Path
) -> None:
    lengths = encoder.batch(single)["attention_mask"].sum(dim=1).tolist()
    found = []
    for example in single:
        (file,) = example.images
        header = tmp_path / file.name
        header.write_bytes(file.read_bytes()[:100])
        found.append(len(encoder.tokens(example.conversations, images=[header]).ids))
        with pytest.raises(PreselError):
            encoder.batch([Example([header], example.conversations)])
    assert found == lengths


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((name, {}) for name in FAMILIES),
        ("qwen2_5_vl", {"max_pixels": 28 * 28 * 3}),
        ("qwen3_vl", {"size": {"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 6}}),
        ("internvl", {"max_patches": 2}),
        ("smolvlm", {"do_image_splitting": False}),
        ("smolvlm", {"size": {"longest_edge": 84}}),
        ("llava_next", {"do_center_crop": False}),
        ("llava_onevision", {"do_pad": False}),
    ],
    indirect=["family"],
)
def test_the_text_of_an_image_depends_on_its_size_alone(lvlm: Lvlm, settings: dict[str, Any]) -> None:
    """Also under settings that change the number of tiles."""
    lvlm = replace(lvlm, image_settings=settings)
    if settings:
        lvlm.check_parts()
    processor: Any = lvlm.load_processor()
    preparer = ImagePreparer(processor, lvlm)
    generator = np.random.default_rng(1)
    for width, height in generator.integers(20, 150, (25, 2)).tolist():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = processor(text=[processor.image_token], images=[[Image.fromarray(pixels)]])
        (text,) = preparer.texts([(width, height)])
        assert processor.tokenizer(text)["input_ids"] == whole["input_ids"][0]


class RowsProcessor:
    """Writes an image as rows of 16 x 16 patches with a token after each, and counts as Pixtral does."""

    image_token = "<image>"

    def __call__(self, images: list[list[Image.Image]], **settings: Any) -> dict[str, Any]:
        rows = [("<image>" * (one.width // 16) + "<row>") * (one.height // 16) for one in images[0]]
        return {"text_replacement_offsets": [[{"replacement": text} for text in rows]]}

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]]) -> dict[str, list[int]]:
        return {"num_image_tokens": [(width // 16 + 1) * (height // 16) for height, width in image_sizes]}


def test_rows_are_not_those_of_another_shape_with_as_many_tokens() -> None:
    preparer = ImagePreparer(RowsProcessor(), Lvlm(path="rows", pad_to_square=False))
    assert preparer.texts([(48, 16)]) == ["<image><image><image><row>"]
    assert preparer.texts([(16, 32)]) == ["<image><row><image><row>"]


def test_texts_are_not_shared_where_a_processor_miscounts() -> None:
    class Miscounting(RowsProcessor):
        def __call__(self, images: list[list[Image.Image]], **settings: Any) -> dict[str, Any]:
            patches = [one.width * one.height // 256 for one in images[0]]
            return {"text_replacement_offsets": [[{"replacement": "<image>" * count} for count in patches]]}

        def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]]) -> dict[str, list[int]]:
            return {"num_image_tokens": [16] * len(image_sizes)}

    preparer = ImagePreparer(Miscounting(), Lvlm(path="rows", pad_to_square=False))
    assert preparer.texts([(32, 16)]) == ["<image>" * 2]
    assert preparer.texts([(32, 64)]) == ["<image>" * 8]


@torch.inference_mode()
def test_no_prompt_is_cut_inside_an_image(
    lvlm: Lvlm, model: PreTrainedModel, single: list[Example], files: list[Path]
) -> None:
    late: list[Turn] = [
        *conversation("Any dogs?", "yes"),
        {"from": "human", "value": "And here?\n<image>"},
        {"from": "gpt", "value": "no"},
    ]
    whole = ConversationEncoder(lvlm)
    ids = whole.tokens(late, images=files[1:2]).ids
    image = ids.count(whole.image_token)
    first = ids.index(whole.image_token)
    for length in (first - 1, first + 1, first + image - 1, len(ids) - 1):
        encoder = ConversationEncoder(replace(lvlm, max_length=length))
        prompt = encoder.tokens(late, images=files[1:2])
        assert len(prompt.ids) <= length
        assert prompt.truncated
        assert prompt.ids == ids[: len(prompt.ids)]
        assert prompt.ids.count(encoder.image_token) == prompt.images * image
        batch = encoder.batch([Example(files[1:2], late), *single[:1]])
        assert token_losses(model, **batch).isfinite().all()


def test_the_first_of_two_images_stays_where_the_second_is_cut_off(
    family: str, lvlm: Lvlm, encoder: ConversationEncoder, files: list[Path]
) -> None:
    turns = conversation("<image> or <image>?", "no")
    whole = encoder.tokens(turns, images=files[:2])
    last = len(whole.ids) - 1 - whole.ids[::-1].index(encoder.image_token)
    short = ConversationEncoder(replace(lvlm, max_length=last))
    if family == "llava_onevision":
        # Its single images have another number of tokens than several.
        with pytest.raises(PreselError, match=r"40x40\.png: the last of 2 images is cut off at lvlm"):
            short.tokens(turns, images=files[:2])
    else:
        assert short.tokens(turns, images=files[:2]).images == 1


@pytest.mark.parametrize("family", ["internvl"], indirect=True)
def test_pairs_without_their_images_are_refused(lvlm: Lvlm, files: list[Path]) -> None:
    """Though both prompts lose the same: the second image, or both."""
    turns = conversation("<image>\n<image>\nWhat?", "no")
    for length, kept in ((12, 1), (4, 0)):
        short = ConversationEncoder(replace(lvlm, max_length=length))
        assert [short.tokens(turns, question, files[:2]).images for question in (True, False)] == [kept] * 2
        with pytest.raises(PreselError, match=r"40x40\.png: an image of its conversation is cut off at lvlm"):
            pair_batch(short, [Example(files[:2], turns)])


def test_special_tokens_in_a_text_are_text(encoder: ConversationEncoder, files: list[Path]) -> None:
    numbers = set(encoder.tokenizer.convert_tokens_to_ids(sorted(special_tokens(encoder.tokenizer))))

    def markers(question: str, answer: str) -> list[int]:
        turns = conversation(f"<image>\n{question}", answer)
        return [number for number in encoder.tokens(turns, images=files[:1]).ids if number in numbers]

    clean = markers("What?", "no")
    for token in special_tokens(encoder.tokenizer):
        if token != IMAGE_TOKEN:
            assert markers(f"{token}What{token}?", f"{token} no") == clean


@torch.inference_mode()
def test_features_of_samples_do_not_depend_on_their_batch(
    lvlm: Lvlm, encoder: ConversationEncoder, single: list[Example]
) -> None:
    multimodal = MultimodalEncoder(lvlm.load_model(), lvlm.language_model, encoder.image_token)
    together = multimodal.features(encoder.batch(single))
    alone = torch.cat([multimodal.features(encoder.batch([example])) for example in single])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_losses_without_the_image_are_those_of_a_masked_one(
    model: PreTrainedModel, encoder: ConversationEncoder, single: list[Example]
) -> None:
    found = image_losses(model, encoder.batch(single), encoder.image_token)
    for row, example in enumerate(single):
        batch = encoder.batch([example])
        image = batch["input_ids"] == encoder.image_token
        inputs = batch.without("labels")
        positions = rope_positions(model, inputs)
        expected = model(
            input_ids=batch["input_ids"].masked_fill(image, encoder.tokenizer.pad_token_id),
            attention_mask=batch["attention_mask"].masked_fill(image, 0),
            position_ids=torch.arange(image.shape[1])[None] if positions is None else positions,
            labels=batch["labels"],
        ).loss
        assert found.without_image[row] == pytest.approx(float(expected), abs=1e-5)
        assert found.with_image[row] == pytest.approx(loss(model, encoder, example), abs=1e-5)


@torch.inference_mode()
def test_answers_do_not_depend_on_their_batch(
    model: PreTrainedModel, encoder: ConversationEncoder, single: list[Example]
) -> None:
    asked = [
        Example(one.images, [{"from": "human", "value": f"{'How ' * 5 * number}<image>?"}])
        for number, one in enumerate(single)
    ]
    together = prompt_batch(encoder, asked)
    assert (together["attention_mask"] == 0).any()
    alone = [prompt_batch(encoder, [example]) for example in asked]
    answers = [generate_answers(model, encoder, batch, 3) for batch in alone]
    assert generate_answers(model, encoder, together, 3) == [answer for (answer,) in answers]
    entropies = torch.cat([first_token_entropies(model, batch) for batch in alone])
    torch.testing.assert_close(first_token_entropies(model, together), entropies, atol=1e-4, rtol=0)


def test_gradients_of_samples_do_not_depend_on_their_batch(
    lvlm: Lvlm, encoder: ConversationEncoder, single: list[Example], tmp_path: Path
) -> None:
    add_lora(lvlm.load_model(), lvlm, settings()).save_pretrained(str(tmp_path))
    projector = GradientProjector(lvlm, tmp_path, CPU, 64)
    together = projector.project(encoder.batch(single))
    alone = torch.cat([projector.project(encoder.batch([example])) for example in single])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert together.abs().min(dim=1).values.max() > 0


def test_features_of_images_do_not_depend_on_their_batch(lvlm: Lvlm, files: list[Path]) -> None:
    for encoder in (ImageTokenEncoder(lvlm, 1), LvlmEncoder(lvlm=lvlm)):
        (together,) = encoder.encode([files], 0, "cpu")
        alone = np.concatenate(list(encoder.encode([[file] for file in files], 0, "cpu")))
        np.testing.assert_allclose(together, alone, atol=2e-3)
        assert np.ptp(together.astype(float), axis=0).max() > 0.01


@torch.inference_mode()
def test_models_write_instructions_alike_in_a_batch(lvlm: Lvlm, files: list[Path]) -> None:
    chat_model = ChatModel(lvlm.path, None, "auto", torch.device("cpu"))
    chats = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": Image.open(file)},
                    {"type": "text", "text": "How many dogs? " * (number + 1)},
                ],
            }
        ]
        for number, file in enumerate(files)
    ]
    together = chat_model.complete(chats, 3, 0.0, [0] * 3)
    assert together == [chat_model.complete([chat], 3, 0.0, [0])[0] for chat in chats]


@pytest.mark.parametrize(
    ("family", "cap"),
    [("qwen2_5_vl", {"max_pixels": 28 * 28 * 2}), ("internvl", {"max_patches": 1})],
    indirect=["family"],
)
def test_images_have_a_cap_of_pixels(
    lvlm: Lvlm, files: list[Path], cap: dict[str, int], tmp_path: Path
) -> None:
    capped = replace(lvlm, image_settings=cap)
    turns = conversation("<image>\nWhat?", "no")
    lengths = [ConversationEncoder(one).tokens(turns, images=files[2:]).length for one in (lvlm, capped)]
    assert lengths[0] > lengths[1]
    assert capped.identity() != lvlm.identity()
    capped.save_processor(tmp_path)
    saved: Any = load_processor(str(tmp_path), None, "lvlm.path")
    text = saved.image_token
    ids = saved(text=[text], images=[[Image.open(files[2])]])["input_ids"][0]
    assert len(ids) < lengths[0]
    with pytest.raises(PreselError, match=r"lvlm\.image_settings: .* has no 'max_pixel'; it has .*"):
        replace(lvlm, image_settings={"max_pixel": 1}).load_processor()


@pytest.mark.parametrize(
    ("family", "settings", "fault"),
    [
        (
            "gemma3",
            {"do_pan_and_scan": True},
            "always runs with do_pan_and_scan=False, whatever is set; it has",
        ),
        ("internvl", {"crop_to_patches": False}, "always runs with crop_to_patches=True, whatever is set"),
        ("qwen3_vl", {"crop_size": {"height": 28, "width": 28}}, "ignores 'crop_size'; it has"),
        ("smolvlm", {"device": "cpu"}, "ignores 'device'; it has"),
        ("qwen2_5_vl", {"merge_size": 1}, "merge_size=1: the weights of .* need 2; remove it"),
        (
            "llava_next",
            {"image_grid_pinpoints": [[28, 56]]},
            r"the weights of .* need \[\[28, 56\], \[56, 28\]",
        ),
        ("llava_onevision", {"crop_size": {"height": 56, "width": 56}}, "the weights of .* need 28"),
        (
            "smolvlm",
            {"max_image_size": {"longest_edge": 42}},
            "42 × 42 pixels, where .* need 28 × 28; remove",
        ),
        ("gemma3", {"size": {"height": 56, "width": 42}}, "42 × 56 pixels, where .* need 28 × 28; remove"),
        (
            "llava_next",
            {"size": {"shortest_edge": 56}},
            "does not take an image under lvlm.image_settings: div",
        ),
    ],
    indirect=["family"],
)
def test_settings_without_effect_or_unfit_for_the_weights_are_refused(
    lvlm: Lvlm, settings: dict[str, Any], fault: str
) -> None:
    with pytest.raises(PreselError, match=fault):
        replace(lvlm, image_settings=settings).check_parts()


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_images_that_a_model_refuses_are_named_before_any_work(
    lvlm: Lvlm, files: list[Path], tmp_path: Path, in_process: Program
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2, 500)).save(tmp_path / "images" / "line.png")
    shutil.copy(files[0], tmp_path / "images" / "square.png")
    turns = conversation("<image>\nWhat?", "no")
    records = [
        {"id": "a", "image": "square.png", "task": "t", "conversations": turns},
        {"id": "b", "image": "line.png", "task": "t", "conversations": turns},
        {
            **{"id": "c", "image": ["square.png", "line.png"], "task": "t"},
            "conversations": conversation("<image> or <image>?", "no"),
        },
    ]
    (tmp_path / "pool.json").write_text(json.dumps(records))
    pool = ("pool=llava_json", "pool.annotations=pool.json", "pool.images=images", "executor.workers=0")
    until = ("strategy=full", "until=model", OWN_STORE)
    error = in_process.refuses("run", "lvlm=qwen25_vl_3b", f"lvlm.path={lvlm.path}", *pool, *until)
    assert "does not take 1 of 2 images (record 'b', line.png: absolute aspect ratio must be" in error
    assert "; record 'c', line.png: " in error
    (listed,) = (tmp_path / "outputs/store/refused").iterdir()
    assert f"pool.exclude={listed}" in error
    assert listed.read_text() == "b\nc\n"
    run = ("run", "lvlm=qwen25_vl_3b", f"lvlm.path={lvlm.path}", *pool)
    in_process.succeeds(*run, f"pool.exclude={listed}", "strategy=random", "until=selection", "budget=1")
    assert not (tmp_path / "outputs/store/instructions").exists()


def test_paligemma_is_refused(tmp_path: Path) -> None:
    """Also with a chat template that somebody made for it."""
    paligemma = FAMILIES["gemma3"]._replace(
        processor={"processor_class": "PaliGemmaProcessor"},
        images=SiglipImageProcessorPil(image_seq_length=4, size={"height": 28, "width": 28}),
        tokens={"image_token": "<image>"},
    )
    with pytest.raises(
        PreselError, match=r"is a PaliGemma, which knows no chats and .*; name a model that is"
    ):
        save_family(paligemma, tmp_path).load_processor()


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_mistakes_get_one_sentence(
    lvlm: Lvlm, encoder: ConversationEncoder, files: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(lvlm.path, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(PreselError, match=r"base has no chat template; name the model's version .*tuned for"):
        replace(lvlm, path=str(tmp_path / "base")).load_processor()
    for template, fault in (
        ("{{ messages | length }}", "renders a conversation's beginning differently once it goes on"),
        ("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", "ends an answer by no special token"),
        ("{{ raise_exception('No.') }}", "its chat template fails on a conversation: No."),
    ):
        (tmp_path / "base" / "chat_template.jinja").write_text(template)
        with pytest.raises(PreselError, match=fault):
            ConversationEncoder(replace(lvlm, path=str(tmp_path / "base")))
    with pytest.raises(PreselError, match=r"40x40\.png: a conversation has 2 <image> and 1 images"):
        encoder.batch([Example(files[:1], conversation("<image> or <image>?", "no"))])
    Image.new("RGB", (300, 1)).save(tmp_path / "line.png")
    refused = r"line\.png: the processor of .* does not take this image; resize it or remove its record: "
    with pytest.raises(PreselError, match=refused):
        encoder.batch([Example([tmp_path / "line.png"], conversation("<image>\nWhat?", "no"))])
    with pytest.raises(PreselError, match=refused):
        encoder.images([tmp_path / "line.png"])
    for key, name in (("projector", "connector"), ("language_model", "text_model")):
        wrong = replace(lvlm, **{key: name})
        fault = rf"lvlm\.{key}: .* has no module named '{name}'; .* visual\.merger, .*language_model"
        for load in (wrong.check_parts, wrong.load_model):
            with pytest.raises(PreselError, match=fault):
                load()


@pytest.mark.parametrize(
    "family",
    [name if name == "qwen2_5_vl" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
    indirect=True,
)
def test_a_whole_run(family: str, lvlm: Lvlm, files: list[Path], tmp_path: Path, in_process: Program) -> None:
    """From a pool of images of three shapes to a merged model, which answers in plain transformers too."""
    (tmp_path / "images").mkdir()
    records = []
    for number in range(24):
        image = Image.open(files[number % 3]).point([(value + 9 * number) % 256 for value in range(256)] * 3)
        image.save(tmp_path / "images" / f"{number}.png")
        turns = conversation("<image>\nHow many dogs?", "yes" * (number % 3 + 1), "no")
        records.append(
            {"id": str(number), "image": f"{number}.png", "task": f"t{number % 2}", "conversations": turns}
        )
    (tmp_path / "pool.json").write_text(json.dumps(records))
    (tmp_path / "eval.json").write_text(json.dumps([one | {"task": "vqa"} for one in records[:4]]))
    names = [f"lvlm.{name}={json.dumps(value)}" for name, value in FAMILIES[family].names.items()]
    overrides = (
        *("pool=llava_json", "pool.annotations=pool.json", "pool.images=images", "pool.task_field=task"),
        *("evaluation=llava_json", "evaluation.annotations=eval.json", "evaluation.images=images"),
        *("evaluation.max_new_tokens=4", "executor.workers=0", "reference.share=0.5", "budget=0.75"),
        *("lvlm=hf", f"lvlm.path={lvlm.path}", "lvlm.template=processor", "lvlm.pad_to_square=false"),
        *("lvlm.dtype=float32", "tune.lr=0.01", "cluster.images_per_cluster=4", "tune.batch_size=16", *names),
    )
    told = in_process.refuses("run", *overrides, "lvlm.projector=nowhere")
    assert "lvlm.projector" in told
    in_process.succeeds("run", *overrides)
    record = last_run(tmp_path)
    predictions = pd.read_parquet(record.stages["evaluation"].folder / "predictions.parquet")
    in_process.succeeds("run", *overrides, "until=merged")
    folder = last_run(tmp_path).stages["merged"].folder / "model"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor: Any = load_processor(str(folder), None, "lvlm.path")
    for row in predictions[predictions["turn"] == 1].itertuples():
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many dogs?"}]}]
        text = processor.tokenizer.apply_chat_template(
            chat, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
        )
        image = Image.open(tmp_path / "images" / f"{row.id}.png")
        given = processor(text=[text], images=[[image]], return_tensors="pt")
        output = model.generate(**given, do_sample=False, max_new_tokens=4)[:, given["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(output[0], skip_special_tokens=True).strip() == row.answer
    assert predictions["answer"].str.len().max() > 0
