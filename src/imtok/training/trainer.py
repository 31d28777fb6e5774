"""The one training loop."""

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
    """The watchdog has stopped the run; the message says why. The last good state is kept."""


class Trainer:
    """One run on one device; `run` is the loop.

    Args:
        config: the run.
        task: model and losses, on any device yet.
        feed: what it trains on.
        validation: looks at the model now and then.
        folder: of the run.
        device: to compute on.

    Raises:
        ConfigError: batch sizes that cannot be cut, pictures without the regions that a phase wants, or other
            pictures than the run was started with.
        MissingWeights: a network that some phase needs.
    """

    def __init__(
        self,
        config: AnyRunConfig,
        task: Task,
        feed: DataModule,
        validation: Evaluator,
        folder: RunFolder,
        device: torch.device,
    ) -> None:
        self.config, self.settings, self.folder, self.device = config, config.training, folder, device
        self.task, self.feed, self.validation = task, feed, validation
        self.phases = self.settings.scheduled_phases()
        self.total = sum(phase.steps for phase in self.phases)
        self.micro_size, self.passes = share_of_batch(
            self.settings.global_batch_size, world_size(), self.settings.micro_batch_size
        )
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.watchdog = Watchdog(self.settings.watchdog)
        self.step = self.rollbacks = 0
        # Sharding moves each share by itself: no device needs to hold all weights.
        task.prepare(self.phases, torch.device("cpu") if self.settings.shard_weights else device)
        for index in range(len(self.phases)):
            self.loader(index)  # says now what would be missing then
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
        self._asked_to_stop = self._stopping = self._owes_state = False

    def run(self, resume: bool) -> None:
        """Train to the end of the last phase.

        Args:
            resume: from the folder's saved state; the same on every rank.

        Raises:
            KeyboardInterrupt: it was asked to stop, and has saved its state.
            TrainingStopped: the watchdog stopped it.
        """
        if resume:
            self._restore()
        logger = self.settings.logger if rank() == 0 else "none"
        writer = create_writer(logger, self.folder, to_dict(self.config), self.step)
        if not resume:
            if rank() == 0:
                self.folder.begin()
            self._save()
        if rank() == 0:  # comes last: a folder with a config can be resumed, with other settings of how it is drawn too
            self.folder.write_config(to_dict(self.config))
        barrier()
        self.log = TrainingLog(self.folder, self.step, self.total, self.settings.log_every, writer)
        try:
            with self._stoppable():
                if resume and self._was_killed_looking():
                    self._look(end_of_phase=self._ends_phase())
                while self.step < self.total and not self._stopping:
                    self._run_phase()
                if self.step < self.total:
                    self._save()
                    barrier()  # a rank that leaves early has its launcher stop the one that saves
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
        if self.step == start:
            self._settle_frozen_parts()
        began = time.monotonic()  # waiting for a batch counts, looking at the model does not
        for step, batch in self.loader(index).batches(self.step - start, phase.steps):
            rate = learning_rate(self.settings.optimizer, phase, step)
            numbers = self._train_step(batch.to(self.device), rate)
            trouble = self.watchdog.examine(numbers)
            if trouble:
                self._handle(trouble)
                return
            self.step += 1
            self.log.add(self.step, phase.name, rate, time.monotonic() - began, numbers)
            self._save_when_well(end_of_phase=step + 1 == phase.steps)
            self._look(end_of_phase=step + 1 == phase.steps)
            if self._stopping:
                return
            began = time.monotonic()

    def _settle_frozen_parts(self) -> None:
        """Give the parts that a phase freezes their averaged weights: what trains on must see what will be saved."""
        if self.average is None:
            return
        pairs = zip(self.task.model.parameters(), self.average.module.parameters(), strict=True)
        for parameter, average in pairs:
            if not parameter.requires_grad:
                parameter.data.copy_(average)

    def loader(self, phase: int) -> BatchLoader:
        """What this rank trains on in a phase; other pictures after a rollback."""
        seed = _mix(self.settings.seed, phase, self.rollbacks)
        return self.feed.loader(self.phases[phase], self.settings.global_batch_size, seed)

    def _train_step(self, batch: Any, rate: float) -> dict[str, float]:
        """One optimizer step of every player; returns its numbers, averaged over micro-batches and ranks."""
        # All randomness of a step comes from its number, so that resuming needs no generator's state.
        torch.manual_seed(_mix(self.settings.seed, self.step, rank()))
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
        asked = torch.tensor(float(self._asked_to_stop), device=self.device)  # a signal to one rank stops them all
        sums["stop"] = asked
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
        """Average the gradients over ranks, clip, step; None for a player that rests."""
        parameters = [p for p in self.task.parameters_of(player) if p.grad is not None]
        if not parameters:
            return None
        mean_over_ranks([p.grad for p in parameters if p.grad is not None and not sharding.is_share(p.grad)])
        norm = sharding.whole(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)).item()
        for optimizer in self.optimizers[player].values():
            if math.isfinite(norm):  # if not, the watchdog will report it, and the weights stay sound
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def _precision(self) -> torch.autocast:
        """What the losses are computed in; where weights are cut up, no rank shall keep casts of them all."""
        wanted, keeps = self.settings.precision == "bf16", not self.settings.shard_weights
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted, cache_enabled=keeps)

    def _save_when_well(self, end_of_phase: bool) -> None:
        """Save when it is time, but no state in which the watchdog sees a symptom: that waits until it has gone."""
        self._owes_state |= self._due(self.settings.save_every, end_of_phase)
        if self._owes_state and (not any(self.watchdog.symptoms.values()) or self.step == self.total):
            self._save()

    def _look(self, end_of_phase: bool) -> None:
        """Evaluation and previews, when it is time."""
        if self._due(self.settings.evaluate_every, end_of_phase) and self.validation.held_out:
            scores = self.validation.evaluate(self.inference_model(), self.device)
            self.log.record(self.step, **{f"validation/{name}": value for name, value in scores.items()})
        draws = rank() == 0 or self.settings.shard_weights  # then no rank can draw alone
        if draws and self._due(self.settings.preview_every, end_of_phase):
            self.validation.preview(self.inference_model(), self.folder.previews, self.step, self.device)

    def _was_killed_looking(self) -> bool:
        """Whether the saved step's scores are missing, which come after the state."""
        barrier()  # for the first rank to have cut its lines
        due = self.validation.held_out and self._due(self.settings.evaluate_every, self._ends_phase())
        there = {name for line in self.folder.read_metrics() if line["step"] == self.step for name in line}
        return self.step > 0 and due and not any(name.startswith("validation/") for name in there)

    def _ends_phase(self) -> bool:
        return self.step == self.total or self._phase_at(self.step)[1] == self.step

    def _due(self, every: int, end_of_phase: bool) -> bool:
        return end_of_phase or (every > 0 and self.step % every == 0)

    def inference_model(self) -> Model:
        """The averaged model where there is one, else the model itself."""
        if self.average is None:
            return self.task.model
        assert isinstance(self.average.module, Model)
        return self.average.module

    def _optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {name: optimizer for each in self.optimizers.values() for name, optimizer in each.items()}

    def _modules(self) -> Mapping[str, torch.nn.Module]:
        return {"task": self.task} if self.average is None else {"task": self.task, "average": self.average}

    def _save(self) -> None:
        """Weights for inference, and then everything that exact resume needs.

        In this order: a run that is killed between the two goes on from the state before and writes both again, while a
        state without its weights might be the last, and nobody would write them.
        """
        self._owes_state = False
        values = {"symptoms": self.watchdog.symptoms, "rollbacks": self.rollbacks, "pictures": len(self.feed)}
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
        """Back to the last saved state."""
        place, values = self.folder.read_resume()
        if missing := {"step", "symptoms", "rollbacks", "pictures"} - values.keys():
            raise ConfigError(f"{place / 'state.json'}: has no {min(missing)}; the state is damaged")
        if values["pictures"] != len(self.feed):
            raise ConfigError(
                f"{self.folder.path}: was started on {values['pictures']} pictures, these are {len(self.feed)}"
            )
        self._check_agreement((values["step"], values["rollbacks"]))
        tensors = sharding.read_state(place, self._modules(), self._optimizers())
        state.restore(tensors, self._modules(), self._optimizers())
        self.step, self.watchdog.symptoms = values["step"], values["symptoms"]
        self.rollbacks = max(self.rollbacks, values["rollbacks"])
        if rank() == 0:
            self.folder.truncate_metrics(self.step)

    def _check_agreement(self, found: tuple[int, int]) -> None:
        """Whether all ranks have found one state: a step, after so many rollbacks.

        Raises:
            ConfigError: they have not.
        """
        everyones = ObjectGroup().gather(found)
        if len(set(everyones)) > 1:
            steps = ", ".join(str(step) for step, _ in everyones)
            raise ConfigError(
                f"{self.folder.path}: the processes have found different states (after steps {steps}); copy the run "
                "to every machine again, or use a shared folder"
            )

    def _handle(self, trouble: str) -> None:
        """Roll back or stop.

        Raises:
            TrainingStopped: by choice, or when rolling back has not helped.
        """
        where = f"step {self.step + 1}: {trouble}"
        settings = self.settings.watchdog
        if settings.action == "stop" or self.rollbacks >= settings.max_rollbacks:
            raise TrainingStopped(f"{where}; the last saved state is kept in {self.folder.path}")
        self.rollbacks += 1
        self._restore()
        if rank() == 0:
            self.folder.amend_resume(self.step, {"rollbacks": self.rollbacks})  # even if it dies before it saves again
        self.watchdog.symptoms = {}  # whatever was on its way then gets the full patience again
        self.log.forget()
        self.log.record(self.step, rollback=where)
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
        """Ctrl-C and SIGTERM ask for a stop after the step at hand; a second Ctrl-C interrupts at once.

        Only Python's main thread hears of signals; elsewhere nothing asks.
        """

        def ask(signum: int, frame: Any) -> None:
            if self._asked_to_stop and signum == signal.SIGINT:
                raise KeyboardInterrupt
            self._asked_to_stop = True

        heard = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if heard else ()
        before = {number: signal.signal(number, ask) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 62)
    return seed
