"""What the operator and the pods agree on. Depends on pydantic and the standard library only.

`spec`    sections of a FineTuneJob that travel to the pods unchanged
`config`  the one JSON document that a pod reads (JobConfig, ServeConfig)
`result`  the one JSON document that a pod answers with (StepResult) and the exit codes
`artefact` manifests and the layout in S3
"""
