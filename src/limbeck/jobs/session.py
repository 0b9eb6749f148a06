"""One session of a run: what others can see of it while it works, and what it cost at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from limbeck.core.events import Listener
from limbeck.core.folders import size_of
from limbeck.core.record_files import read_record
from limbeck.core.records import MemoryLine, ResultsRecord
from limbeck.jobs.job import Job
from limbeck.jobs.record import RESULTS
from limbeck.jobs.results import measure_memory, most_memory, stage_seconds
from limbeck.progress import ProgressFile, combine
from limbeck.report.text import duration, size


@contextmanager
def session(job: Job, listen: Listener) -> Iterator[Listener]:
    """A listener for the `with` block, which keeps progress.json beside `listen`; peak memory is logged at the end."""
    file = ProgressFile(job.path / "progress.json")
    try:
        yield combine(file, listen)
    except KeyboardInterrupt:
        file.end("interrupted")
        raise
    except BaseException as error:
        file.end("failed", str(error))
        raise
    else:
        file.end("finished")
    finally:
        job.folder.line(measure_memory(job.task))


def describe_cost(job: Job) -> str:
    """Seconds by stage, peak memory and stored bytes of a run over all its sessions, in words."""
    seconds = [f"{name} {duration(value)}" for name, value in stage_seconds(job).items()]
    memory = most_memory(job.folder.lines(MemoryLine), measure_memory(job.task))
    parts = [f"cost: {', '.join(seconds)}"]
    if memory.process is not None:
        on_gpu = "" if memory.device is None else f", {size(memory.device)} on the GPU"
        parts.append(f"peak memory {size(memory.process)}{on_gpu}")
    stored = f"{size(size_of(job.path))} stored in {job.path}"
    experts = read_record(job.path / "results.json", ResultsRecord, RESULTS).bytes.experts
    if experts is not None and job.experts is not None:
        stored += f", and {size(experts)} of experts in {job.experts.path}"
    return "; ".join([*parts, stored])
