"""docs/extra-args.md: which further arguments of ms-swift a job may set, and why not the others."""

from finetune_runtime.contract.extra_args import ALLOWED, decided_by_fields, refused_for_reasons

_INTRO = """<!-- Written by hack/generate.py; do not edit. -->
# Further training arguments

`spec.training.extraArgs` passes arguments on to ms-swift by name, without dashes; values are strings:

```yaml
training:
  extraArgs: {warmup_ratio: "0.03", lr_scheduler_type: constant_with_warmup}
```

Only the arguments of this list are accepted. A job with any other one ends at once with the reason `InvalidConfig` and says why, before a pod is made.

| argument | values | what it does |
|---|---|---|
"""


def reference() -> str:
    """The page as Markdown."""
    accepted = "".join(f"| `{name}` | {argument.shown} | {argument.what} |\n" for name, argument in ALLOWED.items())
    fields = "".join(f"| {_names(names)} | `{field}` |\n" for field, names in decided_by_fields())
    reasons = "".join(f"- {reason[0].upper()}{reason[1:]}: {_names(names)}\n" for reason, names in refused_for_reasons())
    return (
        f"{_INTRO}{accepted}\n## Arguments that have a field\n\n| argument | field |\n|---|---|\n{fields}\n## Arguments that no job may set\n\n{reasons}\n"
        "A star stands for any characters. An argument that is in none of these lists is refused too.\n"
    )


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
