"""The base of networks that predict several domains at once."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


class SeveralOutputs(nn.Module):
    """A network with an output for each of several domains.

    In a graph it is the network of its `target`, whose prediction is what `forward` returns.
    """

    target: str

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return the predictions of all domains that it was trained on, {domain: (B, C, H, W)}."""
        raise NotImplementedError

    def parts(self) -> Iterable[nn.Module]:
        """Return the modules that `outputs` calls."""
        return self.children()

    def completed(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of a file, with the network's own for what files may leave out."""
        return weights

    def compile(self, *args, **kwargs) -> None:
        """Compile the parts, as `outputs` does not go through `forward`."""
        for part in self.parts():
            part.compile(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[self.target]
