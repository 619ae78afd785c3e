"""The API group finetune.dev/v1alpha1 as pydantic types, the one source of the CRDs."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
