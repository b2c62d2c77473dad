"""Both losses behind IRS: one pass a batch beside two, and beside the released procedure.

    python experiments/benchmarks/irs.py [--shape cpu|7b] [--samples 200]

All score the same samples by the same randomly initialised LLaVA, with images of 576 tokens. *Two passes*
are the same batches, each scored with and without the question by plain calls of the model. *Released* is a
sample at a time, twice, its image loaded for each. The bound counts tokens: those of two passes over one's.
Prints a table and, last, one line of JSON.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import Row, last_line, table, timed
from llava import conversations, photographs, random_llava

from presel.models.batching import fill_batches
from presel.models.conversations import ConversationEncoder, Example
from presel.models.hardware import device_for
from presel.models.losses import Losses, Scorer, two_passes
from presel.models.prompt_pairs import pair, pair_batch


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("cpu", "7b"), default="cpu")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.shape, options.samples, options.batch_tokens)


@torch.inference_mode()
def measure(folder: Path, shape: str, samples: int, batch_tokens: int) -> None:
    """Scores the samples in every way."""
    lvlm = random_llava(folder / "model", shape)
    model = lvlm.load_model().to(device_for("auto"))
    encoder = ConversationEncoder(lvlm)
    records = conversations(photographs(folder / "images", samples))
    examples = [Example([folder / "images" / record.image], record.conversations) for record in records]
    sized = sorted(((len(pair(encoder, one).ids), one) for one in examples), key=lambda item: -item[0])
    lengths, examples = [length for length, _ in sized], [one for _, one in sized]
    chosen = [[examples[row] for row in batch] for batch in fill_batches(lengths, batch_tokens)]
    batches = [pair_batch(encoder, batch) for batch in chosen]
    scorer = Scorer(model)
    scorer.losses(batches[-1])

    def released(question: bool) -> torch.Tensor:
        losses = []
        for example in examples:
            inputs = {
                name: value.to(model.device) for name, value in encoder.batch([example], question).items()
            }
            losses.append(model(**inputs | {"pixel_values": inputs["pixel_values"].to(model.dtype)}).loss)
        return torch.stack(losses).cpu()

    parts, seconds, two_seconds = [], 0.0, 0.0
    # In turn, so that a machine whose speed drifts is as fast for the one as for the other.
    for batch in batches:
        losses, one_batch = timed(partial(scorer.losses, batch))
        _, two_batch = timed(partial(two_passes, model, batch.to(model)))
        parts.append(losses)
        seconds, two_seconds = seconds + one_batch, two_seconds + two_batch
    ours = Losses(*(torch.cat(values) for values in zip(*parts, strict=True)))
    ours_loading, loading_seconds = timed(
        lambda: [scorer.losses(pair_batch(encoder, batch)) for batch in chosen]
    )
    assert len(ours_loading) == len(chosen)
    plain, plain_seconds = timed(lambda: (released(True), released(False)))
    difference = max(
        float((ours.with_question - plain[0]).abs().max()),
        float((ours.without_question - plain[1]).abs().max()),
    )
    prompts = [[len(encoder.tokens(one.conversations, ask).ids) for ask in (True, False)] for one in examples]
    bound = sum(map(sum, prompts)) / sum(lengths)
    rows: list[Row] = [
        {
            "what": "one pass",
            "samples/s": samples / seconds,
            "tokens/s": sum(lengths) / seconds,
            "passes": 1 if scorer.single_pass else 2,
        },
        {"what": "one pass, with loading", "samples/s": samples / loading_seconds},
        {
            "what": "two passes",
            "samples/s": samples / two_seconds,
            "ours is faster by": two_seconds / seconds,
        },
        {
            "what": "released, with loading",
            "samples/s": samples / plain_seconds,
            "ours is faster by": plain_seconds / loading_seconds,
        },
    ]
    print(table(rows))
    print(
        last_line(
            shape=shape,
            samples=samples,
            tokens_per_second=sum(lengths) / seconds,
            ratio=two_seconds / seconds,
            bound=bound,
            fraction_of_bound=two_seconds / seconds / bound,
            ratio_to_released=plain_seconds / loading_seconds,
            largest_difference=difference,
        )
    )


if __name__ == "__main__":
    main()
