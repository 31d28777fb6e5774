"""The one training loop."""

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError, from_dict, to_dict
from imtok.data.loader import Batch, Loader
from imtok.data.readers import open_source
from imtok.layers.collective import mean_over_ranks, rank, world_size
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import load
from imtok.training import state
from imtok.training.devices import process_group, share_of_batch
from imtok.training.log import TrainingLog, create_writer
from imtok.training.optim import averaged, create_optimizer, learning_rate
from imtok.training.run import RunConfig
from imtok.training.tasks import TokenizerTask
from imtok.training.validation import Validation
from imtok.training.watchdog import Watchdog


class TrainingStopped(RuntimeError):
    """The watchdog has stopped the run; the message says why. The last good state is kept."""


def train(
    config: RunConfig,
    data: str,
    out: str | Path,
    validation: str | None = None,
    resume: bool = False,
    init_from: str | None = None,
) -> Path:
    """Train a tokenizer through all its phases.

    Ctrl-C or SIGTERM ends after the current step, saved, with KeyboardInterrupt. Under torchrun, all processes call
    this alike.

    Args:
        config: the run; a preset or a changed one.
        data: Parquet shards (see `imtok annotate` and `imtok synthesize`) or whatever else `data` reads.
        out: run folder.
        validation: held-out pictures for previews and the evaluation; without them previews show training pictures.
        resume: go on with the run in `out`, which must have the same config and data.
        init_from: start from this run, shipped tokenizer or other project's checkpoint instead of from scratch.

    Returns:
        The run folder.

    Raises:
        ConfigError: something does not fit; one line.
        TrainingStopped: the run has gone wrong.
    """
    folder = RunFolder(out)
    if folder.exists() and not resume:
        raise ConfigError(f"{out}: already holds a run; give --resume to go on with it, or another folder")
    if resume:
        check_same_run(config, from_dict(RunConfig, folder.read_config(), str(folder.config_file)), folder)
    with process_group() as device:
        Trainer(config, data, folder, validation, init_from, device).run()
    return folder.path


def check_same_run(config: RunConfig, saved: RunConfig, folder: RunFolder) -> None:
    """A resumed run must be the one that was started.

    Raises:
        ConfigError: names the first setting that differs.
    """
    now, then = dict(_leaves(to_dict(config))), dict(_leaves(to_dict(saved)))
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            raise ConfigError(
                f"{folder.path}: was started with {name} = {then.get(name)}, not {now.get(name)}; "
                "resume with the same settings, or start a new run with --init-from"
            )


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    children = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if children is None:
        yield prefix, values
    else:
        for key, value in children:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


