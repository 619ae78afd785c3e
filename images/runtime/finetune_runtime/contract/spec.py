"""Sections of a FineTuneJob's spec that the pods read as the user wrote them.

They are pydantic types of their own module so that the CRD, the operator and the pods share one definition.
Descriptions end up in `kubectl explain`: each states meaning, unit and, where it matters, the effect on memory.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from .base import Fraction, Model, PositiveFloat

_BUCKET = "[a-z0-9][a-z0-9.-]{2,62}"
# The prepare pod's scratch volume of 50 GiB holds a download, the valid rows and the output, each about as large as the first.
MAX_DOWNLOAD_GIB = 16


def not_yet(rule: str, what: str, path: str) -> dict[str, Any]:
    """CEL rule for a field whose behaviour is not built yet: setting it is refused, never silently ignored."""
    return {"rule": rule, "message": f"{what} is not supported by this version", "fieldPath": path}


def rules(*entries: dict[str, Any]) -> ConfigDict:
    """Model config that carries CEL rules into the CRD."""
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": list(entries)})


# Said at once where a URI names them; names that lead to such addresses are refused where they are looked up.
_NEVER = r"(169[.]254[.][0-9.]+|127[.][0-9.]+|0[.]0[.]0[.]0|localhost|[[](::1?|fe80:[0-9a-f:]*)[]])"


def uri_rules(what: str, forms: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """CEL rules for a field that holds a URI. `forms`: for each beginning, the pattern of what follows it and its form in words.

    One rule for each beginning, so that a user reads what is wrong with this URI, and not one pattern for all of them.
    """
    beginnings = list(forms)
    known = f"{', '.join(beginnings[:-1])} or {beginnings[-1]}"
    found = [{"rule": " || ".join(f"self.startsWith('{beginning}')" for beginning in forms), "message": f"{what} begins with {known}"}]
    for beginning, (pattern, form) in forms.items():
        rule = f"!self.startsWith('{beginning}') || self.matches('^{beginning}{pattern}$')"
        found.append({"rule": rule, "message": f"write {beginning}{form}"})
    if "https://" in forms:
        found.append({"rule": f"!self.matches('^https://{_NEVER}(:[0-9]+)?/')", "message": "https:// never reads link-local or loopback addresses"})
    return {"x-kubernetes-validations": found}


class SecretRef(Model):
    """Reference to a Secret in the job's namespace. The operator never reads its values."""

    name: str = Field(min_length=1, max_length=253, description="Name of a Secret in the same namespace.")


class Toggle(StrEnum):
    """A switch that may also be left to the operator."""

    AUTO = "Auto"
    ON = "On"
    OFF = "Off"


class FastPath(StrEnum):
    """Whether a training takes the fast path."""

    AUTO = "Auto"
    OFF = "Off"
    REQUIRED = "Required"


class ModelSpec(Model):
    """The base model."""

    source: str = Field(
        max_length=1024,
        description="Where the base model is: on a Hugging Face compatible hub (hf://), in S3 (s3://, read with the job's storage endpoint and "
        "credentials) or on a volume (pvc://, mounted read-only).",
        json_schema_extra=uri_rules(
            "a model",
            {
                "hf://": ("[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", "OWNER/NAME"),
                "s3://": (f"{_BUCKET}/.+", "BUCKET/PREFIX"),
                "pvc://": ("[a-z0-9.-]+(/.+)?", "CLAIM/PATH, or CLAIM alone"),
            },
        ),
    )
    revision: str = Field(default="", max_length=128, description="Branch, tag or commit of an hf:// source; empty: main.")
    secret_ref: SecretRef | None = Field(
        default=None, description="Secret whose key HF_TOKEN is the hub token; needed for gated or private hf:// models and data only."
    )
    type: str = Field(
        default="",
        max_length=64,
        description="ms-swift's model_type (for example qwen3, llama). Empty: found from the model; needed where several types share one architecture.",
    )
    template: str = Field(
        default="",
        max_length=64,
        description="ms-swift's chat template (for example qwen3, chatml). Empty: the model type's own template.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Accept a model directory that holds Python code (auto_map) or pickled weights. Both can run any code in the pod.",
    )


