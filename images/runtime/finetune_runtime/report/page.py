"""The page: what is known of a job, put into the template."""

from collections.abc import Mapping
from typing import Any

from .charts import charts, number
from .data import ReportData
from .dataset import section
from .templates import templates

_WORDS = {"OutOfMemory": "out of memory", "NewPod": "a new pod took over"}


def render(data: ReportData) -> str:
    """One HTML document that needs nothing else: no script, no font, no address."""
    resumes = [resume for record in data.records for resume in record.get("resumes", [])]
    return templates.get_template("report.html.j2").render(
        job=data.config.job,
        state=data.state,
        message=data.message,
        written=data.written.strftime("%Y-%m-%d %H:%M UTC"),
        figures=_figures(data),
        facts=_facts(data),
        charts=charts(data.records, [(int(resume["from"]), _sentence(resume)) for resume in resumes if resume["from"]]),
        resumes=[(str(resume.get("time", ""))[:16].replace("T", " "), _sentence(resume)) for resume in resumes],
        data=section(data.dataset),
        answers=data.answers,
        command=data.train.command if data.train else "",
        versions=sorted(data.train.versions.items()) if data.train else [],
        origins=_origins(data),
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the two largest that there are."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _figures(data: ReportData) -> list[tuple[str, str, str]]:
    """The headline: name, value, and what belongs to it."""
    evaluated = [record for record in data.records if record.get("evalLoss") is not None]
    figures: list[tuple[str, str, str]] = []
    if data.train:
        total = f"of {data.train.total_steps:,}" if data.train.total_steps else ""
        figures.append(("Steps", f"{data.train.step:,}", f"{total}, stopped early" if data.train.stopped_early else total))
    if evaluated:
        best, last = min(evaluated, key=lambda record: (record["evalLoss"], record["step"])), evaluated[-1]
        figures.append(("Best evaluation loss", number(best["evalLoss"]), f"at step {best['step']:,}"))
        figures.append(("Last evaluation loss", number(last["evalLoss"]), f"at step {last['step']:,}"))
    if data.train and data.train.loss is not None:
        figures.append(("Training loss", number(data.train.loss), ""))
    if data.records and data.records[-1].get("seconds"):
        figures.append(("Training time", duration(data.records[-1]["seconds"]), ""))
    return figures


def _facts(data: ReportData) -> list[tuple[str, str]]:
    config = data.config
    lora, quantization = config.tuning.lora, config.tuning.quantization
    method = f"{config.tuning.method}, rank {lora.rank}, alpha {lora.alpha}"
    facts = [
        ("Model", config.model.source),
        ("Method", f"{quantization.bits}-bit {method}" if config.tuning.method == "QLoRA" else method),
        ("Hardware", data.hardware),
        ("Batch", _batch(data)),
        ("Fast path", str(data.train.fast_path) if data.train and data.train.fast_path else ""),
        ("Adapter", data.train.adapter.uri if data.train and data.train.adapter else ""),
        ("Adapter taken at", f"step {data.train.adapter_step:,}" if data.train and data.train.adapter_step else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _batch(data: ReportData) -> str:
    if not (data.train and data.train.micro_batch):
        return ""
    gpus, effective, micro = data.config.gpus, data.config.training.effective_batch_size, data.train.micro_batch
    each = f" on each of {gpus} GPUs" if gpus > 1 else ""
    return f"{effective} rows a step" if micro == effective else f"{effective} rows a step, {micro} at a time{each}"


def _origins(data: ReportData) -> list[tuple[str, str]]:
    """What decides the result, to the bit."""
    model: Mapping[str, Any] = data.dataset.get("model", {})
    origins = [
        ("Model revision", str(model.get("revision") or data.config.model.revision)),
        ("Model type and template", " / ".join(str(model[name]) for name in ("type", "template") if model.get(name))),
        ("Dataset SHA-256", str(data.dataset.get("sha256", ""))),
        ("Configuration hash", data.config.config_hash()),
        ("Seed", str(data.config.training.seed)),
        ("Job UID", data.config.job.uid),
    ]
    return [(name, value) for name, value in origins if value]


def _sentence(resume: Mapping[str, Any]) -> str:
    """Words for one entry of a record's `resumes`."""
    because = _WORDS.get(resume.get("because", ""), str(resume.get("because", "")))
    start = f"Went on from step {resume['from']:,}" if resume["from"] else "Started over"
    lost = f"; {resume['lostSteps']:,} {'step was' if resume['lostSteps'] == 1 else 'steps were'} trained again" if resume.get("lostSteps") else ""
    micro = f", with {resume['microBatch']} {'row' if resume['microBatch'] == 1 else 'rows'} at a time" if resume.get("microBatch") else ""
    return f"{start}: {because}{lost}{micro}"
