"""Ranking architectures by a super-network, and whether to believe the ranking.

``rank`` scores architectures; ``evaluate`` compares scores with a benchmark's ground truth, beside
what simpler predictors and the noise of the ground truth itself say.
"""

from cwkernels.ranking.evaluate import Evaluation, evaluate, predictors
from cwkernels.ranking.evaluated import evaluated_set
from cwkernels.ranking.metrics import metrics
from cwkernels.ranking.options import RankingOptions, Recalibration
from cwkernels.ranking.rank import Scores, load_scores, rank
from cwkernels.ranking.table import text

__all__ = [
    "Evaluation",
    "RankingOptions",
    "Recalibration",
    "Scores",
    "evaluate",
    "evaluated_set",
    "load_scores",
    "metrics",
    "predictors",
    "rank",
    "text",
]
