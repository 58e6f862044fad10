"""The loop beside one written by hand; averages, validation, callbacks, errors."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_cases import RECIPE, STEPS, TINY, tiny_batches

import cwkernels as cw
from cwkernels.networks import SuperNetwork
from cwkernels.training import (
    Callback,
    EpochRecord,
    Recipe,
    Split,
    Trainer,
    make_sampler,
    validate,
)
from cwkernels.training.average import averaged_network, make_average, update_average
from cwkernels.training.samplers import SamplerName
from cwkernels.training.schedule import cosine, due

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_network(seed: int = 0) -> SuperNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TINY.build()


def assert_same_state(net: nn.Module, other: nn.Module) -> None:
    wanted = other.state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def by_hand(net: SuperNetwork, recipe: Recipe) -> list[float]:
    """The default recipe in a page: the losses of its steps."""
    batches = tiny_batches()
    optimizer = cw.optim.SGD(net, lr=recipe.lr)
    sampler = make_sampler(recipe.sampler, net.space, batches.seed)
    count, losses = recipe.architectures, []
    for epoch in range(recipe.epochs):
        for split in recipe.splits:
            if split.epoch == epoch:
                net.split(split.decisions)
        for step, (images, labels) in enumerate(batches.epoch(epoch), start=epoch * STEPS):
            angle = math.pi * step / (recipe.epochs * STEPS)
            for group in optimizer.param_groups:
                group["lr"] = 1e-5 + (recipe.lr - 1e-5) * (1 + math.cos(angle)) / 2
            archs = sampler.draw(step * count, count)
            logits = net(images, archs[0])[None] if count == 1 else net(images, archs)
            optimizer.zero_grad()
            loss = torch.stack([F.cross_entropy(own, labels) for own in logits]).sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("architectures", [1, 3])
@pytest.mark.parametrize("sampler", ["uniform", "strict_fair", "balanced"])
def test_the_loop_is_the_one_of_a_page(architectures: int, sampler: SamplerName) -> None:
    recipe = replace(RECIPE, architectures=architectures, sampler=sampler)
    net, other = tiny_network(), tiny_network()
    records = Trainer(net, tiny_batches(), recipe).fit()
    losses = by_hand(other, recipe)
    assert_same_state(net, other)
    for epoch, record in enumerate(records):
        own = losses[epoch * STEPS : (epoch + 1) * STEPS]
        assert record.train_loss == pytest.approx(sum(own) / STEPS / architectures)
        assert (record.epoch, record.step) == (epoch + 1, (epoch + 1) * STEPS)
    assert [record.weight_sets for record in records] == [12, 28, 76, 76]


def test_the_learning_rate_is_a_cosine_in_closed_form() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.025)
    stock = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-5)
    for step in range(50):
        assert cosine(step, 50, 0.025, 1e-5) == pytest.approx(stock.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        stock.step()
    assert cosine(0, 50, 0.025, 1e-5) == 0.025


def test_splits_are_due_once() -> None:
    splits = (Split(1, (2,)), Split(3), Split(1, (4,)))
    assert [due(splits, epoch) for epoch in range(4)] == [
        [],
        [splits[0], splits[2]],
        [],
        [splits[1]],
    ]


def test_stopping_early_keeps_the_schedule() -> None:
    """Figure 6: the same run, its end cut off."""
    whole, cut = tiny_network(), tiny_network()
    records = Trainer(whole, tiny_batches(), RECIPE).fit()
    early = Trainer(cut, tiny_batches(), replace(RECIPE, stop_epoch=3)).fit()
    assert [own.train_loss for own in early] == [own.train_loss for own in records[:3]]
    assert [own.lr for own in early] == [own.lr for own in records[:3]]


class HandAverage(Callback):
    """An average by hand, a set of its own for each row, copied at the split."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.own: dict[str, Tensor] = {}

    def on_step(self, trainer: Trainer) -> None:
        for name, parameter in trainer.net.named_parameters():
            now = parameter.detach().clone()
            before = self.own.get(name)
            if before is None:
                self.own[name] = now
                continue
            if before.shape != now.shape:  # all rows were copies of one
                before = before[:1].expand_as(now)
            self.own[name] = self.decay * before + (1 - self.decay) * now


def test_the_average_follows_a_split() -> None:
    recipe = replace(RECIPE, splits=(Split(2),), ema_decay=0.8)
    hand = HandAverage(0.8)
    trainer = Trainer(tiny_network(), tiny_batches(), recipe, callbacks=[hand])
    records = trainer.fit()
    assert trainer.average is not None
    average = averaged_network(trainer.average)
    assert average.num_weight_sets == 76
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter.detach(), hand.own[name], msg=name)
    own = validate(average, trainer.batches)
    assert (records[-1].average_loss, records[-1].average_accuracy) == tuple(own)
    assert records[-1].average_loss != records[-1].validation_loss


