"""ms-swift's server on transformers, with four things that vLLM's has: POST /tokenize, answers that a request's seed decides, its own port, and connections
that follow the traffic.

Names are those of ms-swift 4.6. Runs with the arguments of `swift deploy`.
"""

from collections.abc import Callable
from copy import copy
from http import HTTPStatus
from typing import Any

import torch
from pydantic import BaseModel
from swift.infer_engine import InferRequest
from swift.pipelines.infer.deploy import SwiftDeploy

from finetune_runtime.contract.config import SERVING_PORT

from .drain import Drain

Generation = dict[str, Any]


class TokenizeRequest(BaseModel):
    """The part of vLLM's request that has a meaning here. An answer is always what follows: add_generation_prompt is taken for granted."""

    model: str = ""
    messages: list[dict[str, Any]]
    chat_template_kwargs: dict[str, Any] = {}


class Server(SwiftDeploy):  # type: ignore[misc]  # ms-swift is untyped
    """SwiftDeploy with the four."""

    def __init__(self) -> None:
        super().__init__()
        # ms-swift takes the next port where connections of the engine before this one have not been forgotten yet; nobody would ask it there.
        self.args.port = SERVING_PORT

    def _register_app(self) -> None:
        super()._register_app()
        self.app.post("/tokenize")(self.tokenize)
        self.app.add_middleware(Drain)

    def tokenize(self, request: TokenizeRequest) -> Any:
        """Token ids that the engine makes of a request, by the very steps that it takes before it generates; or its refusal, as to chat completions."""
        template = copy(self.infer_engine.template)  # the mode is set on a copy: the engine's worker may be at work
        template.set_mode("transformers")
        try:
            encoded = template.encode(InferRequest(messages=request.messages, chat_template_kwargs=request.chat_template_kwargs))
        except Exception as error:  # noqa: BLE001  chat templates are programs and may raise anything
            return self.create_error_response(HTTPStatus.BAD_REQUEST, str(error))
        tokens = list(encoded["input_ids"])
        return {"tokens": tokens, "count": len(tokens), "max_model_len": self.infer_engine.max_model_len}

    async def infer_async(
        self, infer_request: Any, request_config: Any, *, pre_infer_hook: Callable[[Generation], Generation] | None = None, **options: Any
    ) -> Any:
        """The engine's own, with torch seeded just before it generates. One request is generated at a time, so no other one draws in between."""

        def seeded(generation: Generation) -> Generation:
            if request_config.seed is None:
                torch.seed()
            else:
                torch.manual_seed(request_config.seed)
            return pre_infer_hook(generation) if pre_infer_hook else generation

        return await self.infer_engine.infer_async(infer_request, request_config, pre_infer_hook=seeded, **options)


if __name__ == "__main__":
    Server().main()
