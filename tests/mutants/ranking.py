"""Planted bugs of ranking, metrics, evaluations and reports."""

from mutant import Mutant

_SUPERNET = "cwkernels/networks/supernet.py"
_RANKING = "cwkernels/ranking/"

RANKING = (
    Mutant(
        "architectures share the statistics of the fixed batch norms",
        _SUPERNET,
        "if norm.statistics.running_mean.shape[0] > 1:",
        "if False:",
        ("tests/ranking/test_rank.py", "-k", "does_not_depend"),
    ),
    Mutant(
        "every architecture gets the rows of the first",
        _SUPERNET,
        "own._grow(decision, rows[decision])",
        "own._grow(decision, rows[decision][:1].repeat(len(archs)))",
        ("tests/networks/test_separate.py",),
    ),
    Mutant(
        "statistics are not reset",
        _RANKING + "together.py",
        "    if way.reset:\n",
        "    if False:\n",
        ("tests/ranking/test_rank.py", "-k", "stock_torch"),
    ),
    Mutant(
        "a prefix is scored by the statistics of the one before it",
        _RANKING + "prefix.py",
        "            fork.norms.put()\n",
        "            pass\n",
        ("tests/ranking/test_prefix.py", "-k", "bitwise"),
    ),
    Mutant(
        "recalibration goes on from nothing",
        _RANKING + "prefix.py",
        "    if not way.reset:\n",
        "    if False:\n",
        ("tests/ranking/test_prefix.py", "-k", "bitwise"),
    ),
    Mutant(
        "heads of a fork share their statistics",
        _RANKING + "prefix.py",
        "rows=len(fork.numbers))",
        "rows=1)",
        ("tests/ranking/test_prefix.py", "-k", "bitwise"),
    ),
    Mutant(
        "a recalibration measures all but the head",
        "cwkernels/networks/macro.py",
        "        self.head.measure(self._trunk(images, selection, recorder), recorder)",
        "        self._trunk(images, selection, recorder)",
        ("tests/networks/test_network_modes.py", "-k", "measuring"),
    ),
    Mutant(
        "moments about zero instead of the mean",
        "cwkernels/ops/_moments.py",
        "centred = pixels - mean[:, None]",
        "centred = pixels",
        ("tests/nn/test_moments.py", "-k", "float64"),
    ),
    Mutant(
        "what was tracked before counts beside a whole average",
        "cwkernels/nn/moments.py",
        "self._left[row] *= 1 - factor",
        "pass",
        ("tests/nn/test_moments.py", "-k", "training_passes"),
    ),
    Mutant(
        "a prediction rectifies at the wrong level",
        "cwkernels/networks/head.py",
        "torch.maximum(pixels, -term, out=pixels)",
        "torch.maximum(pixels, term, out=pixels)",
        ("tests/networks/test_network_modes.py", "-k", "predictions"),
    ),
    Mutant(
        "ranking works on the network itself",
        _RANKING + "prefix.py",
        "_Tree(copy.deepcopy(net), archs, way)",
        "_Tree(net, archs, way)",
        ("tests/ranking/test_rank.py", "-k", "left_as_it_is"),
    ),
    Mutant(
        "a line that was cut stays",
        _RANKING + "log.py",
        "            os.truncate(path, whole)",
        "            pass",
        ("tests/ranking/test_log.py", "-k", "not_scored_again"),
    ),
    Mutant(
        "ties are broken by the order of the file",
        _RANKING + "metrics.py",
        "means = (sums / np.bincount(group))[group]",
        "means = truth[order]",
        ("tests/ranking/test_metrics.py",),
    ),
    Mutant(
        "the predicted best are the worst",
        _RANKING + "metrics.py",
        'np.argsort(-values, kind="stable")',
        'np.argsort(values, kind="stable")',
        ("tests/ranking/test_metrics.py",),
    ),
    Mutant(
        "a NaN is ignored in tau",
        _RANKING + "metrics.py",
        "np.where(np.isnan(values), -np.inf, values)",
        "np.where(np.isnan(values), np.inf, values)",
        ("tests/ranking/test_metrics.py",),
    ),
    Mutant(
        "the ceiling is against a mean that has the training in it",
        _RANKING + "evaluate.py",
        "np.delete(trials, t, axis=1).mean(axis=1)",
        "trials.mean(axis=1)",
        ("tests/ranking/test_evaluate.py",),
    ),
    Mutant(
        "untrained scores are taken in the order of their file",
        _RANKING + "evaluate.py",
        "    return place[wanted]\n",
        "    return torch.arange(len(wanted))\n",
        ("tests/ranking/test_evaluate.py",),
    ),
    Mutant(
        "the gain is resampled by itself",
        _RANKING + "evaluate.py",
        '_interval(best - result["tau"], own - np.array(draws[name]))',
        '_interval(best - result["tau"], best - np.array(draws[name]))',
        ("tests/ranking/test_evaluate.py",),
    ),
    Mutant(
        "the paper's line is that of the same epoch, not of the same part of the schedule",
        "cwkernels/report/tables.py",
        "min(epochs, key=lambda epoch: abs(epoch / total - group.fraction))",
        "min(epochs, key=lambda epoch: abs(epoch - group.variant.epoch))",
        ("tests/report/test_report.py",),
    ),
    Mutant(
        "a ground truth in the order of its file",
        "cwkernels/groundtruth.py",
        'chosen = place[nb201("full").index(space.codes(space.all()))]',
        "chosen = torch.arange(len(space))",
        ("tests/groundtruth/test_groundtruth.py",),
    ),
)
