"""The floor counts what a plan reads, writes and multiplies: by hand where that is possible."""

import pytest
import torch

from bench import floor
from bench.floor import CARDS, Card, fused, scoring_pass, seconds, step
from bench.launches import ACTIVATION_BYTES, Launch, Value
from cwkernels.spaces import macro as macro_space
from cwkernels.spaces.macro import HEAD, STEM
from cwkernels.spaces.macro import flops as macro_flops

BATCH = 4
PLAIN = Card(1.0, 1e9, 10, {"tf32": 1e9}, 1e9)
"""One byte a second from memory, room for ten bytes, and all else costs nothing."""


def nb201(*codes: int) -> torch.Tensor:
    return torch.tensor(codes)


def of_cell(launches: list[Launch], cell: str) -> list[Launch]:
    return [launch for launch in launches if launch.name.startswith(f"{cell} ")]


def tensors(launches: list[Launch], cell: str) -> list[tuple[int, int]]:
    """How many activations each launch reads and writes, in units of the cell's."""
    size = BATCH * 16 * 32**2 * 4
    return [
        (
            sum(value.bytes == size for value in launch.reads),
            sum(value.bytes == size for value in launch.writes),
        )
        for launch in of_cell(launches, cell)
    ]


ALL_3X3 = nb201(3, 3, 3, 3, 3, 3)


def test_a_cell_of_six_convolutions_by_hand() -> None:
    launches = step("full", ALL_3X3, BATCH, "tf32")
    forward = [
        (1, 3),  # the input; three raw outputs
        (1, 3),  # one raw; node 1 and two raws
        (2, 2),  # two raws; node 2 and a raw
        (3, 1),  # three raws; the output
    ]
    backward = [
        # Of node 2: the output's gradient, the raw of 2 to 3, node 2, and the two raws that its own
        # edges' batch norms need sums of.
        (5, 1),
        # Of node 1: two gradients, two raws, node 1, and one raw for sums.
        (6, 1),
        # Of the input: three gradients, three raws and the input.
        (7, 1),
    ]
    assert tensors(launches, "cell 0.0") == forward + backward
    # What writes the gradient of a cell's output takes the sums of its last three batch norms.
    assert tensors(launches, "cell 0.1") == [*forward, *backward[:2], (10, 1)]


def test_sums_of_the_last_batch_norms_are_taken_where_the_gradient_is_written() -> None:
    launches = step("full", ALL_3X3, BATCH, "tf32")
    writer = next(i for i, each in enumerate(launches) if each.name == "cell 0.1 gradient of 0")
    raws = {f"cell 0.0 raw {source} to 3" for source in range(3)}
    read = {value.name for value in launches[writer].reads}
    assert raws <= read
    assert launches[writer + 1].name == "cell 0.0 gradient of 2"


def test_wider_cells_have_a_kernel_for_weight_gradients() -> None:
    launches = of_cell(step("full", ALL_3X3, BATCH, "tf32"), "cell 1.1")
    assert [launch.name for launch in launches[4:]] == [
        "cell 1.1 gradient of 2",
        "cell 1.1 gradient of 1",
        "cell 1.1 gradient of 0",
        "cell 1.1 weight gradients",
    ]
    weights = launches[-1]
    assert sum(value.bytes for value in weights.writes) == 6 * 32 * 32 * 9 * 4
    assert weights.matrix == sum(launch.matrix for launch in launches[:4])


def test_a_node_that_no_convolution_leaves_is_not_written() -> None:
    # 0 to 1 by 3x3, 1 to 3 by skip, the rest nothing.
    launches = of_cell(step("full", nb201(3, 0, 0, 0, 1, 0), BATCH, "tf32"), "cell 0.0")
    assert [launch.name for launch in launches] == [
        "cell 0.0 from 0",
        "cell 0.0 to 3",
        "cell 0.0 gradient of 0",
    ]
    assert [value.name for value in launches[1].reads] == ["cell 0.0 raw 0 to 1"]
    names = [value.name for value in launches[2].reads]
    assert "cell 0.1 gradient of node 0" in names
    assert "cell 0.0 gradient of node 1" not in names


def test_dead_edges_launch_nothing() -> None:
    nothing = step("full", nb201(0, 0, 0, 0, 0, 0), BATCH, "tf32")
    assert [launch.name for launch in of_cell(nothing, "cell 0.0")] == ["cell 0.0 to 3"]
    assert not any(launch.name.startswith("stem norm backward") for launch in nothing)
    dead = of_cell(step("full", nb201(3, 0, 0, 1, 0, 0), BATCH, "tf32"), "cell 0.0")
    assert sum(launch.matrix for launch in dead) == 0


