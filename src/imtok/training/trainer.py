"""The training loop, common to tokenizers and generators."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError, to_dict
from imtok.layers.collective import ObjectGroup, barrier, mean_over_ranks, rank, world_size
from imtok.layers.model import Model
from imtok.training import sharding, state
from imtok.training.data_modules import BatchLoader, DataModule, share_of_batch
from imtok.training.log import TrainingLog, create_writer
from imtok.training.optim import averaged, create_optimizers, learning_rate
from imtok.training.run import AnyRunConfig
from imtok.training.tasks import Evaluator, Task
from imtok.training.watchdog import Watchdog


class TrainingStopped(RuntimeError):
    """The watchdog stopped the run; the message gives the reason. The last good state is kept."""


class Trainer:
    """Trainer of one run on one device; `run` executes the loop.

    Args:
        config: config of the run.
        task: model and losses, on any device.
        data_module: the training data.
        validation: evaluates the model at intervals.
        folder: folder of the run.
        device: device to compute on.

    Raises:
        ConfigError: batch sizes do not divide evenly, or no picture has the regions that a phase needs.
        MissingWeights: a network that some phase needs is not available.
    """

    def __init__(
        self,
        config: AnyRunConfig,
        task: Task,
        data_module: DataModule,
        validation: Evaluator,
        folder: RunFolder,
        device: torch.device,
    ) -> None:
        self.config, self.settings, self.folder, self.device = config, config.training, folder, device
        self.task, self.data_module, self.validation = task, data_module, validation
        self.phases = self.settings.scheduled_phases()
        self.total = sum(phase.steps for phase in self.phases)
        self.micro_size, self.passes = share_of_batch(
            self.settings.global_batch_size, world_size(), self.settings.micro_batch_size
        )
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.watchdog = Watchdog(self.settings.watchdog)
        self.step = self.rollbacks = 0
        # `sharding.shard` moves each shard by itself, so that no device needs to hold all weights.
        task.prepare(self.phases, torch.device("cpu") if self.settings.shard_weights else device)
        for index in range(len(self.phases)):
            self.loader(index)  # raises an error now rather than at the start of the phase
        if self.settings.channels_last:
            task.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        task.model.set_grad_checkpointing(self.settings.gradient_checkpointing)
        if self.settings.compile:
            task.model.compile_parts()
        self.average = averaged(task.model, self.settings.ema_decay) if self.settings.ema_decay else None
        if self.settings.shard_weights:
            sharding.shard(task.model, device)
            if self.average is not None:
                sharding.shard(self.inference_model(), device)
        self.optimizers = {
            player: create_optimizers(player, task.parameters_of(player), task.model, self.settings.optimizer)
            for player in task.players
        }
        self._asked_to_stop = self._stopping = self._save_pending = False

    def run(self, resume: bool) -> None:
        """Train to the end of the last phase.

        Args:
            resume: whether to resume from the folder's saved state; the same on every rank.

        Raises:
            ConfigError: the saved state is damaged, differs between ranks, or is of another model or number of
                pictures; or the logger is not installed.
            KeyboardInterrupt: a stop was requested; the state has been saved.
            TrainingStopped: the watchdog stopped the run.
        """
        if resume:
            self._restore()
        logger = self.settings.logger if rank() == 0 else "none"
        writer = create_writer(logger, self.folder, to_dict(self.config), self.step)
        if not resume:
            if rank() == 0:
                self.folder.begin()
            self._save()
        if rank() == 0:  # last: a folder with a config can be resumed, also with some settings changed
            self.folder.write_config(to_dict(self.config))
        barrier()
        self.log = TrainingLog(self.folder, self.step, self.total, self.settings.log_every, writer)
        try:
            with self._stoppable():
                if resume and self._lacks_validation():
                    self._validate(end_of_phase=self._ends_phase())
                while self.step < self.total and not self._stopping:
                    self._run_phase()
                if self.step < self.total:
                    self._save()
                    barrier()  # if a rank exits early, its launcher stops the one that saves
                    self.log.say(f"stopped after step {self.step}; go on with --resume")
                    raise KeyboardInterrupt
        finally:
            self.log.close()

    def _run_phase(self) -> None:
        """Train from the current step to the end of its phase, or to a stop or rollback."""
        index, start = self._phase_at(self.step)
        phase = self.phases[index]
        self.task.start_phase(phase)
        self.task.train()
        if self.step == start:
            self._average_frozen_parts()
        began = time.monotonic()  # includes waiting for a batch, but not the evaluation
        for step, batch in self.loader(index).batches(self.step - start, phase.steps):
            rate = learning_rate(self.settings.optimizer, phase, step)
            numbers = self._train_step(batch.to(self.device), rate)
            problem = self.watchdog.examine(numbers)
            if problem:
                self._handle(problem)
                return
            self.step += 1
            self.log.add(self.step, phase.name, rate, time.monotonic() - began, numbers)
            self._save_if_healthy(end_of_phase=step + 1 == phase.steps)
            self._validate(end_of_phase=step + 1 == phase.steps)
            if self._stopping:
                return
            began = time.monotonic()

    def _average_frozen_parts(self) -> None:
        """Set the frozen parts to their averaged weights, so that the others train with those that will be saved."""
        if self.average is None:
            return
        pairs = zip(self.task.model.parameters(), self.average.module.parameters(), strict=True)
        for parameter, average in pairs:
            if not parameter.requires_grad:
                parameter.data.copy_(average)

    def loader(self, phase: int) -> BatchLoader:
        """Return the loader of this rank's batches in a phase; after a rollback with other pictures."""
        seed = _combine_seeds(self.settings.seed, phase, self.rollbacks)
        return self.data_module.loader(self.phases[phase], self.settings.global_batch_size, seed)

    def _train_step(self, batch: Any, rate: float) -> dict[str, float]:
        """Do one optimizer step of every player; return its numbers, averaged over micro-batches and ranks."""
        # The seed of a step depends on its number alone, so that resuming needs no random generator's state.
        torch.manual_seed(_combine_seeds(self.settings.seed, self.step, rank()))
        sums: dict[str, Tensor] = {}
        for index in range(self.passes):
            micro = batch.part(index * self.micro_size, (index + 1) * self.micro_size)
            for player in self.task.players:
                with self._precision():
                    terms = self.task.losses(micro, player, self.step)
                if terms:
                    total = torch.stack([self.task.weight(name) * value for name, value in terms.items()]).sum()
                    (total / self.passes).backward()
                for name, value in terms.items():
                    mean = value.detach().float() / self.passes
                    sums[name] = sums[name] + mean if name in sums else mean
        stop = torch.tensor(float(self._asked_to_stop), device=self.device)  # a signal to one rank stops them all
        sums["stop"] = stop
        mean_over_ranks(list(sums.values()))
        numbers = {name: value.item() for name, value in sums.items()}
        self._stopping = numbers.pop("stop") > 0
        for player in self.task.players:
            norm = self._optimizer_step(player, rate)
            if norm is not None:
                numbers[f"grad_norm_{player}"] = norm
        numbers |= self.task.after_step()
        if self.average is not None:
            self.average.update_parameters(self.task.model)
        return numbers

    def _optimizer_step(self, player: str, rate: float) -> float | None:
        """Average the gradients over ranks, clip and step; return their norm, or None if there are no gradients."""
        parameters = [p for p in self.task.parameters_of(player) if p.grad is not None]
        if not parameters:
            return None
        mean_over_ranks([p.grad for p in parameters if p.grad is not None and not sharding.is_share(p.grad)])
        norm = sharding.whole(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)).item()
        for optimizer in self.optimizers[player].values():
            if math.isfinite(norm):  # if not, the watchdog reports it, and the weights stay intact
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def _precision(self) -> torch.autocast:
        """Return the autocast context of the losses; no rank caches the casts of all weights if these are sharded."""
        enabled, cached = self.settings.precision == "bf16", not self.settings.shard_weights
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=cached)

    def _save_if_healthy(self, end_of_phase: bool) -> None:
        """Save if due; if the watchdog sees a symptom, saving is postponed until the symptom is gone."""
        self._save_pending |= self._due(self.settings.save_every, end_of_phase)
        if self._save_pending and (not any(self.watchdog.symptoms.values()) or self.step == self.total):
            self._save()

    def _validate(self, end_of_phase: bool) -> None:
        """Evaluate and write previews, if due."""
        if self._due(self.settings.evaluate_every, end_of_phase) and self.validation.held_out:
            scores = self.validation.evaluate(self.inference_model(), self.device)
            self.log.record(self.step, **{f"validation/{name}": value for name, value in scores.items()})
        participates = rank() == 0 or self.settings.shard_weights  # sharded weights need all ranks
        if participates and self._due(self.settings.preview_every, end_of_phase):
            self.validation.preview(self.inference_model(), self.folder.previews, self.step, self.device)

    def _lacks_validation(self) -> bool:
        """Return whether the scores of the saved step are missing, as the run was killed after saving it."""
        barrier()  # until the first rank has truncated the metrics
        due = self.validation.held_out and self._due(self.settings.evaluate_every, self._ends_phase())
        logged = {name for line in self.folder.read_metrics() if line["step"] == self.step for name in line}
        return self.step > 0 and due and not any(name.startswith("validation/") for name in logged)

    def _ends_phase(self) -> bool:
        return self.step == self.total or self._phase_at(self.step)[1] == self.step

    def _due(self, every: int, end_of_phase: bool) -> bool:
        return end_of_phase or (every > 0 and self.step % every == 0)

    def inference_model(self) -> Model:
        """Return the averaged model if there is one, else the model itself."""
        if self.average is None:
            return self.task.model
        assert isinstance(self.average.module, Model)
        return self.average.module

    def _optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {name: optimizer for each in self.optimizers.values() for name, optimizer in each.items()}

    def _modules(self) -> Mapping[str, torch.nn.Module]:
        return {"task": self.task} if self.average is None else {"task": self.task, "average": self.average}

    def _save(self) -> None:
        """Save the weights for inference, and then the state for exact resume.

        In this order, a run that is killed in between resumes from the previous state and writes both again. In the
        other order, the final state could be saved without its weights, which would then never be written.
        """
        self._save_pending = False
        values = {"symptoms": self.watchdog.symptoms, "rollbacks": self.rollbacks, "pictures": len(self.data_module)}
        weights = self.inference_model().weights()
        if self.settings.shard_weights:
            weights = sharding.gather(weights)
        if rank() == 0:
            self.folder.write_model(weights)
        if self.settings.shard_weights:
            tensors = state.collect(self._modules(), self._optimizers())
            sharding.write_resume(self.folder, self.step, tensors, values)
        elif rank() == 0:
            self.folder.write_resume(self.step, state.collect(self._modules(), self._optimizers()), values)

    def _restore(self) -> None:
        """Restore the last saved state."""
        state_folder, values = self.folder.read_resume()
        if missing := {"step", "symptoms", "rollbacks", "pictures"} - values.keys():
            raise ConfigError(f"{state_folder / 'state.json'}: has no {min(missing)}; the state is damaged")
        if values["pictures"] != len(self.data_module):
            raise ConfigError(
                f"{self.folder.path}: was started on {values['pictures']} pictures, these are {len(self.data_module)}"
            )
        self._check_agreement((values["step"], values["rollbacks"]))
        tensors = sharding.read_state(state_folder, self._modules(), self._optimizers())
        state.restore(tensors, self._modules(), self._optimizers())
        self.step, self.watchdog.symptoms = values["step"], values["symptoms"]
        self.rollbacks = max(self.rollbacks, values["rollbacks"])
        if rank() == 0:
            self.folder.truncate_metrics(self.step)

    def _check_agreement(self, found: tuple[int, int]) -> None:
        """Check that all ranks have found the same state.

        Args:
            found: step and number of rollbacks of the state that this rank found.

        Raises:
            ConfigError: the states differ.
        """
        states = ObjectGroup().gather(found)
        if len(set(states)) > 1:
            steps = ", ".join(str(step) for step, _ in states)
            raise ConfigError(
                f"{self.folder.path}: the processes have found different states (after steps {steps}); copy the run "
                "to every machine again, or use a shared folder"
            )

    def _handle(self, problem: str) -> None:
        """Roll back or stop.

        Raises:
            TrainingStopped: the settings say to stop, or the maximum number of rollbacks has been made.
        """
        where = f"step {self.step + 1}: {problem}"
        settings = self.settings.watchdog
        if settings.action == "stop" or self.rollbacks >= settings.max_rollbacks:
            raise TrainingStopped(f"{where}; the last saved state is kept in {self.folder.path}")
        self.rollbacks += 1
        self._restore()
        if rank() == 0:
            # Stored at once, in case the run is killed before it saves again.
            self.folder.amend_resume(self.step, {"rollbacks": self.rollbacks})
        self.watchdog.symptoms = {}  # symptoms that had begun get the full patience again
        self.log.forget()
        self.log.record(self.step, rollback=where)
        self.log.say(f"{where}; back to step {self.step}, on with other pictures")

    def _phase_at(self, step: int) -> tuple[int, int]:
        """Return the index and first step of the phase that a step belongs to."""
        start = 0
        for index, phase in enumerate(self.phases):
            if step < start + phase.steps:
                return index, start
            start += phase.steps
        raise ValueError(f"step {step} is beyond the last phase")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Stop after the current step on Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once.

        Python handles signals in the main thread only; in other threads this does nothing.
        """

        def request_stop(signum: int, frame: Any) -> None:
            if self._asked_to_stop and signum == signal.SIGINT:
                raise KeyboardInterrupt
            self._asked_to_stop = True

        in_main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        previous = {number: signal.signal(number, request_stop) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _combine_seeds(*numbers: int) -> int:
    """Combine several numbers into one seed."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 62)
    return seed
