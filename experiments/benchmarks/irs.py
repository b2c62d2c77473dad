"""Both losses behind IRS: one pass a batch beside two, and beside the released procedure.

    python experiments/benchmarks/irs.py [--shape cpu|7b|qwen_3b] [--samples 200] [--batch-tokens 8192 16384]

All score the same samples by the same model of random weights, with images of 576 tokens, of Qwen's shape
391. *Two passes* are the same batches, each scored with and without the question by plain calls of the model.
*Released* is a sample at a time, twice, its image loaded for each. The bound counts tokens: those of two
passes over one's. Utilization is that of one pass, see `presel.models.throughput.forward_flops`, without the
output layer and padding. Prints a table and, last, one line of JSON.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from common import Rows, last_line, peak_memory, table, timed
from samples import conversations, photographs
from shapes import SHAPES, RandomLvlm, compile_layers, random_model
from torch import Tensor
from transformers import PreTrainedModel

from presel.models.batching import fill_batches
from presel.models.conversations import ConversationEncoder, Example
from presel.models.hardware import device_for
from presel.models.losses import Losses, Scorer, two_passes
from presel.models.prefetch import prefetched
from presel.models.prompt_pairs import PairBatch, pair, pair_batch
from presel.models.throughput import forward_flops, peak_flops


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--released", type=int, help="samples of the released procedure; default: all")
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--rounds", type=int, default=2, help="times that samples are scored with loading")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images ahead")
    parser.add_argument("--compiled", action="store_true", help="try compiled layers too, as presel does not")
    parser.add_argument("--rows", type=Path, help="file to which each row is appended at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(random_model(Path(folder) / "model", options.shape), Path(folder) / "images", options)


@torch.inference_mode()
def measure(lvlm: RandomLvlm, images: Path, options: argparse.Namespace) -> None:
    """Scores the samples in every way."""
    model = lvlm.load_model().to(device_for("auto"))
    encoder = ConversationEncoder(lvlm)
    records = conversations(photographs(images, options.samples))
    examples = [Example(record.paths(images), record.conversations) for record in records]
    sized = sorted(((pair(encoder, one), one) for one in examples), key=lambda item: -len(item[0].ids))
    pairs, examples = [one for one, _ in sized], [one for _, one in sized]
    lengths = [len(one.ids) for one in pairs]
    image_tokens = sum(one.ids.count(encoder.image_token) for one in pairs)
    scorer = Scorer(model)
    scorer.losses(pair_batch(encoder, examples[-1:]))

    rows = Rows(options.rows)

    def batches(tokens: int) -> list[list[Example]]:
        return [[examples[row] for row in batch] for batch in fill_batches(lengths, tokens)]

    def score(what: str, tokens: int) -> Losses:
        ready = [pair_batch(encoder, batch) for batch in batches(tokens)]
        # The first use of a shape takes longer, above all of compiled layers.
        in_turn(scorer, model, ready)
        peak_memory()
        losses, seconds, two_seconds = in_turn(scorer, model, ready)
        rows.add(
            what if scorer.single_pass else f"{what} (this model takes two)",
            batch_tokens=tokens,
            samples_per_second=len(examples) / seconds,
            tokens_per_second=sum(lengths) / seconds,
            faster_than_two_passes=two_seconds / seconds,
            utilization=utilization(model, sum(lengths), image_tokens, seconds),
            memory_gb=peak_memory(),
        )
        return losses

    for tokens in options.batch_tokens:
        ours = score("one pass", tokens)
    best = max(rows, key=lambda row: row["samples_per_second"])
    again = batches(best["batch_tokens"]) * options.rounds
    rate = loading_rate(scorer, encoder, again, options.workers)
    rows.add("one pass, with loading", batch_tokens=best["batch_tokens"], samples_per_second=rate)
    # The longest first, so every so many of them.
    every = max(1, len(examples) // (options.released or len(examples)))
    taken = range(0, len(examples), every)
    plain, plain_seconds = timed(lambda: released(encoder, model, [examples[row] for row in taken]))
    plain_rate = len(taken) / plain_seconds
    rows.add("released, with loading", samples_per_second=plain_rate, ours_is_faster=rate / plain_rate)
    difference = max(
        float((ours.with_question[taken] - plain[0]).abs().max()),
        float((ours.without_question[taken] - plain[1]).abs().max()),
    )
    prompts = [
        [len(encoder.tokens(one.conversations, ask, one.images).ids) for ask in (True, False)]
        for one in examples
    ]
    bound = sum(map(sum, prompts)) / sum(lengths)
    if options.compiled:
        compile_layers(model)
        score("one pass, layers compiled", best["batch_tokens"])
    print(table(rows))
    print(
        last_line(
            shape=options.shape,
            samples=options.samples,
            tokens_per_second=best["tokens_per_second"],
            ratio=best["faster_than_two_passes"],
            bound=bound,
            fraction_of_bound=best["faster_than_two_passes"] / bound,
            ratio_to_released=rate / plain_rate,
            largest_difference=difference,
        )
    )


def in_turn(
    scorer: Scorer, model: PreTrainedModel, batches: Sequence[PairBatch]
) -> tuple[Losses, float, float]:
    """Losses, and seconds by the scorer and by two passes.

    A batch by each in turn, so that a machine whose speed drifts is as fast for the one as for the other.
    """
    parts, seconds, two_seconds = [], 0.0, 0.0
    for batch in batches:
        losses, one_batch = timed(partial(scorer.losses, batch))
        # Copying the result waits for the device.
        _, two_batch = timed(lambda batch=batch: [one.cpu() for one in two_passes(model, batch.to(model))])
        parts.append(losses)
        seconds, two_seconds = seconds + one_batch, two_seconds + two_batch
    return Losses(*(torch.cat(values) for values in zip(*parts, strict=True))), seconds, two_seconds


def loading_rate(
    scorer: Scorer, encoder: ConversationEncoder, batches: Sequence[Sequence[Example]], workers: int
) -> float:
    """Samples a second from the end of the first batch on, with images loaded by worker processes."""
    loaded = prefetched(batches, partial(pair_batch, encoder), workers)
    scorer.losses(next(loaded))
    _, seconds = timed(lambda: [scorer.losses(batch) for batch in loaded])
    return sum(map(len, batches[1:])) / seconds


def released(
    encoder: ConversationEncoder, model: PreTrainedModel, examples: Sequence[Example]
) -> list[Tensor]:
    """Losses with and without question, (n,) each, a sample at a time."""

    def losses(question: bool) -> Tensor:
        found = []
        for example in examples:
            inputs = encoder.batch([example], question).to(model.device, model.dtype)
            found.append(model(**inputs).loss)
        return torch.stack(found).cpu()

    return [losses(True), losses(False)]


def utilization(model: PreTrainedModel, tokens: int, image_tokens: int, seconds: float) -> float | None:
    """Model-FLOPs utilization of forward passes; None if the device's peak is unknown."""
    peak = peak_flops(model.device, model.dtype)
    if peak is None:
        return None
    forward = forward_flops(model)
    output = model.get_output_embeddings().weight
    # Weights that are those of the embeddings too are not counted.
    own_output = output is not model.get_input_embeddings().weight
    token = forward.token - 2 * output.numel() * own_output
    return (tokens * token + image_tokens * forward.image_token) / seconds / peak


if __name__ == "__main__":
    main()
