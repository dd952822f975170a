"""A worker around a model that is loaded already, without a server process."""

from __future__ import annotations

from typing import Any

from first_cpp.cli.answer_record import AnswerRecorder
from first_cpp.serve.hosted_models import HostedModels, LoadedModel
from first_cpp.serve.idle import IdleReader, MeasuredAnswers
from first_cpp.serve.prepare import Job, Order
from first_cpp.serve.prometheus import Metrics
from first_cpp.serve.request_queue import RequestQueue
from first_cpp.serve.worker import Worker


def hosting(served: Any, queue: RequestQueue, recorder: Any = None, idle: bool = True) -> Worker:
    """A worker that has one model, which is loaded."""
    metrics, measured = Metrics(lambda: 0), MeasuredAnswers()
    loaded = LoadedModel(served, IdleReader(served.llm, metrics, idle, measured), recorder or AnswerRecorder(served.llm))
    models = HostedModels({served.name: lambda: loaded}, metrics, measured)
    if recorder is None:
        models.load_first()
    else:
        models._loaded = loaded  # a stand-in has no layers to count
    return Worker(models, queue, metrics)


def order(job: Job, model: str = "slow") -> Order:
    """An order for a job that is the same for every model."""
    return Order(model, job.stream, lambda served: job)
