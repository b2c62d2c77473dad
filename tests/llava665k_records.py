"""Records worded as LLaVA-665K words them, one a task."""

from typing import Any

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nA. on\nB. off\nAnswer with the option's letter from the given choices directly."
REGION = "<image>\nPlease provide a short description for this region: [0.1, 0.2, 0.3, 0.4]."
BOX = "Please provide the bounding box coordinate of the region this sentence describes: a cat."


def record(image: str | None, *questions: str) -> dict[str, Any]:
    turns = [
        turn
        for text in questions
        for turn in ({"from": "human", "value": text}, {"from": "gpt", "value": "yes"})
    ]
    fields: dict[str, Any] = {"id": "000000000009", "conversations": turns}
    return fields if image is None else fields | {"image": image}


MIXTURE = {
    "vqav2": record("coco/train2017/1.jpg", f"<image>\nIs it on?{SHORT}", "What is it?", "Is it red?"),
    "ok_vqa": record("coco/train2017/1.jpg", f"What sport is it?{SHORT}\n<image>"),
    "a_okvqa": record("coco/train2017/1.jpg", f"<image>\nIs it on?{LETTER}"),
    "refcoco": record(
        "coco/train2017/1.jpg", REGION, "Please provide a short description for this region: [0]."
    ),
    "conversation": record(
        "coco/train2017/1.jpg", "<image>\nWhat do you see happening in this image?", "Why?"
    ),
    "detail": record("coco/train2017/1.jpg", "What is this photo about'?\n<image>"),
    "reasoning": record("coco/train2017/1.jpg", "<image>\nWhy might the cat be outside?"),
    "gqa": record("gqa/images/1.jpg", f"<image>\nIs it on?{SHORT}"),
    "ocr_vqa": record("ocr_vqa/images/1.jpg", f"<image>\nWho wrote it?{SHORT}"),
    "textcaps": record("textvqa/train_images/1.jpg", "<image>\nProvide a one-sentence caption."),
    "vg": record("vg/VG_100K_2/1.jpg", f"<image>\n{BOX}"),
}
