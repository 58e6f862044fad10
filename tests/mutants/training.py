"""Planted bugs of training: schedules, samplers, recipes, checkpoints, and runs that go on."""

from mutant import Mutant

_TRAINING = "cwkernels/training/"
_CHECKPOINT = _TRAINING + "checkpoint.py"
_RUN = _TRAINING + "run.py"
_SAMPLERS = _TRAINING + "samplers.py"
_STATE = _TRAINING + "state.py"
_TRAINER = _TRAINING + "trainer.py"
_RESUME = "tests/training/test_resume.py"
_LOOP = ("tests/training/test_trainer.py", "-k", "loop_is_the_one_of_a_page and strict_fair")
_AVERAGE = ("tests/training/test_trainer.py", "-k", "average_follows")
_DAMAGED = ("tests/training/test_checkpoint.py", "-k", "damaged_one_is_named and alter")
_GOES_ON = ("tests/training/test_checkpoint.py", "-k", "goes_on_from_the_older_one")

TRAINING = (
    Mutant(
        "the learning rate falls once an epoch",
        _TRAINER,
        "return cosine(step, steps,",
        "return cosine(step - step % self.batches.steps_per_epoch, steps,",
        _LOOP,
    ),
    Mutant(
        "architectures of neighbouring batches overlap",
        _TRAINER,
        "draw(self.step * count, count)",
        "draw(self.step, count)",
        _LOOP,
    ),
    Mutant(
        "a round takes a candidate twice",
        _SAMPLERS,
        "torch.randperm(m, generator=generator)",
        "torch.randint(m, (m,), generator=generator)",
        ("tests/training/test_samplers.py", "-k", "fairness_in_every_round"),
    ),
    Mutant(
        "a split an epoch early",
        _TRAINING + "schedule.py",
        "if split.epoch == epoch]",
        "if split.epoch == epoch + 1]",
        _LOOP,
    ),
    Mutant(
        "the average is not moved",
        _TRAINER,
        "update_average(self.average, self.net)",
        "pass",
        _AVERAGE,
    ),
    Mutant(
        "validation leaves its statistics behind",
        _TRAINING + "validation.py",
        "            buffer.copy_(value)\n",
        "            pass\n",
        ("tests/training/test_trainer.py", "-k", "validation_leaves"),
    ),
    Mutant(
        "the recipe's switch does not reach the optimizer",
        _TRAINER,
        "unselected=self.recipe.unselected",
        'unselected="untouched"',
        ("tests/training/test_recipes.py", "-k", "zero_grad-per_set-at_split"),
    ),
    Mutant(
        "every epoch in the same order",
        "cwkernels/data/batches.py",
        "self.seed, EPOCH, epoch)",
        "self.seed, EPOCH)",
        ("tests/data/test_batches.py",),
    ),
    Mutant(
        "momenta are not saved",
        _STATE,
        'tensors |= _prefixed("momentum", _momenta(trainer.net, trainer.optimizer))',
        "pass",
        _GOES_ON,
    ),
    Mutant(
        "what the epoch has measured is lost",
        _STATE,
        "getattr(trainer, name).copy_(sum_)",
        "pass",
        _GOES_ON,
    ),
    Mutant(
        "the records of steps that are taken again stay",
        _RUN,
        "keep_records_until(self.path / METRICS, trainer.step)",
        "pass",
        _GOES_ON,
    ),
    Mutant(
        "the generator's state is not restored",
        _STATE,
        'torch.set_rng_state(states["cpu"])',
        "pass",
        (_RESUME, "-k", "generator_goes_on"),
    ),
    Mutant(
        "first uses are forgotten",
        _STATE,
        "getattr(trainer.first_use, name).copy_(remembered)",
        "pass",
        (_RESUME, "-k", "steps_since_the_last and paper"),
    ),
    Mutant(
        "a checksum is not compared",
        _CHECKPOINT,
        'if sha256(tensors).hexdigest() != body["tensors"]:',
        "if False:",
        _DAMAGED,
    ),
    Mutant(
        "the checkpoint before a damaged one is not tried",
        _CHECKPOINT,
        "            damage = error\n",
        "            raise\n",
        _DAMAGED,
    ),
    Mutant(
        "the facts are written before the tensors",
        _CHECKPOINT,
        'write_whole(path.with_suffix(".safetensors"), tensors)\n'
        '    write_whole(path, json.dumps({"body": body, "sha256": _checksum(body)}, indent=1)'
        ".encode())\n",
        'write_whole(path, json.dumps({"body": body, "sha256": _checksum(body)}, indent=1)'
        ".encode())\n"
        '    write_whole(path.with_suffix(".safetensors"), tensors)\n',
        (f"{_RESUME}::test_a_killed_run_goes_on_bitwise[default-AtSync(number=2)]",),
    ),
    Mutant(
        "a file takes its name before it is on the disk",
        "cwkernels/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        ("tests/training/test_checkpoint.py", "-k", "full_disk"),
    ),
)
