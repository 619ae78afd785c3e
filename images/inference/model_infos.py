"""Has vLLM look at the model classes that are served most, while the image is built: at a start it would import all of itself once more for that.

What it finds is for this very vLLM: it compares a digest of the class' source at every start, and looks for itself where there is nothing or something else.
"""

ARCHITECTURES = ("Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "Gemma3ForCausalLM")


def main() -> None:
    for name in ARCHITECTURES:
        try:
            from vllm.model_executor.models.registry import ModelRegistry

            ModelRegistry.models[name].inspect_model_cls()
        except Exception as error:  # noqa: BLE001  an image without it starts all the same, more slowly
            print(f"{name}: not looked at: {type(error).__name__}: {error}")  # in the build's log


if __name__ == "__main__":
    main()
