"""AdamW with 8-bit state and rounding by chance: against torch's in float32, in plain torch on the CPU."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_runtime.fastpath.optimizer import AdamW8bit, rounded

SIZE = 3000  # no whole number of blocks


def flat(dtype: torch.dtype) -> SimpleNamespace:
    """What the optimizer asks of Adapters: two parameters that are one buffer."""
    generator = torch.Generator().manual_seed(0)
    buffer = (torch.randn(SIZE, generator=generator) / 50).to(dtype)
    parameters = [torch.nn.Parameter(part) for part in (buffer[:1000], buffer[1000:])]
    gradient = torch.zeros(SIZE, dtype=dtype)
    for parameter, part, slope in zip(parameters, (buffer[:1000], buffer[1000:]), (gradient[:1000], gradient[1000:]), strict=True):
        parameter.data, parameter.grad = part, slope
    return SimpleNamespace(flat=buffer, gradient=gradient, parameters=parameters, is_open=lambda: parameters[0].grad is not None)


def optimizer(adapters: Any, rate: float, decay: float = 0.1) -> AdamW8bit:
    return AdamW8bit([{"params": adapters.parameters, "lr": rate, "weight_decay": decay}], lambda: adapters, seed=7)


def train(adapters: Any, made: torch.optim.Optimizer, steps: range) -> None:
    """Noisy gradients whose mean differs from number to number, as those of a training do."""
    slope = torch.linspace(-1, 1, SIZE) ** 3
    for step in steps:
        noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(step))
        adapters.gradient.copy_((slope + noise / 2) / 100)
        made.step()


def reference(rate: float, steps: int, decay: float = 0.1) -> torch.Tensor:
    exact = flat(torch.float32)
    parameter = torch.nn.Parameter(exact.flat)
    adam = torch.optim.AdamW([parameter], lr=rate, weight_decay=decay)
    parameter.grad = exact.gradient
    train(exact, adam, range(steps))
    return parameter.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_comes_where_adamw_comes(dtype: torch.dtype) -> None:
    adapters = flat(dtype)
    start = adapters.flat.float().clone()
    train(adapters, optimizer(adapters, 1e-3), range(100))
    wanted = reference(1e-3, 100) - start
    assert ((adapters.flat.float() - start) - wanted).norm() / wanted.norm() < 0.03


def test_updates_far_below_the_spacing_of_bfloat16_are_not_lost() -> None:
    adapters = flat(torch.bfloat16)
    start = adapters.flat.float()
    train(adapters, optimizer(adapters, 3e-6, decay=0.0), range(200))
    wanted = reference(3e-6, 200, decay=0.0) - start
    moved = adapters.flat.float() - start
    # Single numbers are coarse; what they come to together is right.
    assert (moved @ wanted / (wanted @ wanted)).item() == pytest.approx(1, abs=0.1)
    to_nearest = start.clone().bfloat16()
    for _ in range(200):
        to_nearest.add_((wanted / 200).bfloat16())
    lost = to_nearest.float() - start
    assert (lost @ wanted / (wanted @ wanted)).item() < 0.5, "the case needs updates that rounding to the nearest loses"


def test_rounding_keeps_the_mean_and_what_needs_no_rounding() -> None:
    x = torch.tensor([1.0 + 2**-9, -1.0 - 3 * 2**-10, 3.0e-5, 0.0])
    found = torch.stack([rounded(x, word) for word in range(4000)]).double()
    assert found.mean(0).tolist() == pytest.approx(x.tolist(), rel=3e-4, abs=1e-12)
    assert {value.item() for value in found[:, 0]} == {1.0, 1.0 + 2**-7}
    assert torch.equal(rounded(found[0].float(), 1), found[0].bfloat16())


def test_a_resumed_training_goes_on_as_the_unbroken_one() -> None:
    unbroken, broken = flat(torch.bfloat16), flat(torch.bfloat16)
    train(unbroken, optimizer(unbroken, 1e-3), range(20))
    first = optimizer(broken, 1e-3)
    train(broken, first, range(12))
    saved = copy.deepcopy(first.state_dict())
    second = optimizer(broken, 5.0)
    second.load_state_dict(saved)
    train(broken, second, range(12, 20))
    assert torch.equal(unbroken.flat, broken.flat)


@pytest.mark.parametrize("kind", ["ours", "torch's"])
def test_a_step_without_gradients_is_none_as_with_torchs_optimizer(kind: str) -> None:
    # ms-swift sets gradients whose norm is no number to None before it steps; ours are NaN in the flat buffer then.
    unbroken, skipping = flat(torch.float32), flat(torch.float32)
    first, second = (optimizer(each, 1e-3) if kind == "ours" else torch.optim.AdamW(each.parameters, lr=1e-3) for each in (unbroken, skipping))
    train(unbroken, first, range(10))
    for step in range(10):
        if step in (0, 6):
            shown = [parameter.grad for parameter in skipping.parameters]
            skipping.gradient.fill_(float("nan"))
            for parameter in skipping.parameters:
                parameter.grad = None
            second.step()
            for parameter, gradient in zip(skipping.parameters, shown, strict=True):
                parameter.grad = gradient
            assert len(second.state_dict()["state"]) == (0 if step == 0 else len(first.state_dict()["state"]))
        train(skipping, second, range(step, step + 1))
    assert torch.equal(skipping.flat, unbroken.flat)


def test_state_of_another_optimizer_is_refused() -> None:
    adapters = flat(torch.float32)
    other = torch.optim.AdamW(adapters.parameters)
    for parameter in adapters.parameters:
        parameter.grad = torch.ones_like(parameter)
    other.step()
    with pytest.raises(ValueError, match="8 bits"):
        optimizer(adapters, 1e-3).load_state_dict(other.state_dict())