class Trainer:
    """One run on one device; `run` is the loop."""

    def __init__(
        self,
        config: RunConfig,
        data: str,
        folder: RunFolder,
        validation: str | None,
        init_from: str | None,
        device: torch.device,
    ) -> None:
        self.config, self.settings, self.folder, self.device = config, config.training, folder, device
        self.phases = self.settings.scheduled_phases()
        self.total = sum(phase.steps for phase in self.phases)
        self.micro_size, self.passes = share_of_batch(
            self.settings.global_batch_size, world_size(), self.settings.micro_batch_size
        )
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        torch.manual_seed(self.settings.seed)
        self.task = TokenizerTask(config)
        if init_from:
            start_from(self.task, init_from)
        self.task.to(device)
        if self.settings.gradient_checkpointing:
            self.task.tokenizer.checkpoint_activations(True)
        if self.settings.compile:
            self.task.tokenizer.compile_parts()
        self.average = averaged(self.task.model, self.settings.ema_decay) if self.settings.ema_decay else None
        self.optimizers = {
            player: create_optimizer(self.task.parameters_of(player), self.settings.optimizer)
            for player in self.task.players
        }
        self.watchdog = Watchdog(self.settings.watchdog)
        self.rollbacks = 0
        self.step = 0
        self.source = open_source(data)
        held_out = None if validation is None else open_source(validation)
        self.validation = Validation(config, held_out or self.source, held_out is not None)
        self._stop = False
        self._restore()

    def run(self) -> None:
        """Train from `self.step` to the end of the last phase.

        Raises:
            KeyboardInterrupt: it was asked to stop, and has saved its state.
            TrainingStopped: the watchdog stopped it.
        """
        if rank() == 0 and not self.folder.exists():
            self.folder.write_config(to_dict(self.config))
        writer = create_writer(self.settings.logger, self.folder, to_dict(self.config)) if rank() == 0 else None
        self.log = TrainingLog(self.folder, self.step, self.total, self.settings.log_every, writer)
        try:
            with self._stoppable():
                while self.step < self.total and not self._stop:
                    self._run_phase()
                if self._stop:
                    self._save()
                    self.log.say(f"stopped after step {self.step}; go on with --resume")
                    raise KeyboardInterrupt
        finally:
            self.log.close()

    def _run_phase(self) -> None:
        """From the current step to the end of its phase, to a stop or to a rollback."""
        index, start = self._phase_at(self.step)
        phase = self.phases[index]
        self.task.start_phase(phase)
        self.task.train()
        for step, batch in self.loader(index).batches(self.step - start, phase.steps):
            rate = learning_rate(self.settings.optimizer, step, phase.steps)
            numbers = self._train_step(batch.to(self.device), rate)
            trouble = self.watchdog.examine(numbers)
            if trouble:
                self._handle(trouble)
                return
            self.step += 1
            self.log.add(self.step, phase.name, rate, numbers)
            self._look_and_save(end_of_phase=step + 1 == phase.steps)
            if self._stop:
                return

    def loader(self, phase: int) -> Loader:
        """This rank's training pictures in a phase; other ones after a rollback."""
        return Loader(
            self.source,
            self.config.data,
            region_share=self.phases[phase].region_share,
            batch_size=self.settings.global_batch_size,
            seed=_mix(self.settings.seed, phase, self.rollbacks),
            rank=rank(),
            world_size=world_size(),
        )

    def _train_step(self, batch: Batch, rate: float) -> dict[str, float]:
        """One optimizer step of every player; returns its numbers, averaged over micro-batches and ranks."""
        # All randomness of a step comes from its number, so that resuming needs no generator's state.
        torch.manual_seed(_mix(self.settings.seed, self.step, rank()))
        sums: dict[str, Tensor] = {}
        for index in range(self.passes):
            micro = batch.part(index * self.micro_size, (index + 1) * self.micro_size)
            for player in self.task.players:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                    terms = self.task.losses(micro, player, self.step)
                if terms:
                    total = torch.stack([self.task.weight(name) * value for name, value in terms.items()]).sum()
                    (total / self.passes).backward()
                for name, value in terms.items():
                    mean = value.detach().float() / self.passes
                    sums[name] = sums[name] + mean if name in sums else mean
        sums["stop"] = torch.tensor(float(self._stop), device=self.device)  # a signal to one rank stops them all
        mean_over_ranks(list(sums.values()))
        numbers = {name: value.item() for name, value in sums.items()}
        self._stop = numbers.pop("stop") > 0
        for player, optimizer in self.optimizers.items():
            norm = self._optimizer_step(player, optimizer, rate)
            if norm is not None:
                numbers[f"grad_norm_{player}"] = norm
        numbers |= self.task.after_step()
        if self.average is not None:
            self.average.update_parameters(self.task.model)
        return numbers

    def _optimizer_step(self, player: str, optimizer: torch.optim.Optimizer, rate: float) -> float | None:
        """Average the gradients over ranks, clip, step; None for a player that rests."""
        parameters = [p for p in self.task.parameters_of(player) if p.grad is not None]
        if not parameters:
            return None
        mean_over_ranks([p.grad for p in parameters if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm).item()
        if math.isfinite(norm):  # if not, the watchdog will report it, and the weights stay sound
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _look_and_save(self, end_of_phase: bool) -> None:
        """Previews, evaluation and saving, when it is time."""
        if self._due(self.settings.evaluate_every, end_of_phase) and self.validation.held_out:
            scores = self.validation.evaluate(self.inference_model(), self.device)
            self.log.record(self.step, **{f"validation/{name}": value for name, value in scores.items()})
        if rank() == 0 and self._due(self.settings.preview_every, end_of_phase):
            self.validation.preview(self.inference_model(), self.folder.previews, self.step, self.device)
        if self._due(self.settings.save_every, end_of_phase):
            self._save()

    def _due(self, every: int, end_of_phase: bool) -> bool:
        return end_of_phase or (every > 0 and self.step % every == 0)

    def inference_model(self) -> Tokenizer:
        """The averaged tokenizer where there is one, else the tokenizer itself."""
        if self.average is None:
            return self.task.model
        assert isinstance(self.average.module, Tokenizer)
        return self.average.module

    def _modules(self) -> Mapping[str, torch.nn.Module]:
        return {"task": self.task} if self.average is None else {"task": self.task, "average": self.average}

    def _save(self) -> None:
        """Weights for inference, and everything that exact resume needs."""
        if rank():
            return
        self.folder.write_model(self.inference_model().weights())
        values = {"symptoms": self.watchdog.symptoms, "rollbacks": self.rollbacks}
        self.folder.write_resume(self.step, state.collect(self._modules(), self.optimizers), values)

    def _restore(self) -> None:
        """Back to the last saved state, if there is one."""
        saved = self.folder.read_resume()
        if saved is not None:
            tensors, values = saved
            state.restore(tensors, self._modules(), self.optimizers)
            self.step, self.watchdog.symptoms = values["step"], values["symptoms"]
            self.rollbacks = max(self.rollbacks, values["rollbacks"])
        if rank() == 0 and self.folder.exists():
            self.folder.truncate_metrics(self.step)

    def _handle(self, trouble: str) -> None:
        """Roll back or stop.

        Raises:
            TrainingStopped: by choice, or when rolling back has not helped.
        """
        where = f"step {self.step + 1}: {trouble}"
        settings = self.settings.watchdog
        if settings.action == "stop" or self.rollbacks >= settings.max_rollbacks or self.folder.read_resume() is None:
            raise TrainingStopped(f"{where}; the state before it is kept in {self.folder.path}")
        self.rollbacks += 1
        self._restore()
        self.log.say(f"{where}; back to step {self.step}, on with other pictures")

    def _phase_at(self, step: int) -> tuple[int, int]:
        """Index and first step of the phase that a step belongs to."""
        start = 0
        for index, phase in enumerate(self.phases):
            if step < start + phase.steps:
                return index, start
            start += phase.steps
        raise ValueError(f"step {step} is beyond the last phase")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop after the step at hand; a second Ctrl-C interrupts."""

        def ask(signum: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, ask) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def start_from(task: TokenizerTask, source: str) -> None:
    """Put the weights of a trained tokenizer into the task's.

    Raises:
        ConfigError: its architecture differs.
    """
    try:
        task.tokenizer.load_weights(load(source).weights(), source)
    except ValueError as error:
        raise ConfigError(f"--init-from {error}") from None


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 62)
    return seed
