"""One run of an accuracy grid: trains epoch by epoch, saves its state when the time is up, and is evaluated last."""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import time

import keras
import numpy as np

import elrt_keras as elrt
from benchmarks.measure import machine
from benchmarks.train.additions import plan_by_stage, scale_factor_rate
from benchmarks.train.in_memory import epochs_of
from benchmarks.train.shrunk import shrunk
from elrt_keras.atomic import replacing
from elrt_keras.launch import modeling
from elrt_keras.launch.config import TrainConfig, parse_schedule

_REPORTED_EVERY = 10  # epochs between two measurements of the factors
_KEPT_EVERY = 120  # seconds between two saved states; a killed run loses at most this time
# Fields of the low-rank part, which the dense training before it does not have.
_LOW_RANK = ("max_macs", "max_params", "rank_plan", "rank_method", "factor_initializer", "warmup_epochs")


class Run:
    """A run: its configuration, its data, the path of its state, and its history.

    Beside the fields of `TrainConfig` a run may have

    * `fine_tuning`: a dict of changed fields. The dense network is trained first, then decomposed and trained with
      these fields. Runs with the same dense network share it: the first of them trains it.
    * `distillation`: weight of the divergence from that dense network in the loss; the network is then the teacher.
    * `factor_learning_rate`: learning rate of the orthogonal factors, as a multiple of the general one.
    * `stage_ranks`: numbers as text, one per stage of a ResNet: relative parts of the full ranks to keep there.
    * `shrink_to`: budgets of MACs as text. `elrt_keras.shrink` reduces the trained model to each; with `recovers`, the
      result is also measured after an epoch of fine-tuning.
    """

    def __init__(self, name, fields, data, state_path):
        fields = dict(fields)
        self.name, self.data, self._path = name, data, pathlib.Path(state_path)
        self._budgets = [float(text) for text in fields.pop("shrink_to", "").split(",") if text]
        self._recovers = fields.pop("recovers", False)
        self._distillation = fields.pop("distillation", None)
        self._factor_rate = fields.pop("factor_learning_rate", None)
        self._stage_weights = [float(text) for text in fields.pop("stage_ranks", "").split(",") if text]
        first, fine_tuning = None, fields.pop("fine_tuning", None)
        if fine_tuning is not None:
            dense = {field: value for field, value in fields.items() if field not in _LOW_RANK}
            first = TrainConfig(**{**dense, "format": "dense"})
            fields |= {**fine_tuning, "initial_model": "the dense network, trained first"}
        self.config = TrainConfig(**fields)
        if self.config.warmup_epochs == "auto":
            raise ValueError(f"Expected a number of full-rank epochs. Received: warmup_epochs='auto' in run {name!r}")
        self._first = first or (self.config if self.config.warms_up else None)
        self._before = self._first_epochs()
        self._dense_path = self._path.with_name(f"dense_{_digest(first)}.npz") if first else None
        self.history, self.plan, self._values = [], None, None

    def _first_epochs(self):
        """Counts the epochs of the dense network before the low-rank one."""
        if self._first is None:
            return 0
        return self.config.longest_warmup if self.config.warms_up else self._first.epochs

    def train(self, stop_at=None):
        """Trains, or resumes, to the end or to the time `stop_at` (a value of `time.time()`).

        Returns:
            The evidence as a dict; `None` if the time was up first.
        """
        with modeling.precision(self.config), machine.on_host():
            return self._trained(stop_at)

    def _trained(self, stop_at):
        keras.utils.set_random_seed(self.config.seed)
        self._resume()
        dense = modeling.dense_model(dataclasses.replace(self.config, initial_model=None, **self._plain()), self.data)
        if self._first is not None and self.plan is None:
            model = modeling.build_model(self._first, dense, elrt.RankPlan())
            self._compile(model, self._first)
            if not self._epochs(model, self._first, self._before, stop_at, elrt.count_costs(dense).macs):
                return None
            if self._dense_path is not None:
                self._keep(model, self._dense_path)
            dense.set_weights(model.get_weights())
        resumes_low_rank = self.plan is not None
        if not resumes_low_rank:
            by_stage = self._stage_weights and plan_by_stage(dense, self.config, self._stage_weights)
            self.plan = by_stage or modeling.rank_plan(self.config, dense)
        model = modeling.build_model(self.config, dense, self.plan)
        trained, macs = model, elrt.count_costs(model).macs
        if self._distillation is not None:
            trained = elrt.Taught(model, dense, self._distillation)
            macs = modeling.training_macs(trained) / 3
        done = len(self.history) if self.config.warms_up and not resumes_low_rank else 0
        self._compile(trained, self.config, done * self._steps)
        if not self._epochs(trained, self.config, self._end, stop_at, macs):
            return None
        self._keep(trained)  # save the end state too: the evaluation may fail
        getattr(trained.optimizer, "inner_optimizer", trained.optimizer).use_averages(trained.trainable_variables)
        return self._evidence(model)

    def _plain(self):
        """Returns the changes that make this configuration valid without trained weights."""
        trained = self.config.initial_model is not None
        return {"rank_method": "uniform", "factor_initializer": "auto"} if trained else {}

    @property
    def _end(self):
        """Number of all epochs. Warm-up is part of the run's epochs; training of a model to compress is added."""
        return self.config.epochs + (0 if self.config.warms_up else self._before)

    @property
    def _steps(self):
        return self.data.train_count // self.config.batch_size

    def _compile(self, model, config, iterations=0):
        modeling.compile_model(model, config, self._steps)
        if self._factor_rate is not None:
            scale_factor_rate(model, self._factor_rate)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(iterations)
        if self._values is not None:
            # The optimizer makes its last variable at its first step; that variable needs no restoring.
            for variable, value in zip((*model.variables, *model.optimizer.variables), self._values):
                variable.assign(value)
            self._values = None

    def _epochs(self, model, config, end, stop_at, macs):
        """Trains up to epoch `end`; reports if it got there. `macs`: MACs of the forward pass of one image."""
        schedule = parse_schedule(config.orthogonality_schedule)
        callback = elrt.callbacks.RegularizationSchedule(schedule) if schedule else None
        loop, kept = epochs_of(model, config, self.data), time.monotonic()
        for epoch in range(len(self.history), end):
            if callback is not None:
                loop.store()
                callback.set_model(model)
                callback.on_train_begin()
                callback.on_epoch_begin(epoch)
                loop.load()
            start, cpu_start = time.perf_counter(), time.process_time()
            row = {"epoch": epoch, **loop.train(epoch), "macs": macs}
            row["seconds"] = time.perf_counter() - start
            row["cpu_seconds"] = time.process_time() - cpu_start  # a fair measure if runs share the cores
            row |= loop.evaluate()
            self.history.append(row)
            print(f"{self.name} {epoch + 1}/{end}: {row['val_accuracy']:.4f}, {row['seconds']:.1f} s", flush=True)
            if epoch % _REPORTED_EVERY == _REPORTED_EVERY - 1 or epoch + 1 == end:
                loop.store()
                errors = list(elrt.callbacks.factor_errors(model).values())
                row["orthogonality_error_mean"] = sum(errors) / len(errors) if errors else None
            stops = stop_at is not None and time.time() > stop_at and len(self.history) < self._end
            if stops or time.monotonic() - kept > _KEPT_EVERY:
                loop.store()
                self._keep(model)
                kept = time.monotonic()
            if stops:
                return False
        loop.store()
        return True

    def _keep(self, model, path=None):
        """Saves the whole state of the run."""
        path = path or self._path
        values = [keras.ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.plan is not None:
            self.plan.save(path.with_suffix(".plan.json"))  # first: the state file, written last, marks it as valid
        with replacing(path, ".npz") as temporary:
            np.savez(temporary, *values, history=json.dumps(self.history))

    def _resume(self):
        path = self._path
        if not path.exists() and self._dense_path is not None:
            path = self._dense_path
        if not path.exists():
            return
        with np.load(path) as kept:
            self._values = [kept[f"arr_{index}"] for index in range(len(kept.files) - 1)]
            self.history = json.loads(str(kept["history"]))
        if len(self.history) > self._before:  # before, the network is dense
            self.plan = elrt.RankPlan.load(path.with_suffix(".plan.json"))

    def forget(self):
        """Removes the saved state of this run; the shared dense network stays."""
        for path in (self._path, self._path.with_suffix(".plan.json")):
            path.unlink(missing_ok=True)

    def _evidence(self, model):
        config = self.config
        # A thinned network is compared with the network of full width.
        whole = elrt.models.build(config.model, self.data.image_shape, len(self.data.class_names))
        costs, dense_costs = elrt.count_costs(model), elrt.count_costs(whole)
        seconds = sorted(row["seconds"] for row in self.history)
        summary = {
            "model": config.model,
            "format": config.format,
            "epochs": config.epochs,
            "seed": config.seed,
            "backend": keras.backend.backend(),
            "test_accuracy": self.history[-1]["val_accuracy"],
            "test_loss": self.history[-1]["val_loss"],
            "params": costs.params,
            "params_fraction": costs.params / dense_costs.params,
            "macs": costs.macs,
            "macs_fraction": costs.macs / dense_costs.macs,
            "seconds_per_epoch": seconds[len(seconds) // 2],
            "training_seconds": sum(seconds),
            "training_cpu_seconds": sum(row["cpu_seconds"] for row in self.history),
            # Forward pass, gradient of the weights and gradient of the inputs.
            "training_macs": sum(3 * row["macs"] * self._steps * config.batch_size for row in self.history),
            "orthogonality_error": elrt.callbacks.factor_errors(model),
        }
        layers = dict(elrt.graph.paths.iterate_layers(model))
        return {
            "name": self.name,
            "config": dataclasses.asdict(config),
            "ranks": {path: layer.ranks for path, layer in layers.items() if hasattr(layer, "factors")},
            "summary": summary,
            "history": self.history,
            "shrunk": self._budgets and shrunk(model, self._budgets, config, self.data, self._recovers, self.name),
            "int8_accuracy": self._int8_accuracy(model),
            "machine": machine.describe(),
        }

    def _int8_accuracy(self, model):
        """Measures test accuracy as an int8 LiteRT file; `None` without a converter. Do not use `model` afterwards."""
        if keras.backend.backend() != "tensorflow":
            return None
        data = self.data
        with tempfile.TemporaryDirectory() as folder:
            report = elrt.export.to_litert(
                modeling.ready_for_use(model),
                os.path.join(folder, "model.tflite"),
                "int8",
                representative_data=data.train_images[:500].astype("float32"),
                evaluation_data=(data.test_images.astype("float32"), data.test_labels),
                tolerance=np.inf,
                max_accuracy_drop=1.0,
            )
        return report.accuracy


def _digest(config):
    """Returns a short name of a configuration."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()).hexdigest()[:12]
