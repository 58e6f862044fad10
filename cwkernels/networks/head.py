"""The end of Macro before its classifier, and the two ways around its largest tensor."""

import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.networks.supernet import ConvNormLayer, Recorder
from cwkernels.nn.moments import saves_products


class HeadLayer(ConvNormLayer):
    """A 1x1 convolution, its batch norm and ReLU, which are then averaged over the pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, relu=True)

    def measure(self, input: Tensor, recorder: Recorder) -> None:
        """Records what a forward pass does, without its output."""
        if saves_products(input, self.conv.weight):
            recorder.convolved(self.norm, input, self.conv.weight)
        else:
            self.convolve(input, recorder)

    def average(self, input: Tensor) -> Tensor:
        """[A, N, C, H, W] to [A, N, K], for evaluation on a CPU without a graph.

        Equivalent to ``self(input, recorder).mean((-2, -1))``. The batch norm is s * y + t of the
        convolution's output y: s goes into the weights, and relu(y + t) is max(y, -t) + t, so that
        the largest tensor of the network is made, rectified in place and averaged. One architecture
        after the other: it is still in a cache then, and no sum rounds by what lies beside it.
        """
        maps = (own.expand(len(input), -1) for own in self.norm.affine())
        averages = []
        for own, factor, term in zip(input, *maps, strict=True):
            raw, _ = ops.conv_norm(own, self.conv.weight * factor[:, None, None, None])
            pixels = raw.movedim(-3, -1).flatten(1, 2)
            averages.append(torch.maximum(pixels, -term, out=pixels).mean(1) + term)
        return torch.stack(averages)