class DatasetSource(Model):
    """One file, or all files below a folder, prefix or repository."""

    source: str = Field(
        max_length=1024,
        description="Where the rows are: in S3 (s3://, read with the job's storage endpoint and credentials), on a Hugging Face compatible hub "
        f"(hf://datasets/, all data files of the repository or of PATH; at most {MAX_DOWNLOAD_GIB} GiB), on a public web server (https://, at most "
        f"{MAX_DOWNLOAD_GIB} GiB), on a volume (pvc://, mounted read-only) or in a ConfigMap. JSON list, JSON Lines, CSV, TSV, Parquet or raw ChatML text, "
        "plain or in gzip; rows as messages, conversations (ShareGPT), instruction/input/output (Alpaca), query/response, or text that holds ChatML.",
        json_schema_extra=uri_rules(
            "a dataset source",
            {
                "s3://": (f"{_BUCKET}/.+", "BUCKET/KEY"),
                "hf://datasets/": ("[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(/[^@]+)?(@[^@]+)?", "OWNER/NAME[/PATH][@REVISION]"),
                "https://": ("[^/@?#]+/.+", "HOST/PATH, without a user name or password"),
                "pvc://": ("[a-z0-9.-]+/.+", "CLAIM/PATH"),
                "configmap://": ("[a-z0-9.-]+/[A-Za-z0-9_.-]+", "NAME/KEY"),
            },
        ),
    )
    samples: int | None = Field(
        default=None, ge=1, description="Rows to take from this source, drawn by training.seed from those that can be trained on; absent: all."
    )


class ValidationSpec(Model):
    """Rows that are held out of training."""

    model_config = rules(
        {
            "rule": "!has(self.sources) || size(self.sources) == 0 || self.splitRatio == '0.05'",
            "message": "set either validation.sources or validation.splitRatio, not both",
            "fieldPath": ".splitRatio",
        }
    )
    split_ratio: Fraction = Field(
        default="0.05",
        description="Share of the training rows held out for evaluation, 0 to 1, chosen by the seed; at least one row unless 0. "
        "Ignored when sources are given.",
    )
    sources: list[DatasetSource] = Field(default=[], max_length=16, description="Validation files; absent: split off the training rows.")


class RowPolicy(StrEnum):
    """What happens to a row that cannot be trained on."""

    REJECT = "Reject"
    DROP = "Drop"


class InvalidRows(Model):
    """Policy for rows that cannot be trained on (empty answer, unknown role, too long, not JSON)."""

    policy: RowPolicy = Field(
        default=RowPolicy.REJECT, description="Reject: any invalid row fails the job before a GPU is taken. Drop: leave them out and report them."
    )
    max: int = Field(default=0, ge=0, description="With Drop: fail when more than this many rows are invalid; 0: no limit.")


class DatasetSpec(Model):
    """What the model learns from."""

    train: list[DatasetSource] = Field(min_length=1, max_length=16, description="Training files; rows are concatenated in this order.")
    validation: ValidationSpec = Field(default=ValidationSpec(), description="Held-out rows for the evaluation loss.")
    system: str = Field(default="", max_length=8192, description="System prompt for rows that have none; empty: none is added.")
    invalid_rows: InvalidRows = Field(default=InvalidRows(), description="Policy for rows that cannot be trained on.")


class Quantization(Model):
    """How the frozen base model is held in memory while its adapter is trained (bitsandbytes)."""

    model_config = rules(
        {"rule": "self.bits != 8 || self.type == 'nf4'", "message": "type applies to 4 bits only; remove it when bits is 8", "fieldPath": ".type"}
    )
    bits: Annotated[Literal[4, 8], WithJsonSchema({"type": "integer", "enum": [4, 8]})] = Field(
        default=4, description="4: about 0.6 bytes a weight; 8: about 1.1 bytes a weight."
    )
    type: Literal["nf4", "fp4"] = Field(default="nf4", description="4-bit number format.")
    double_quant: bool = Field(default=True, description="Quantise the quantisation constants too; saves about 0.4 bits a weight.")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Type of the matrix products; float16 for GPUs before Ampere. A CPU without instructions for it takes float32."
    )


class Lora(Model):
    """Low-rank adapter."""

    rank: int = Field(default=64, ge=1, le=512, description="Rank of the adapter matrices. Memory of adapter, gradients and optimizer grows linearly with it.")
    alpha: int = Field(default=128, ge=1, le=4096, description="Scale: the adapter's output is multiplied by alpha / rank.")
    dropout: Fraction = Field(default="0.05", description="Dropout on the adapter's input, 0 to 1.")
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        default=["all-linear"], min_length=1, max_length=32, description="Modules that get an adapter; all-linear: every linear layer but the output head."
    )


class Tuning(Model):
    """How the model is adapted."""

    method: Literal["QLoRA", "LoRA"] = Field(
        default="QLoRA", description="QLoRA: adapter on a quantised base. LoRA: adapter on the 16-bit base (2 bytes a weight)."
    )
    quantization: Quantization = Field(default=Quantization(), description="Quantisation of the base model; used by QLoRA only.")
    lora: Lora = Field(default=Lora(), description="The adapter.")


