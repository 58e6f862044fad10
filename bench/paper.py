"""Table 1 of the paper, as printed there."""

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
