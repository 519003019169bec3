"""The loggers that there are, one class for each library, and what is said where a library is not there.

Without ``log.online`` each writes to this machine alone. None of them may ask anybody anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

from instil.errors import SettingsError
from instil.runs.loggers.logger import About, Logger


class TensorBoard:
    """Event files in ``RUN/logs/tensorboard``, for ``tensorboard --logdir RUNS``."""

    _writer: Any

    def begin(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = None if about.after is None else about.after + 1  # what was written of later steps is passed over
        self._writer = SummaryWriter(str(about.folder / "tensorboard"), purge_step=again)
        if about.after is None:
            table = "\n".join(f"| {key} | {value} |" for key, value in about.facts.items())
            self._writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{table}", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, *, finished: bool) -> None:
        del finished
        self._writer.close()


class WeightsAndBiases:
    """Runs of ``wandb``: offline ones in ``RUN/logs/wandb``, which ``wandb sync`` sends later."""

    _run: Any

    def begin(self, about: About) -> None:
        if not about.online:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if about.online and not wandb.login(prompt=False, verify=False):  # else it would ask on the terminal
            raise RuntimeError("no API key; set WANDB_API_KEY, or call wandb login")
        about.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=about.project,
            name=about.name,
            id=about.key,
            resume="allow" if about.online else None,
            mode="online" if about.online else "offline",
            dir=str(about.folder),
            config=dict(about.facts),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def end(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Trackio:
    """Runs of ``trackio``, in its own local store (``TRACKIO_DIR``), for ``trackio show``."""

    ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL")  # where its environment sends runs

    _run: Any

    def begin(self, about: About) -> None:
        import trackio

        with nullcontext() if about.online else _without(self.ELSEWHERE):
            self._run = trackio.init(
                project=about.project,
                name=f"{about.name}-{about.key[:6]}",
                config=dict(about.facts),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def end(self, *, finished: bool) -> None:
        del finished
        self._run.finish()


class MLflow:
    """Runs of ``mlflow``: at ``MLFLOW_TRACKING_URI``, or in ``RUN/logs/mlflow.db``, for ``mlflow ui``."""

    KEY = "instil.run"  # the tag by which a run that goes on is found again

    _client: Any
    _run: str

    def begin(self, about: About) -> None:
        if not about.online:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        about.folder.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri or not (about.online or uri.startswith(("file:", "sqlite:", "/", "."))):
            uri = f"sqlite:///{about.folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(about.project)
        experiment = known.experiment_id if known else self._client.create_experiment(about.project)
        found: Sequence[Any] = ()
        if about.after is not None:
            found = self._client.search_runs([experiment], filter_string=f"tags.`{self.KEY}` = '{about.key}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=about.name, tags={self.KEY: about.key})
        self._run = made.info.run_id
        for name, value in about.facts.items():
            self._client.log_param(self._run, name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def end(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run, status="FINISHED" if finished else "FAILED")


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Inside, the environment lacks these."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


LOGGERS: dict[str, Callable[[], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def need_loggers(names: Sequence[str]) -> None:
    """Call this before anything is spent.

    Raises:
        SettingsError: the library of one is not there; the message says how to get it.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"log.to={','.join(names)} needs {' and '.join(missing)}: pip install 'instil[{','.join(missing)}]'"
        )
