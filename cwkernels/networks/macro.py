"""The NAS-Bench-Macro super-network (paper section 3.3, appendix A)."""

import torch
from torch import Tensor, nn

from cwkernels.networks.head import HeadLayer
from cwkernels.networks.standalone import MacroNetwork, cut_macro
from cwkernels.networks.supernet import ConvNormLayer, Recorder, Selection, SuperNetwork
from cwkernels.nn import MacroLayer
from cwkernels.ops._images import batches_of
from cwkernels.spaces import checks
from cwkernels.spaces import macro as macro_space
from cwkernels.spaces.macro import CANDIDATES, HEAD, LAYERS, STEM


class MacroSuperNetwork(SuperNetwork):
    """See `cw.networks.macro`, which makes it."""

    def __init__(
        self, *, num_classes: int, reserve: bool, dense_grad: bool, recompute: bool
    ) -> None:
        kinds = [(d, c.code) for d in range(len(LAYERS)) for c in CANDIDATES]
        super().__init__(macro_space(), reserve=reserve, norms=kinds)
        self.stem = ConvNormLayer(STEM.in_channels, STEM.out_channels, 3, relu=True)
        self.layers = nn.ModuleList(
            MacroLayer(
                layer,
                self._maps()[d],
                d,
                capacity=self._capacities()[d],
                recompute=recompute,
                dense_grad=dense_grad,
            )
            for d, layer in enumerate(LAYERS)
        )
        self.head = HeadLayer(HEAD.in_channels, HEAD.out_channels)
        self.classifier = nn.Linear(HEAD.out_channels, num_classes)

    def forward(self, images: Tensor, arch: Tensor | Selection) -> Tensor:
        """Logits of images for one architecture or several.

        Args:
            images: [N, 3, H, W], shared by all architectures, or [A, N, 3, H, W].
            arch: int64 [8] or [A, 8], on the CPU or on the device of the images; or what
                `select_on_device` made of it.

        Returns:
            [N, num_classes] or [A, N, num_classes]; inside `torch.autocast` to bfloat16, on a GPU,
            in bfloat16, as all that lies between images and logits is stored then.
        """
        selection, recorder = self._begin(images, arch)
        value = self.head(self._trunk(images, selection, recorder), recorder)
        if self.training:
            recorder.write()
        return self.classify(value)

    @torch.no_grad()
    def predict(self, images: Tensor, arch: Tensor | Selection) -> Tensor:
        """See `SuperNetwork.predict`."""
        if self.training:
            return super().predict(images, arch)
        selection, recorder = self._begin(images, arch)
        return self.finish(self._trunk(images, selection, recorder), recorder)

    def finish(self, value: Tensor, recorder: Recorder) -> Tensor:
        """The logits [..., N, num_classes] of what the last layer gave, without a graph."""
        if self.training or not value.is_cpu:
            return self.classify(self.head(value, recorder))
        averages = self.head.average(batches_of(value))
        logits = torch.stack([self.classifier(own) for own in averages])
        return logits if value.dim() == 5 else logits[0]

    def _measure(self, images: Tensor, selection: Selection, recorder: Recorder) -> None:
        self.head.measure(self._trunk(images, selection, recorder), recorder)

    def _trunk(self, images: Tensor, selection: Selection, recorder: Recorder) -> Tensor:
        """Stem and layers."""
        value: Tensor = self.stem(images, recorder)
        # By layer and then by architecture, as the operation has them: at most one copy.
        choices = selection.choices.movedim(-2, 0).contiguous()
        rows = selection.norm_rows.split(len(CANDIDATES))
        for layer, own, norm_rows in zip(self.layers, choices.unbind(), rows, strict=False):
            value, measured = layer(value, own, norm_rows)
            recorder.measurements += measured
        return value

    def standalone(self, arch: Tensor) -> MacroNetwork:
        """A plain torch network of one architecture, with this network's weights.

        It holds no cwkernels inside: stock modules, weights and running statistics copied from the
        rows that the architecture reads. Its parameters and multiply-adds are those that
        NAS-Bench-Macro lists.

        Args:
            arch: int64 [8].
        """
        return cut_macro(self, arch)


def macro(
    *,
    num_classes: int = 10,
    reserve: bool = False,
    dense_grad: bool = False,
    recompute: bool = False,
) -> MacroSuperNetwork:
    """The NAS-Bench-Macro super-network of the paper (table 3): `net(images, arch)` gives logits.

    Stem conv3x3, BN, ReLU; eight layers of identity or inverted bottleneck; conv1x1 to 1280, BN,
    ReLU, global average, linear: 4,221,386 parameters before the split.

    Args:
        num_classes: logits.
        reserve: allocate all rows at the start, so that no tensor changes size at a split.
        dense_grad: banks get ordinary gradients, zero for unselected sets, for gradcheck or any
            `torch.optim` optimizer; weight decay and momentum then move unselected sets too.
        recompute: keep no hidden tensors for backward but compute them again: less memory.

    Raises:
        TypeError, ValueError: if num_classes is not an int of at least 1.
    """
    num_classes = checks.integer("networks.macro", "num_classes", num_classes, at_least=1)
    return MacroSuperNetwork(
        num_classes=num_classes, reserve=reserve, dense_grad=dense_grad, recompute=recompute
    )