def test_the_average_is_torchs() -> None:
    net, twin = tiny_network(), tiny_network()
    average, wanted = make_average(net, 0.8), make_average(twin, 0.8)
    assert average is not None
    assert wanted is not None
    for number in range(3):
        for own in (net, twin):
            with torch.no_grad():
                own.classifier.weight.add_(0.1)
                own.get_buffer("head_norm.statistics.running_mean").fill_(number)
        update_average(average, net)
        wanted.update_parameters(twin)
        assert_same_state(average, wanted)


def test_an_average_changes_nothing_of_what_is_trained() -> None:
    plain, averaged = tiny_network(), tiny_network()
    Trainer(plain, tiny_batches(), RECIPE).fit()
    Trainer(averaged, tiny_batches(), replace(RECIPE, ema_decay=0.8)).fit()
    assert_same_state(plain, averaged)


def test_validation_leaves_the_network_as_it_was() -> None:
    net, twin = tiny_network(), tiny_network()
    batches = tiny_batches()
    net.eval()
    first = validate(net, batches)
    assert not net.training
    assert net.last_rows is None
    assert_same_state(net, twin)
    assert validate(net, batches) == first
    # The mean over images, each batch normalised by its own statistics.
    net.train()
    generator = cw.data.seeds.seeded_generator("test", 0, cw.data.seeds.VALIDATED)
    loss, correct = 0.0, 0
    for images, labels in batches.validation():
        logits = net(images, net.space.sample(1, generator=generator)[0]).detach()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
    assert first.loss == pytest.approx(loss / 10)
    assert first.accuracy == 100 * correct / 10


def test_validation_may_be_rare_and_changes_nothing() -> None:
    often, rarely = tiny_network(), tiny_network()
    Trainer(often, tiny_batches(), RECIPE).fit()
    records = Trainer(rarely, tiny_batches(), replace(RECIPE, validate_every=3)).fit()
    assert_same_state(often, rarely)
    assert [own.validation_loss is not None for own in records] == [False, False, True, False]


class Diary(Callback):
    def __init__(self) -> None:
        self.entries: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.entries.append("start")

    def on_split(self, trainer: Trainer) -> None:
        self.entries.append(f"split {trainer.step}")

    def on_step(self, trainer: Trainer) -> None:
        self.entries.append(str(trainer.step))

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        self.entries.append(f"epoch {record.epoch}")

    def on_end(self, trainer: Trainer) -> None:
        self.entries.append("end")


def test_callbacks_hear_everything_in_order() -> None:
    diary = Diary()
    recipe = replace(RECIPE, epochs=2, splits=(Split(1),))
    Trainer(tiny_network(), tiny_batches(), recipe, callbacks=[diary]).fit()
    told = ["start", "1", "2", "3", "epoch 1", "split 3", "4", "5", "6", "epoch 2", "end"]
    assert diary.entries == told


def test_a_loss_that_is_not_finite_is_a_named_error() -> None:
    net = tiny_network()
    diary = Diary()
    with torch.no_grad():
        net.classifier.bias.fill_(math.nan)
    line = "Trainer: loss: wanted a finite one, got nan in epoch 1"
    with pytest.raises(ArithmeticError, match=line):
        Trainer(net, tiny_batches(), RECIPE, callbacks=[diary]).fit()
    assert diary.entries == ["start", "1", "2", "3", "end"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"epochs": 0}, "Recipe: epochs: wanted at least 1, got 0"),
        ({"architectures": 0}, "Recipe: architectures: wanted at least 1, got 0"),
        ({"validate_every": 0}, "Recipe: validate_every: wanted at least 1, got 0"),
        ({"stop_epoch": 251}, "Recipe: stop_epoch: wanted 1 … 250, the epochs, got 251"),
        ({"final_lr": 0.1}, "Recipe: final_lr: wanted 0 … 0.025, the learning rate, got 0.1"),
        ({"ema_decay": 1.0}, "Recipe: ema_decay: wanted a number in [0, 1), got 1.0"),
        ({"new_sets": "late"}, "new_sets: wanted 'at_split' or 'on_first_use', got 'late'"),
        ({"sampler": "fair"}, "Recipe: sampler: wanted 'uniform' or 'strict_fair' or 'balanced'"),
        ({"recalibration": "all"}, "Recipe: recalibration: wanted 'reset' or 'running'"),
    ],
)
def test_a_recipe_refuses_what_is_out_of_range(options: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        Recipe(**options)  # type: ignore[arg-type]


def test_a_split_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="Recipe: splits: wanted epochs of at least 0, got -1"):
        Split(-1)


def test_a_split_of_no_decision_is_refused() -> None:
    recipe = replace(RECIPE, splits=(Split(1, (6,)),))
    line = r"Trainer: recipe.splits: wanted decisions 0 … 5, got \(6,\)"
    with pytest.raises(ValueError, match=line):
        Trainer(tiny_network(), tiny_batches(), recipe)


def test_batches_elsewhere_are_refused() -> None:
    net = tiny_network().to("meta")
    with pytest.raises(ValueError, match="Trainer: batches: wanted batches on meta, the network's"):
        Trainer(net, tiny_batches(), RECIPE)
