"""Decisions, pure: observed state in, plan out. No clock, no I/O, no kopf.

`job`       what a FineTuneJob needs next
`step`      where one step stands, from its Kubernetes Jobs and pods
`endpoint`  what a ModelEndpoint needs next
`status`    conditions and the phase that is derived from them
"""
