"""Training a super-network: recipes, samplers, splits, and runs that can be cut at any moment."""

from cwkernels.training.callbacks import Callback, ProgressBar, TensorBoard
from cwkernels.training.checkpoint import DamagedCheckpoint
from cwkernels.training.config import Config, DataConfig, NetworkConfig, RunConfig
from cwkernels.training.graphed import GraphedStep
from cwkernels.training.make_step import eager_step, graphed_step
from cwkernels.training.recipe import RECIPES, Recipe, Split
from cwkernels.training.records import EpochRecord
from cwkernels.training.run import Recorder, Run, create_run, load_run
from cwkernels.training.samplers import Sampler, make_sampler
from cwkernels.training.step import EagerStep, Outcome, Step
from cwkernels.training.trainer import Trainer
from cwkernels.training.validation import Validation, validate

__all__ = [
    "RECIPES",
    "Callback",
    "Config",
    "DamagedCheckpoint",
    "DataConfig",
    "EagerStep",
    "EpochRecord",
    "GraphedStep",
    "NetworkConfig",
    "Outcome",
    "ProgressBar",
    "Recipe",
    "Recorder",
    "Run",
    "RunConfig",
    "Sampler",
    "Split",
    "Step",
    "TensorBoard",
    "Trainer",
    "Validation",
    "create_run",
    "eager_step",
    "graphed_step",
    "load_run",
    "make_sampler",
    "validate",
]
