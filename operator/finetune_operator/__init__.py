"""Control plane of finetune-operator: decides what a FineTuneJob needs next and applies it."""

__version__ = "0.1.0"
