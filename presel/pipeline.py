"""The method from top to bottom: every step is a property, and rests on the steps above it.

Nothing runs when a step is named. `Store.ensure` computes a step when its result is asked for, and
first what it rests on: a random selection never fine-tunes a reference model.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from presel.data.sources import Source
from presel.errors import PreselError
from presel.evaluation.benchmarks import Benchmarks
from presel.evaluation.external import ExternalBenchmarks
from presel.instructions.provider import InstructionProvider
from presel.models.clip import Clip
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.models.loggers import TrainingLogger
from presel.models.lvlm import Lvlm
from presel.models.tune import ScoreNet, Tune
from presel.stages.centrality import CentralityStage, Neighbors
from presel.stages.clip_scores import ClipFeaturesStage, ClipScoresStage, ClipStage
from presel.stages.clusters import Clustering, ClustersStage, DiscoveredClustersStage
from presel.stages.evaluation import EvaluationStage, MostFrequentStage, check_prompts, check_scoring
from presel.stages.external_evaluation import ExternalEvaluationStage
from presel.stages.features import FeaturesStage
from presel.stages.instructions import InstructionsStage
from presel.stages.merged import MergedStage
from presel.stages.multimodal_features import MultimodalFeaturesStage
from presel.stages.pool import Pool, PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.relevance import RelevanceStage
from presel.stages.selection import PAID, SelectionStage, images_in_budget
from presel.stages.self_filter import SelfFilterStage
from presel.stages.tasks import DiscoveredTasksStage, Tasks
from presel.stages.tuning import FineTuneStage, TuningStage
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store
from presel.strategies.base import RESULTS, Strategy
from presel.strategies.full import Full


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One run of the method.

    Attributes:
        source: The pool's source.
        tasks: Where the pool's tasks come from.
        benchmark_source: The held-out benchmarks, or the program that runs its own; None for a run that
            ends before the evaluation.
        lvlm: The vision-language model before visual instruction tuning.
        tuning: How it is tuned, on the reference set and on the selection.
        encoder: Image encoder behind the clusters.
        clustering: How the images of a task are clustered.
        neighbors: What counts as an image's surroundings.
        clip: What judges how well a text fits its image.
        score_net: How Self-Filter's score net is trained.
        provider: Who writes instructions.
        strategy: Who chooses images.
        reference_share: Share of each task that is instructed first, to measure relevance on.
        budget: Up to 1 a share of the pool, above 1 a number of images; the reference set counts.
        seed: Decides the reference set, the selection, and the tuning.
        relevance_batch_tokens: Tokens of samples scored or encoded at once.
        hardware: Where models run.
        workers: Processes that decode images and prepare batches.
        logger: Where training metrics go.
    """

    source: Source
    tasks: Tasks
    benchmark_source: Benchmarks | ExternalBenchmarks | None
    lvlm: Lvlm
    tuning: Tune
    encoder: Encoder
    clustering: Clustering
    neighbors: Neighbors
    clip: Clip
    score_net: ScoreNet
    provider: InstructionProvider
    strategy: Strategy
    reference_share: float
    budget: float
    seed: int
    relevance_batch_tokens: int
    hardware: Hardware
    workers: int
    logger: TrainingLogger

    # Images without instructions.

    @cached_property
    def images(self) -> PoolStage:
        """The usable images, with the tasks that their source names."""
        return PoolStage(self.source, self.workers, with_tasks=self.tasks.from_source)

    @cached_property
    def features(self) -> FeaturesStage:
        """One vector an image."""
        return FeaturesStage(self.images, self.encoder, self.workers, self.hardware)

    @cached_property
    def pool(self) -> Pool:
        """The usable images, each in one task."""
        return self.tasks.pool(self.features)

    # Which tasks matter: instructions for a random few per cent, and a model tuned on them.

    @cached_property
    def reference(self) -> ReferenceStage:
        """D_ref: a random few per cent of each task."""
        return ReferenceStage(self.pool, self.reference_share, self.seed)

    @cached_property
    def reference_instructions(self) -> InstructionsStage:
        """The only instructions paid for before selection."""
        return InstructionsStage(self.pool, self.reference, self.provider, "reference")

    @cached_property
    def reference_model(self) -> TuningStage:
        """The model after one epoch on the reference set."""
        return self._tuned_on(self.reference_instructions)

    @cached_property
    def relevance(self) -> RelevanceStage:
        """How much the question helps the answer, for each reference sample."""
        return self._scored(self.reference_instructions)

    # Which images of a task stand for it.

    @cached_property
    def clusters(self) -> ClustersStage:
        """Groups of like images in each task."""
        if isinstance(self.pool, DiscoveredTasksStage):
            return DiscoveredClustersStage(self.features, self.clustering, self.pool)
        return ClustersStage(self.features, self.clustering)

    @cached_property
    def centrality(self) -> CentralityStage:
        """How well each image stands for its cluster."""
        return CentralityStage(self.clusters, self.reference, self.neighbors)

    # What rival methods read before they choose: the instructions of every image.

    @cached_property
    def all_instructions(self) -> InstructionsStage:
        """The instructions of the whole pool, for strategies that select after buying."""
        return InstructionsStage(self.pool, self.pool, self.provider, "whole pool")

    @cached_property
    def scores(self) -> RelevanceStage:
        """The reference model's scores of every sample of the pool."""
        return self._scored(self.all_instructions)

    @cached_property
    def clip_scores(self) -> ClipScoresStage:
        """How well the text of every sample of the pool fits its image."""
        return ClipScoresStage(self.all_instructions, self.clip, self.workers, self.hardware)

    @cached_property
    def clip_features(self) -> ClipFeaturesStage:
        """One vector a sample of the pool, image and text side by side."""
        return ClipFeaturesStage(self.all_instructions, self.clip, self.workers, self.hardware)

    @cached_property
    def multimodal_features(self) -> MultimodalFeaturesStage:
        """One vector a sample of the pool, image and text together, by the untuned model."""
        return MultimodalFeaturesStage(
            self.lvlm,
            self.all_instructions,
            self.relevance_batch_tokens,
            self.workers,
            self.hardware,
        )

    @cached_property
    def self_filter(self) -> SelfFilterStage:
        """Scores of every sample of the pool by a net that is trained beside the model."""
        return SelfFilterStage(
            self.all_instructions,
            self.lvlm,
            replace(self.tuning, epochs=self.score_net.epochs),
            self.hardware,
            self.seed,
            self.workers,
            self.logger,
            self.scores,
            self.score_net.lr,
        )

    # Choose, buy instructions for the chosen images alone, tune, evaluate.

    @cached_property
    def selection(self) -> SelectionStage:
        """D_S, chosen by the strategy from what it declares to need."""
        unknown = [name for name in self.strategy.needs if name not in RESULTS]
        if unknown:
            raise PreselError(
                f"{type(self.strategy).__name__}.needs names '{unknown[0]}'; it may hold {', '.join(RESULTS)}"
            )
        needed = {name: getattr(self, name) for name in self.strategy.needs}
        # The budget does not count where all is taken, so that it must not make another full model.
        budget = 1.0 if self.strategy.whole_pool else self.budget
        return SelectionStage(self.strategy, self.pool, budget, self.seed, needed)

    @cached_property
    def instructions(self) -> InstructionsStage:
        """The training set."""
        return InstructionsStage(self.pool, self.selection, self.provider, "selection")

    @cached_property
    def model(self) -> TuningStage:
        """The final model."""
        return self._tuned_on(self.instructions)

    @cached_property
    def merged(self) -> MergedStage:
        """The final model in one piece, for other programs."""
        return MergedStage(self.model)

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
        return PoolStage(self._own_benchmarks, self.workers, "benchmarks")

    @cached_property
    def evaluation(self) -> EvaluationStage | ExternalEvaluationStage:
        """Scores of the final model."""
        if isinstance(self.benchmark_source, ExternalBenchmarks):
            return ExternalEvaluationStage(self.merged, self.benchmark_source, self.strategy.name)
        return self._evaluated(self.model, self.strategy.name)

    # What the scores are held against.

    @cached_property
    def base_evaluation(self) -> EvaluationStage:
        """Scores of the model before any tuning."""
        return self._evaluated(None, "base")

    @cached_property
    def most_frequent(self) -> MostFrequentStage:
        """Scores of the best constant answers."""
        return MostFrequentStage(self.benchmarks, self._own_benchmarks.scoring)

    @cached_property
    def full(self) -> "Pipeline":
        """The same run with all instructions bought: the 100 % that Rel. is a share of."""
        return replace(self, strategy=Full())

    def steps(self, target: Stage[Any]) -> dict[str, Stage[Any]]:
        """The target and every stage that it rests on, inputs first, by role.

        A stage's role is the name of its property here, as in `reference_model`; that of a stage without one
        is made of its reader's role and its own name, as in `images.scenes`. Labels are for people, and may
        be reworded; programs find a stage by its role.
        """
        found = upstream(target)
        # The properties that were evaluated, which these stages are; of two names for one stage the first.
        named = {id(stage): role for role, stage in reversed(vars(self).items()) if isinstance(stage, Stage)}
        roles: dict[str, str] = {}
        for stage in reversed(found):
            role = roles.setdefault(stage.key, named.get(id(stage), stage.name))
            for source in stage.inputs:
                roles.setdefault(source.key, named.get(id(source), f"{role}.{source.name}"))
        return {roles[stage.key]: stage for stage in found}

    def check(self, store: Store, target: Stage[Any]) -> None:
        """Reads the pool and the benchmarks, and checks what can only be checked against them.

        Args:
            store: Where they are kept.
            target: The step that the run is to end with.

        Raises:
            PreselError: If anything about the models, the pool, the benchmarks or the budget is wrong.
        """
        steps = upstream(target)
        # What is bought already needs no key and no server.
        instructed = any(isinstance(step, InstructionsStage) and not store.has(step) for step in steps)
        if instructed:
            self.provider.check_source(self.source)
        for step in steps:
            if isinstance(step, FineTuneStage):
                step.check()
            if isinstance(step, EvaluationStage | MultimodalFeaturesStage):
                step.lvlm.check()
            if isinstance(step, FeaturesStage):
                step.encoder.check()
            if isinstance(step, ClipStage):
                step.clip.check()
            # What is evaluated already needs no program.
            if isinstance(step, ExternalEvaluationStage) and not store.has(step):
                step.benchmarks.check()
        # What is computed already needs no model, and loading its processor takes seconds.
        if any(
            isinstance(step, FineTuneStage | EvaluationStage | MultimodalFeaturesStage)
            and not store.has(step)
            for step in steps
        ):
            self.lvlm.load_processor()
        images = store.load(self.images)
        tasks = self.tasks.names(images)
        if instructed:
            self.provider.check(self.source.files(store), tasks)
        if isinstance(self.benchmark_source, Benchmarks):
            check_scoring(store, self.benchmarks, self.benchmark_source.scoring)
            if any(isinstance(step, EvaluationStage) and not store.has(step) for step in steps):
                check_prompts(store, self.benchmarks, self.lvlm)
        budget = images_in_budget(self.budget, len(images))
        if PAID.intersection(self.strategy.needs):
            reference = len(store.load(self.reference))
            if reference > budget:
                raise PreselError(
                    f"budget={self.budget:g} is {budget} images, fewer than the {reference} of the reference "
                    f"set (reference.share={self.reference_share:g} of each task); raise the one or lower "
                    "the other"
                )

    def _scored(self, instructions: InstructionsStage) -> RelevanceStage:
        return RelevanceStage(
            self.reference_model, instructions, self.relevance_batch_tokens, self.workers, self.hardware
        )

    def _tuned_on(self, instructions: InstructionsStage) -> TuningStage:
        return TuningStage(
            instructions, self.lvlm, self.tuning, self.hardware, self.seed, self.workers, self.logger
        )

    def _evaluated(self, model: TuningStage | None, who: str) -> EvaluationStage:
        return EvaluationStage(
            self.benchmarks,
            self._own_benchmarks.scoring,
            self.lvlm,
            model,
            self.hardware,
            who,
            self.workers,
        )
