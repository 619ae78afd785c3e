"""vLLM's server, whose names can be given other adapters while it answers. Names are those of vLLM 0.25. Runs with the arguments of `vllm`.

vLLM can load adapters while it runs by itself (VLLM_ALLOW_RUNTIME_LORA_UPDATING), and that is not good enough for a name that users ask:
between unloading the old adapter and loading the new one there is none of that name, also for requests that have passed the check for it;
with `load_inplace` requests that run go on with other weights; and either way answers may be computed on what the prefix cache kept of the
old weights, because it knows adapters by their names. So here each adapter that is loaded has a name of its own in the engine, and one
assignment gives the public name to it: requests that run finish with what they began with, and none is ever without.
"""

import sys
from typing import Any

from vllm.entrypoints.cli.main import main
from vllm.entrypoints.openai import api_server
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from finetune_runtime.contract.config import SERVED_BASE


class Models(OpenAIServingModels):  # type: ignore[misc]  # vLLM is untyped
    """vLLM's list of what it serves. `lora_requests` has the public names as keys."""

    async def serve(self, name: str, path: str) -> None:
        """Give a name to the adapter in a directory, once the engine has loaded it. Raises what the engine says against it."""
        async with self.lora_resolver_lock[name]:
            number = self.lora_id_counter.inc(1)
            request = LoRARequest(lora_name=f"{name}#{number}", lora_int_id=number, lora_path=path, base_model_name=SERVED_BASE)
            await self.engine_client.add_lora(request)
            self.lora_requests[name] = request

    def cease(self, name: str) -> None:
        """Serve a name no more; requests that run are finished."""
        self.lora_requests.pop(name, None)

    def model_name(self, lora_request: Any = None) -> Any:
        """As answers tell it: the public one."""
        return _public(lora_request.lora_name) if lora_request else super().model_name()

    async def show_available_models(self) -> Any:
        """The same list with the public names."""
        found = await super().show_available_models()
        for card in found.data:
            if card.parent:
                card.id = _public(card.id)
        return found


def _public(name: str) -> str:
    return name.rpartition("#")[0]


if __name__ == "__main__":
    api_server.OpenAIServingModels = Models
    sys.exit(main())
