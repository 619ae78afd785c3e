"""CustomResourceDefinitions, derived from the types in `finetune_operator.api`."""
