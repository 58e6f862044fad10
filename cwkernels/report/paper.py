"""What the paper reports: tables 1 and 5 as printed, and what its text says of figures 4 and 5."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperColumn:
    """One network's two columns of table 1.

    Attributes:
        title: the network's name in the table.
        benchmark: which benchmark it belongs to.
        epochs: E, the epochs of a training.
        seconds: the baseline's training time.
        megabytes: the baseline's GPU memory.
        overheads: by split epoch, percent more time and percent more memory.
    """

    title: str
    benchmark: str
    epochs: int
    seconds: int
    megabytes: int
    overheads: Mapping[int, tuple[float, float]]


TABLE_1: Mapping[str, PaperColumn] = {
    "full": PaperColumn(
        "full",
        "NAS-Bench-201",
        250,
        1862,
        1895,
        {
            125: (17.7, 1.2),
            140: (14.6, 1.2),
            145: (17.1, 1.2),
            150: (13.8, 1.2),
            155: (14.8, 1.2),
            160: (13.0, 1.2),
            175: (11.0, 1.2),
            200: (9.4, 1.2),
        },
    ),
    "no_zero": PaperColumn(
        "no Zero",
        "NAS-Bench-201",
        250,
        2193,
        1895,
        {
            125: (9.6, 0.6),
            140: (9.9, 0.6),
            145: (7.9, 0.6),
            150: (8.1, 0.6),
            155: (8.9, 0.6),
            160: (7.5, 0.6),
            175: (7.1, 0.6),
            200: (5.7, 0.6),
        },
    ),
    "only_conv": PaperColumn(
        "only convolutions",
        "NAS-Bench-201",
        250,
        2783,
        1895,
        {
            125: (2.5, 0.0),
            140: (2.2, 0.0),
            145: (2.6, 0.0),
            150: (3.0, 0.0),
            155: (2.1, 0.0),
            160: (2.3, 0.0),
            175: (2.1, 0.0),
            200: (1.9, 0.0),
        },
    ),
    "macro": PaperColumn(
        "full",
        "NAS-Bench-Macro",
        50,
        729,
        3294,
        {
            25: (0.7, 0.7),
            30: (-0.9, 0.7),
            35: (1.9, 0.7),
            38: (-0.6, 1.0),
            40: (-2.0, 0.7),
            42: (0.4, 0.7),
            45: (1.0, 1.0),
            47: (-3.0, 0.3),
        },
    ),
}


@dataclass(frozen=True)
class PaperTaus:
    """One network's two columns of table 5.

    Attributes:
        baseline: Kendall's tau over all architectures, and over the 50 best.
        splits: the same by split epoch.
    """

    baseline: tuple[float, float]
    splits: Mapping[int, tuple[float, float]]


TABLE_5: Mapping[str, PaperTaus] = {
    "full": PaperTaus(
        (0.56, -0.06),
        {
            125: (0.56, -0.08),
            140: (0.55, -0.11),
            145: (0.56, -0.10),
            150: (0.57, -0.04),
            155: (0.56, -0.04),
            160: (0.57, -0.07),
            175: (0.57, -0.09),
            200: (0.56, -0.04),
        },
    ),
    "no_zero": PaperTaus(
        (0.46, 0.14),
        {
            125: (0.50, 0.19),
            140: (0.49, 0.13),
            145: (0.50, 0.12),
            150: (0.51, 0.17),
            155: (0.51, 0.16),
            160: (0.48, 0.19),
            175: (0.51, 0.19),
            200: (0.51, 0.19),
        },
    ),
    "only_conv": PaperTaus(
        (0.56, 0.31),
        {
            125: (0.54, 0.26),
            140: (0.54, 0.29),
            145: (0.58, 0.34),
            150: (0.60, 0.36),
            155: (0.56, 0.33),
            160: (0.57, 0.32),
            175: (0.56, 0.31),
            200: (0.54, 0.27),
        },
    ),
    "macro": PaperTaus(
        (0.73, 0.30),
        {
            25: (0.72, 0.34),
            30: (0.73, 0.31),
            35: (0.72, 0.34),
            38: (0.73, 0.36),
            40: (0.73, 0.31),
            42: (0.73, 0.34),
            45: (0.73, 0.36),
            47: (0.74, 0.26),
        },
    ),
}


@dataclass(frozen=True)
class PaperSelection:
    """What section 4.1 says of a network's selections, in numbers; it prints no table of them.

    Attributes:
        split: the epoch that the section names.
        improvement: of the one architecture selected, without and with that split.
        accuracy: percent, likewise; None where the text gives none.
    """

    split: int
    improvement: tuple[float, float]
    accuracy: tuple[float, float | None]


SELECTIONS: Mapping[str, PaperSelection] = {
    "full": PaperSelection(155, (0.7, 0.8), (92.2, None)),
    "no_zero": PaperSelection(145, (0.61, 0.72), (92.3, 92.8)),
    "only_conv": PaperSelection(150, (0.53, 0.64), (93.6, 93.7)),
}
"""Of figure 5, Macro's, the text gives no numbers."""