def operations(launches: list[Launch]) -> int:
    return sum(launch.matrix + launch.depthwise for launch in launches)


@pytest.mark.parametrize("training", [True, False])
def test_macro_multiplies_what_the_space_counts(training: bool) -> None:
    for index in (0, 1, 3280, 6560):
        arch = macro_space()[index]
        launches = (step if training else scoring_pass)("macro", arch, 1, "tf32")
        linear = HEAD.out_channels * 10
        forward = 2 * (int(macro_flops(arch)) - linear)
        # Forward, data and weights; the images need no gradient.
        assert operations(launches) == (3 * forward - 2 * STEM.flops if training else forward)


def test_bf16_halves_what_is_not_weights() -> None:
    for network, arch in (("full", ALL_3X3), ("macro", macro_space()[6560])):
        for launches_of in (step, scoring_pass):
            pairs = zip(
                launches_of(network, arch, BATCH, "tf32"),
                launches_of(network, arch, BATCH, "bf16"),
                strict=True,
            )
            for wide, narrow in pairs:
                for one, other in zip(
                    (*wide.reads, *wide.writes), (*narrow.reads, *narrow.writes), strict=True
                ):
                    fixed = "weight" in one.name or one.name == "bytes of images"
                    assert other.bytes == (one.bytes if fixed else one.bytes // 2), one.name


def test_what_a_kernel_takes_is_the_longest_of_four_and_a_launch() -> None:
    value = Value("a", 10)
    card = Card(5.0, 10.0, 0, {"tf32": 100.0}, 1.0)
    memory = Launch("copy", (value,), ())
    assert seconds([memory], card, "tf32") == pytest.approx(2 + 1e-6)
    assert seconds([Launch("mma", (value,), (), matrix=300)], card, "tf32") == pytest.approx(3)
    assert seconds([Launch("dw", (value,), (), depthwise=4)], card, "tf32") == pytest.approx(4)
    cached = Card(1e9, 10.0, 0, {"tf32": 100.0}, 1.0)
    assert seconds([memory], cached, "tf32") == pytest.approx(1, rel=1e-4)


def test_l2_holds_the_tensors_used_last() -> None:
    a, b, c = (Value(name, 5) for name in "abc")

    def memory_seconds(*launches: Launch) -> float:
        return round(seconds(launches, PLAIN, "tf32"), 3)

    write_a, read_a = Launch("w", (), (a,)), Launch("r", (a,), ())
    assert memory_seconds(write_a) == 5
    assert memory_seconds(write_a, read_a) == 5
    assert memory_seconds(write_a, Launch("r", (b,), ()), read_a) == 10
    assert memory_seconds(write_a, Launch("r", (b,), ()), Launch("r", (c,), ()), read_a) == 20


def writes(launches: list[Launch]) -> int:
    return sum(len(launch.writes) for launch in launches)


def test_fused_reads_nothing_more_and_multiplies_as_much() -> None:
    for network, arch in (("full", ALL_3X3), ("macro", macro_space()[6560])):
        launches = step(network, arch, BATCH, "tf32")
        riding = fused(launches)
        assert len(riding) == sum(not launch.rides for launch in launches)
        assert operations(riding) == operations(launches)
        assert writes(riding) == writes(launches)
        for card in CARDS.values():
            assert seconds(riding, card, "tf32") < seconds(launches, card, "tf32")


def test_every_architecture_has_a_plan() -> None:
    for network in floor.NETWORKS:
        drawn = floor.architectures_of(network, 64)
        for arch in drawn:
            for launches in (
                step(network, arch, 2, "bf16"),
                scoring_pass(network, arch, 2, "bf16"),
            ):
                assert all(launch.bytes >= 0 for launch in launches)
                written = {value.name for launch in launches for value in launch.writes}
                made = {"bytes of images"} | written
                for launch in launches:
                    for value in launch.reads:
                        assert value.name in made or "weight" in value.name, value.name


def test_the_table_is_the_same_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    floor.main(["--architectures", "4"])
    first = capsys.readouterr().out
    floor.main(["--architectures", "4"])
    assert capsys.readouterr().out == first
    assert len(first.splitlines()) == 1 + len(floor.NETWORKS) * len(floor.BATCHES) * len(
        ACTIVATION_BYTES
    )