class EarlyStopping(Model):
    """Ends a training that no longer gets better."""

    patience: int = Field(default=3, ge=1, le=1000, description="Evaluations in a row without a better evaluation loss after which training ends.")
    min_improvement: Fraction = Field(default="0", description="How much lower than the best one an evaluation loss must be to count as better.")


class Training(Model):
    """Hyper-parameters of the run."""

    model_config = rules(
        not_yet("self.packing != 'On'", "packing: On", ".packing"),
    )
    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the training rows.")
    learning_rate: PositiveFloat = Field(default="3e-6", description="Peak learning rate.")
    max_length: int = Field(
        default=1024, ge=16, le=1048576, description="Longest row in tokens, prompt and answer together. Activation memory grows linearly with it."
    )
    effective_batch_size: int = Field(default=16, ge=1, le=65536, description="Rows per optimizer step, over all GPUs and accumulation steps.")
    micro_batch_size: Annotated[
        int | Literal["Auto"],
        # The API server holds strings to the pattern, and integers only to the minimum.
        WithJsonSchema(
            {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True, "pattern": "^(Auto|[1-9][0-9]*)$", "minimum": 1}
        ),
    ] = Field(
        default="Auto",
        description="Rows per forward pass on one GPU; activation memory grows linearly with it. Auto: the largest that fits, "
        "halved after an out-of-memory error.",
    )
    seed: int = Field(default=42, ge=0, le=2147483647, description="Seed of the split, the row order and the adapter's initial weights.")
    gradient_checkpointing: Toggle = Field(
        default=Toggle.AUTO, description="Recompute activations in the backward pass: far less memory, about 30 % more time. Auto: On with a GPU."
    )
    packing: Toggle = Field(
        default=Toggle.AUTO,
        description="Join short rows into full sequences. Auto: Off. The fast path needs none: it computes nothing for padding, and rows stay apart.",
    )
    fast_path: FastPath = Field(
        default=FastPath.AUTO,
        description="Train on our own kernels: faster and in less memory, with the same mathematics (docs/fast-path.md). Auto: where model, job and GPU allow "
        "it; status.run.fastPath says why not. Required: refuse a job that cannot take it. Off: ms-swift's own way.",
    )
    eval_steps: int = Field(default=100, ge=1, description="Optimizer steps between two evaluations.")
    logging_steps: int = Field(default=1, ge=1, description="Optimizer steps between two log records.")
    early_stopping: EarlyStopping | None = Field(
        default=None, description="End the training once the evaluation loss stops falling; absent: all epochs. Best with checkpoints.use: Best."
    )
    extra_args: dict[str, Annotated[str, Field(max_length=256)]] = Field(
        default={}, max_length=32, description="Further ms-swift arguments by name, without dashes, from the list in docs/extra-args.md."
    )


class Checkpoints(Model):
    """Checkpoints committed to storage."""

    every_steps: int = Field(default=100, ge=1, description="Optimizer steps between two checkpoints. What an eviction can cost at most.")
    keep: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Newest complete checkpoints kept in storage, and besides the one with the lowest evaluation loss; others are pruned.",
    )
    use: Literal["Last", "Best"] = Field(
        default="Last",
        description="Which checkpoint becomes the adapter. Best: the one with the lowest evaluation loss among those taken at an evaluated step, so "
        "training.evalSteps should divide checkpoints.everySteps or the other way round.",
    )


class S3Storage(Model):
    """An S3-compatible bucket."""

    uri: str = Field(
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{2,62}(/[\w./-]*)?$",
        max_length=512,
        description="s3://BUCKET/PREFIX. The job writes below PREFIX/NAMESPACE/NAME/UID/ only.",
    )
    endpoint: str = Field(default="", pattern=r"^(https?://[^\s]+)?$", max_length=512, description="URL of the S3 server; empty: AWS.")
    region: str = Field(default="us-east-1", min_length=1, max_length=64, description="Region name used in request signatures.")
    secret_ref: SecretRef | None = Field(
        default=None, description="Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; absent: the pod's ambient credentials."
    )


class Storage(Model):
    """Where checkpoints, adapters and reports go."""

    s3: S3Storage = Field(description="S3-compatible storage.")
    timeout_seconds: int = Field(
        default=600,
        ge=10,
        le=86400,
        description="How long a training pod at its end waits for storage that is down, in seconds; then the attempt ends and is made again later. "
        "In the middle of a run training goes on and uploads catch up.",
    )
