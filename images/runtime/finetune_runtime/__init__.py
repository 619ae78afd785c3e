"""Data plane of finetune-operator: the code that runs inside prepare, training and serving pods."""
