"""AdamW whose state and weights are float32 while the model multiplies in bfloat16.

Adding small updates to bfloat16 weights loses most of them, and float32 weights under autocast are copied at every
forward. So each low-precision weight has a float32 master here; the price is four bytes for each tuned weight.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 masters of its parameters; a float32 parameter is its own master."""

    def __init__(self, groups: Sequence[dict[str, Any]], **options: Any) -> None:
        """As AdamW; `groups` are dicts with `params` and options of their own."""
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        super().__init__(
            [{**group, "params": [self._master(each) for each in group["params"]]} for group in groups], **options
        )

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.dtype == torch.float32:
            return parameter
        master = nn.Parameter(parameter.detach().float().clone())
        self._pairs.append((parameter, master))
        return master

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the masters by the parameters' gradients, then the parameters."""
        for parameter, master in self._pairs:
            master.grad = parameter.grad
        super().step(closure)
        for parameter, master in self._pairs:
            master.grad = None
            parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the masters."""
        return super().state_dict() | {"masters": [master.detach() for _, master in self._pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, masters included."""
        masters: list[Tensor] = state_dict["masters"]
        if len(masters) != len(self._pairs):
            raise ValueError("its weights were of another precision; set memory.precision to that of its machine")
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "masters"})
        with torch.no_grad():
            for (parameter, master), saved in zip(self._pairs, masters, strict=True):
                master.copy_(saved)
                parameter.copy_(master)
