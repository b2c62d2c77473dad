"""The method from top to bottom: every step is a property that returns a stage, built on the stages above it.

Evaluating a property computes nothing. `Store.ensure` computes a stage when its result is requested, its
inputs first: a random selection never fine-tunes a reference model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import pandas as pd

from presel.data.sources import Source
from presel.data.validation import Validation
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.evaluation.benchmarks import Benchmarks
from presel.evaluation.external import ExternalBenchmarks
from presel.instructions.provider import InstructionProvider
from presel.models.clip import Clip
from presel.models.encoder import ImageEncoder, LvlmEncoder
from presel.models.lvlm import Lvlm
from presel.models.precomputed import Precomputed
from presel.models.tune import Tune
from presel.stages.centrality import CentralityStage, Neighbors
from presel.stages.clip_scores import ClipFeaturesStage, ClipScoresStage
from presel.stages.clusters import Clustering, ClustersStage, DiscoveredClustersStage
from presel.stages.evaluation import EvaluationStage, MostFrequentStage
from presel.stages.external_evaluation import ExternalEvaluationStage
from presel.stages.features import (
    FeaturesStage,
    ImageTokensStage,
    PoolFeaturesStage,
    PrecomputedFeaturesStage,
)
from presel.stages.gradients import GradientsStage
from presel.stages.instructions import InstructionsStage, SamplesStage
from presel.stages.learning_gain import LearningGainStage, ReferenceHalfStage
from presel.stages.map import MapStage
from presel.stages.merged import MergedStage
from presel.stages.multimodal_features import MultimodalFeaturesStage
from presel.stages.pool import Pool, PoolStage
from presel.stages.question_features import QuestionFeaturesStage
from presel.stages.reference import ReferenceStage
from presel.stages.relevance import RelevanceStage
from presel.stages.roles import by_role
from presel.stages.rounds import Round, RoundScoresStage, RoundStage
from presel.stages.selection import SelectionStage
from presel.stages.self_filter import ScoreNet, SelfFilterStage
from presel.stages.swapped_images import SwappedImagesStage
from presel.stages.tasks import DiscoveredTasksStage, Tasks
from presel.stages.training_set import TextOnlyStage, TrainingSetStage
from presel.stages.tuning import TuningStage
from presel.stages.uncertainty import UncertaintyStage
from presel.stages.validation import ValidationStage
from presel.stages.visual_necessity import VisualNecessityStage
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store
from presel.strategies.base import RESULTS, Strategy
from presel.strategies.full import Full
from presel.strategies.rounds import RoundStrategy, round_name


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One run of the method.

    Attributes:
        source: The pool's source.
        tasks: Where the pool's tasks come from.
        benchmark_source: The held-out benchmarks, or the program that runs its own; None for a run that
            ends before the evaluation.
        validation_source: Held-out samples with answers, for strategies that read some before they select.
        lvlm: The vision-language model before visual instruction tuning.
        tuning: Hyperparameters of fine-tuning, on the reference set and on the selection.
        encoder: Image encoder whose features are clustered, or features that exist already.
        clustering: How the images of a task are clustered.
        neighbors: The neighbors that neighbor centrality averages over.
        clip: The CLIP that scores how well a text fits its image.
        score_net: How Self-Filter's score net is trained.
        provider: Where instructions come from.
        strategy: The selection strategy.
        reference_share: Share of each task whose instructions are bought first, to measure relevance on.
        budget: Up to 1 a share of the pool, above 1 a number of images; the reference set counts.
        seed: Seed of the reference set, the selection and fine-tuning.
        runtime: Devices, worker processes, logger and batch sizes.
    """

    source: Source
    tasks: Tasks
    benchmark_source: Benchmarks | ExternalBenchmarks | None
    validation_source: Validation
    lvlm: Lvlm
    tuning: Tune
    encoder: ImageEncoder | Precomputed
    clustering: Clustering
    neighbors: Neighbors
    clip: Clip
    score_net: ScoreNet
    provider: InstructionProvider
    strategy: Strategy
    reference_share: float
    budget: float
    seed: int
    runtime: Runtime

    # Images without instructions.

    @cached_property
    def images(self) -> PoolStage:
        """The usable images, with the tasks that their source names."""
        return PoolStage(source=self.source, workers=self.runtime.workers, with_tasks=self.tasks.from_source)

    @cached_property
    def features(self) -> PoolFeaturesStage:
        """One feature vector per image."""
        if isinstance(self.encoder, Precomputed):
            return PrecomputedFeaturesStage(pool=self.images, encoder=self.encoder)
        return FeaturesStage(pool=self.images, encoder=self.encoder, runtime=self.runtime)

    @cached_property
    def map(self) -> MapStage:
        """Every image's place in the plane, for pages that show the pool; no strategy reads it."""
        return MapStage(features=self.features)

    @cached_property
    def pool(self) -> Pool:
        """The usable images, each with its task."""
        return self.tasks.pool(self.features)

    # How much each task matters: instructions for a small random share, and a model tuned on them.

    @cached_property
    def reference(self) -> ReferenceStage:
        """D_ref: a small random share of each task."""
        return ReferenceStage(pool=self.pool, share=self.reference_share, seed=self.seed)

    @cached_property
    def reference_instructions(self) -> InstructionsStage:
        """The only instructions paid for before selection."""
        return self._bought(self.reference, "reference")

    @cached_property
    def reference_model(self) -> TuningStage:
        """The model after one epoch on the reference set."""
        return self._tuned_on(self.reference_instructions)

    @cached_property
    def relevance(self) -> RelevanceStage:
        """How much the question helps the answer, for each reference sample."""
        return self._scored(self.reference_instructions, self.reference_model)

    @cached_property
    def swapped_relevance(self) -> RelevanceStage:
        """The same, each sample with the image of another one: its loss tells how much the image helps."""
        swapped = SwappedImagesStage(
            pool=self.pool,
            purpose="swapped",
            instructions=self.reference_instructions,
            seed=self.seed,
        )
        return self._scored(swapped, self.reference_model)

    @cached_property
    def learning_gain(self) -> LearningGainStage:
        """How much tuning helps with each reference sample, by models tuned on the half without it."""
        one, other = (
            ReferenceHalfStage(
                pool=self.pool,
                purpose=f"half {half}",
                instructions=self.reference_instructions,
                half=half,
                seed=self.seed,
            )
            for half in (1, 2)
        )
        return LearningGainStage(
            untuned=self._scored(self.reference_instructions, self.lvlm),
            first=self._scored(one, self._tuned_on(other)),
            second=self._scored(other, self._tuned_on(one)),
        )

    def uncertainty_by(self, questions: int) -> UncertaintyStage:
        """How unsure the reference model is, asked a number of its own questions about every other image."""
        return UncertaintyStage(
            instructions=self.reference_instructions,
            model=self.reference_model,
            questions=questions,
            seed=self.seed,
            runtime=self.runtime,
        )

    # Which images represent their task.

    @cached_property
    def clusters(self) -> ClustersStage:
        """Clusters of similar images in each task."""
        if isinstance(self.pool, DiscoveredTasksStage):
            return DiscoveredClustersStage(
                features=self.features, clustering=self.clustering, tasks=self.pool
            )
        return ClustersStage(features=self.features, clustering=self.clustering)

    @cached_property
    def centrality(self) -> CentralityStage:
        """How well each image represents its cluster."""
        return CentralityStage(clusters=self.clusters, reference=self.reference, neighbors=self.neighbors)

    def image_tokens_at(self, layer: int) -> ImageTokensStage:
        """One vector per image: its tokens after the first `layer` layers of the untuned language model."""
        return ImageTokensStage(pool=self.images, lvlm=self.lvlm, layer=layer, runtime=self.runtime)

    # What baselines read before they select: the instructions of every image.

    @cached_property
    def all_instructions(self) -> InstructionsStage:
        """The instructions of the whole pool, for strategies that select after buying."""
        return self._bought(self.pool, "whole pool")

    @cached_property
    def scores(self) -> RelevanceStage:
        """The reference model's scores of every sample of the pool."""
        return self._scored(self.all_instructions, self.reference_model)

    @cached_property
    def clip_scores(self) -> ClipScoresStage:
        """How well the text of every sample of the pool fits its image."""
        return ClipScoresStage(instructions=self.all_instructions, clip=self.clip, runtime=self.runtime)

    @cached_property
    def clip_features(self) -> ClipFeaturesStage:
        """One vector per sample of the pool, image and text embedding concatenated."""
        return ClipFeaturesStage(instructions=self.all_instructions, clip=self.clip, runtime=self.runtime)

    @cached_property
    def multimodal_features(self) -> MultimodalFeaturesStage:
        """One vector per sample of the pool, image and text together, by the untuned model."""
        return MultimodalFeaturesStage(
            lvlm=self.lvlm, instructions=self.all_instructions, runtime=self.runtime
        )

    @cached_property
    def visual_necessity(self) -> VisualNecessityStage:
        """How much the image helps the answer of every sample of the pool, for the untuned model."""
        return VisualNecessityStage(lvlm=self.lvlm, instructions=self.all_instructions, runtime=self.runtime)

    @cached_property
    def question_features(self) -> QuestionFeaturesStage:
        """One vector per sample of the pool, of its first question."""
        return QuestionFeaturesStage(lvlm=self.lvlm, instructions=self.all_instructions, runtime=self.runtime)

    @cached_property
    def self_filter(self) -> SelfFilterStage:
        """Scores of every sample of the pool by a score net trained jointly with the model."""
        return SelfFilterStage(
            instructions=self.all_instructions,
            lvlm=self.lvlm,
            tune=replace(self.tuning, epochs=self.score_net.epochs),
            seed=self.seed,
            scores=self.scores,
            lr=self.score_net.lr,
            runtime=self.runtime,
        )

    # What strategies that aim at target tasks read besides: labeled samples that are not in the pool.

    @cached_property
    def validation(self) -> PoolStage:
        """The validation samples' images and tasks, checked as the pool's are."""
        for group, source in (("pool", self.source), ("evaluation", self.benchmark_source)):
            if isinstance(source, Source) and self.validation_source.repeats(source):
                raise PreselError(
                    f"validation shares samples with {group}, and strategy={self.strategy.name} reads "
                    "their answers before it selects; set another validation.annotations or validation.seed"
                )
        return PoolStage(source=self.validation_source, workers=self.runtime.workers, title="validation")

    @cached_property
    def validation_samples(self) -> ValidationStage:
        """The validation samples with their answers."""
        return ValidationStage(pool=self.validation, purpose="validation")

    def gradients_of(
        self, samples: SamplesStage, dimension: int, modules: str | None = None
    ) -> GradientsStage:
        """The gradient of each sample's loss under the reference model; see `GradientsStage`."""
        return GradientsStage(
            samples=samples,
            model=self.reference_model,
            dimension=dimension,
            modules=modules,
            runtime=self.runtime,
        )

    @cached_property
    def strategy_stages(self) -> dict[str, Stage[Any]]:
        """The strategy's own stages, by name."""
        stages = self.strategy.stages(self)
        kind = type(self.strategy).__name__
        if not isinstance(stages, dict) or not all(isinstance(stage, Stage) for stage in stages.values()):
            raise PreselError(f"{kind}.stages returned no dictionary of stages by name; return one, or {{}}")
        for name in stages:
            # Fields without a default are no attributes of the class.
            if hasattr(type(self), name) or name in {field.name for field in fields(self)}:
                raise PreselError(f"{kind}.stages names '{name}', which is a name of the pipeline; rename it")
        return stages

    # Strategies in rounds select a part, buy it, score it, and tune on all that is bought, before they go on.

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds before the last one, which is the selection; none for most strategies."""
        rounds: tuple[Round, ...] = ()
        if isinstance(self.strategy, RoundStrategy):
            for number in range(1, self.strategy.rounds):
                rounds += (self._round(number, self.strategy, rounds),)
        return rounds

    # Select, buy the instructions of the selected images only, fine-tune, evaluate.

    @cached_property
    def selection(self) -> SelectionStage:
        """The images that the strategy selects from the results that it declares in `needs`."""
        # Full selection ignores the budget; fixed here, so that runs of all budgets share one full model.
        budget = 1.0 if self.strategy.whole_pool else self.budget
        return SelectionStage(
            strategy=self.strategy,
            pool=self.pool,
            budget=budget,
            seed=self.seed,
            needed=self._needed(self.rounds),
        )

    @cached_property
    def instructions(self) -> InstructionsStage:
        """The instructions of the selected images."""
        return self._bought(self.selection, "selection")

    @cached_property
    def text_only(self) -> TextOnlyStage:
        """The pool's records without an image, which cost nothing and are no part of the selection."""
        return TextOnlyStage(pool=self.images, purpose="text only")

    @cached_property
    def training_set(self) -> SamplesStage:
        """The instructions, and the text-only records of a pool that keeps them."""
        if not self.source.keeps_text_only:
            return self.instructions
        parts = (self.instructions, self.text_only)
        return TrainingSetStage(pool=self.pool, parts=parts, purpose="selection")

    @cached_property
    def model(self) -> TuningStage:
        """The final model."""
        return self._tuned_on(self.training_set, skip_unanswered=True)

    @cached_property
    def merged(self) -> MergedStage:
        """The final model with its adapter merged, for other programs."""
        return MergedStage(tuned=self.model)

    @property
    def _own_benchmarks(self) -> Benchmarks:
        if not isinstance(self.benchmark_source, Benchmarks):
            raise PreselError(
                "there are no benchmarks to evaluate on; choose some, as in evaluation=llava_json"
            )
        return self.benchmark_source

    @cached_property
    def benchmarks(self) -> PoolStage:
        """The benchmarks' images, checked as the pool's are."""
        return PoolStage(source=self._own_benchmarks, workers=self.runtime.workers, title="benchmarks")

    @cached_property
    def evaluation(self) -> EvaluationStage | ExternalEvaluationStage:
        """Scores of the final model."""
        if isinstance(self.benchmark_source, ExternalBenchmarks):
            return ExternalEvaluationStage(
                model=self.merged, benchmarks=self.benchmark_source, model_name=self.strategy.name
            )
        return self._evaluated(self.model, self.strategy.name)

    # What the scores are compared with.

    @cached_property
    def base_evaluation(self) -> EvaluationStage:
        """Scores of the model before any tuning."""
        return self._evaluated(None, "base")

    @cached_property
    def most_frequent(self) -> MostFrequentStage:
        """Scores of the constant baseline."""
        return MostFrequentStage(benchmarks=self.benchmarks, scoring=self._own_benchmarks.scoring)

    @cached_property
    def full(self) -> "Pipeline":
        """The same run on all instructions: the model that Rel. compares with."""
        return replace(self, strategy=Full())

    def target(self, until: str) -> Stage[Any]:
        """The last step of a run that ends with the target `until` (see `presel.settings.schema.TARGETS`)."""
        target: Stage[Any] = self.training_set if until == "instructions" else getattr(self, until)
        return target

    def steps(self, target: Stage[Any]) -> dict[str, Stage[Any]]:
        """The target and every stage that it depends on, inputs first, by role.

        A stage's role is the name of its property here, as in `reference_model`, or of the strategy's own
        stage; those of a round are named like `round_2.instructions`. Labels are for people and may be
        reworded; programs find a stage by its role.
        """
        found = upstream(target)
        named = {id(stage): name for name, stage in self.strategy_stages.items()}
        for number, one in enumerate(self.rounds, start=1):
            named |= {id(stage): f"{round_name(number)}.{part}" for part, stage in one._asdict().items()}
        # The evaluated properties hold these stages; where two hold the same one, the first names it.
        named |= {id(stage): role for role, stage in reversed(vars(self).items()) if isinstance(stage, Stage)}
        return by_role(found, named)

    def check(self, store: Store, target: Stage[Any]) -> None:
        """Checks everything that a run up to `target` needs, before its first long computation.

        Raises:
            PreselError: If anything about the models, the pool, the benchmarks or the budget is wrong.
        """
        steps = upstream(target)
        # Instructions that are bought already need no API key and no server.
        if any(isinstance(step, InstructionsStage) and not store.has(step) for step in steps):
            self.provider.check_source(self.source)
        for step in steps:
            step.check(store)
        # After the quick checks, and only if needed: it takes seconds.
        runs_lvlm = any(_holds_lvlm(step) and not store.has(step) for step in steps)
        if runs_lvlm:
            self.lvlm.check_parts()
        for step in steps:
            step.check_data(store)
        # Before instructions are bought for an image that the model would then refuse.
        for step in steps:
            if runs_lvlm and isinstance(step, PoolStage):
                step.check_images(store, self.lvlm)

    def _needed(self, rounds: Sequence[Round]) -> dict[str, Stage[Any]]:
        """What the strategy selects from, once these rounds are over."""
        for name in self.strategy.needs:
            if name not in RESULTS:
                kind = type(self.strategy).__name__
                raise PreselError(f"{kind}.needs names '{name}'; it may hold {', '.join(RESULTS)}")
        needed = {name: getattr(self, name) for name in self.strategy.needs} | self.strategy_stages
        return needed | {round_name(number): one.scores for number, one in enumerate(rounds, start=1)}

    def _round(self, number: int, strategy: RoundStrategy, earlier: Sequence[Round]) -> Round:
        bought = (self.reference_instructions, *(one.instructions for one in earlier))
        selection = RoundStage(
            strategy=strategy,
            pool=self.pool,
            budget=self.budget,
            seed=self.seed,
            needed=self._needed(earlier),
            bought=bought,
        )
        instructions = self._bought(selection, f"round {number}")
        # Tuned on what was bought before this round, so that its samples are new to both.
        models: list[Lvlm | TuningStage] = [self.lvlm, self.reference_model]
        models += [one.model for one in earlier]
        before, after = (self._scored(instructions, model) for model in models[-2:])
        training_set = TrainingSetStage(
            pool=self.pool, parts=(*bought, instructions), purpose=f"round {number}"
        )
        return Round(
            selection=selection,
            instructions=instructions,
            before=before,
            after=after,
            scores=RoundScoresStage(before=before, after=after, chosen=selection),
            training_set=training_set,
            model=self._tuned_on(training_set),
        )

    def _bought(self, chosen: Stage[pd.DataFrame], purpose: str) -> InstructionsStage:
        return InstructionsStage(pool=self.pool, chosen=chosen, provider=self.provider, purpose=purpose)

    def _scored(self, instructions: SamplesStage, model: TuningStage | Lvlm) -> RelevanceStage:
        return RelevanceStage(instructions=instructions, model=model, runtime=self.runtime)

    def _tuned_on(self, instructions: SamplesStage, *, skip_unanswered: bool = False) -> TuningStage:
        return TuningStage(
            instructions=instructions,
            lvlm=self.lvlm,
            tune=self.tuning,
            seed=self.seed,
            runtime=self.runtime,
            skip_unanswered=skip_unanswered,
        )

    def _evaluated(self, model: TuningStage | None, model_name: str) -> EvaluationStage:
        return EvaluationStage(
            benchmarks=self.benchmarks,
            scoring=self._own_benchmarks.scoring,
            lvlm=self.lvlm,
            tuned=model,
            model_name=model_name,
            runtime=self.runtime,
        )


def _holds_lvlm(step: Stage[Any]) -> bool:
    return hasattr(step, "lvlm") or isinstance(getattr(step, "encoder", None), LvlmEncoder)
