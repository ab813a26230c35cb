"""Networks in the way of users' own, each with something that networks in tutorials do not have. Input 3x8x8."""

import threading
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d

WIDTH = 6


def chain(*middle: nn.Module, classes: int) -> nn.Sequential:
    """Stem, the modules in between, head."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1),
        nn.ReLU(),
        *middle,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, classes),
    )


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, **{"padding": 1, **options})  # type: ignore[arg-type]


def plain(num_classes: int = 4) -> nn.Module:
    return chain(conv(bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(), conv(), classes=num_classes)


class Residual(nn.Module):
    """x + act(norm(conv(x))), with a hook for what else a forward pass may do."""

    def __init__(self, extra: Callable[[nn.Conv2d, Tensor, Tensor], Tensor] = lambda conv, x, y: y) -> None:
        super().__init__()
        self.conv, self.norm, self.extra = conv(bias=False), nn.BatchNorm2d(WIDTH), extra

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.extra(self.conv, x, self.conv(x))))


# Counting


class ByChannel(nn.Module):
    """Attention over channels by a one-dimensional convolution whose padding has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 5, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mix(F.adaptive_max_pool1d(x.flatten(2), 1).transpose(1, 2))  # (B, 1, C)
        return x * weights.sigmoid().transpose(1, 2)[..., None]


def one_dimension(num_classes: int = 4) -> nn.Module:
    return chain(Residual(), ByChannel(), classes=num_classes)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.attend(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


def attention(num_classes: int = 4) -> nn.Module:
    return chain(Residual(), Tokens(), classes=num_classes)


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.bend = nn.Conv2d(WIDTH, 18, 3, padding=1), DeformConv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bend(x, self.offset(x))


def deformable(num_classes: int = 4) -> nn.Module:
    return chain(Residual(), Bent(), classes=num_classes)


# What a forward pass asks of its convolution


def reads_weight(num_classes: int = 4) -> nn.Module:
    return chain(Residual(lambda conv, x, y: y - 0.5 * conv.weight.mean() * x), Residual(), classes=num_classes)


def reads_dtype(num_classes: int = 4) -> nn.Module:
    return chain(Residual(lambda conv, x, y: y.to(conv.weight.dtype)), Residual(), classes=num_classes)


def reads_stride(num_classes: int = 4) -> nn.Module:
    return chain(Residual(lambda conv, x, y: F.avg_pool2d(y, conv.stride)), Residual(), classes=num_classes)


def asks_for_class(num_classes: int = 4) -> nn.Module:
    return chain(Residual(lambda conv, x, y: 2 * y if isinstance(conv, nn.Conv2d) else y), Residual(), classes=num_classes)


class ReadsWhileTraining(Residual):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.penalty = self.conv.weight.square().sum()
        return super().forward(x)


def reads_while_training(num_classes: int = 4) -> nn.Module:
    return chain(ReadsWhileTraining(), Residual(), classes=num_classes)


class ReadsNorm(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm.weight.abs().mean()


def reads_norm(num_classes: int = 4) -> nn.Module:
    return chain(ReadsNorm(), Residual(), classes=num_classes)


# Convolutions that do more than convolve


class ConvRelu(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def with_activation(num_classes: int = 4) -> nn.Module:
    return chain(ConvRelu(WIDTH, WIDTH, 3, padding=1), conv(), classes=num_classes)


class Standardised(nn.Conv2d):
    """Convolves with another weight than its own: any operator may take its place."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


def standardised(num_classes: int = 4) -> nn.Module:
    return chain(Standardised(WIDTH, WIDTH, 3, padding=1), conv(), classes=num_classes)


def hooked(num_classes: int = 4) -> nn.Module:
    network = plain(num_classes)
    network[2].register_forward_hook(lambda module, inputs, output: output.clamp(-1, 1))
    return network


class Quantised(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.body = plain(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.body(self.quant(x)))


def prepared(num_classes: int = 4) -> nn.Module:
    network = Quantised(num_classes).train()
    quantization.fuse_modules_qat(network.body, [["2", "3", "4"]], inplace=True)
    network.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(network)


# Outputs


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def always_random(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(plain(num_classes), Drops())


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def of_its_batch(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(plain(num_classes), Centred())


def untracked(num_classes: int = 4) -> nn.Module:
    return chain(conv(), nn.BatchNorm2d(WIDTH, track_running_stats=False), classes=num_classes)


class Heads(nn.Module):
    """Several outputs, always or in training mode only."""

    def __init__(self, classes: int, kind: str) -> None:
        super().__init__()
        self.body, self.kind = plain(classes), kind

    def forward(self, x: Tensor) -> object:
        y = self.body(x)
        if self.kind == "training":
            return (y, y) if self.training else y
        return {"dict": {"a": y, "b": y}, "list": [y, y], "map": y[:, :, None, None] * x[:, :1]}[self.kind]


def heads_in_training(num_classes: int = 4) -> nn.Module:
    return Heads(num_classes, "training")


def dict_of_heads(num_classes: int = 4) -> nn.Module:
    return Heads(num_classes, "dict")


def list_of_heads(num_classes: int = 4) -> nn.Module:
    return Heads(num_classes, "list")


def maps(num_classes: int = 4) -> nn.Module:
    return Heads(num_classes, "map")


class ForOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(1, WIDTH)


def for_one_image(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(*list(plain(num_classes))[:-2], ForOne(), nn.Linear(WIDTH, num_classes))


# Weights


def tied(num_classes: int = 4) -> nn.Module:
    network = chain(Residual(), Residual(), Residual(), classes=num_classes)
    network[3].conv.weight = network[2].conv.weight
    return network


def lazy(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(WIDTH, 3, padding=1),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.LazyConv2d(WIDTH, 3, padding=1),
        nn.LazyBatchNorm2d(),
        nn.Flatten(),
        nn.LazyLinear(num_classes),
    )


def old_weight_norm(num_classes: int = 4) -> nn.Module:
    network = chain(nn.utils.weight_norm(conv()), nn.utils.spectral_norm(conv()), classes=num_classes)
    network(torch.zeros(2, 3, 8, 8))
    return network


def weight_norm(num_classes: int = 4) -> nn.Module:
    return chain(
        nn.utils.parametrizations.weight_norm(conv()), nn.utils.parametrizations.spectral_norm(conv()), classes=num_classes
    )


class Keeps(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = plain(classes)
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["features"] = self.body[:3](x)
        return self.body[3:](self.kept["features"])


def keeps_features(num_classes: int = 4) -> nn.Module:
    network = Keeps(num_classes)
    network(torch.zeros(2, 3, 8, 8))
    return network


def locked(num_classes: int = 4) -> nn.Module:
    network = plain(num_classes)
    network[3].lock = threading.Lock()
    return network


def half(num_classes: int = 4) -> nn.Module:
    return plain(num_classes).bfloat16()


def frozen(num_classes: int = 4) -> nn.Module:
    network = chain(conv(), FrozenBatchNorm2d(WIDTH), conv(), nn.GroupNorm(2, WIDTH), classes=num_classes)
    network[0].requires_grad_(False)
    return network


def synchronised(num_classes: int = 4) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(plain(num_classes))


def circular(num_classes: int = 4) -> nn.Module:
    return chain(conv(padding_mode="circular"), nn.ReLU(), conv(padding_mode="reflect"), classes=num_classes)


def padded_before(num_classes: int = 4) -> nn.Module:
    return chain(nn.ZeroPad2d(1), conv(padding=0), classes=num_classes)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1)


def functional(num_classes: int = 4) -> nn.Module:
    return chain(Residual(), Functional(), classes=num_classes)


class Impolite(nn.Module):
    """Its own versions of train() and to() return nothing, and it changes the images that it is given."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = plain(classes)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def to(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        super().to(*args, **kwargs)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.sub_(0.5))


def impolite(num_classes: int = 4) -> nn.Module:
    return Impolite(num_classes)


class Unregistered(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers, self.body = [conv()], plain(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.body[3:](self.layers[0](self.body[:3](x)))


def unregistered(num_classes: int = 4) -> nn.Module:
    return Unregistered(num_classes)


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def extra_state(num_classes: int = 4) -> nn.Module:
    network = plain(num_classes)
    network[-1] = Extra(WIDTH, num_classes)
    return network


# Wrapped


def parallel(num_classes: int = 4) -> nn.Module:
    return nn.DataParallel(plain(num_classes))


def parallel_inside(num_classes: int = 4) -> nn.Module:
    return chain(nn.DataParallel(nn.Sequential(Residual(), Residual())), classes=num_classes)


def averaged(num_classes: int = 4) -> nn.Module:
    return AveragedModel(plain(num_classes))


def compiled(num_classes: int = 4) -> nn.Module:
    return torch.compile(plain(num_classes))


class CompiledForward(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = torch.compile(plain(classes))

    @torch.compile
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def compiled_forward(num_classes: int = 4) -> nn.Module:
    return CompiledForward(num_classes)


class Passes(nn.Module):
    """A user's own wrapper that passes everything on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.inner(*args, **kwargs)


def passes_on(num_classes: int = 4) -> nn.Module:
    return Passes(plain(num_classes))


def scripted(num_classes: int = 4) -> nn.Module:
    return torch.jit.script(plain(num_classes))


def scripted_inside(num_classes: int = 4) -> nn.Module:
    return chain(Residual(), torch.jit.script(nn.Sequential(conv(), nn.ReLU())), classes=num_classes)


class Autocast(nn.Module):
    def __init__(self, classes: int, device: str) -> None:
        super().__init__()
        self.body, self.device = plain(classes), device

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, enabled=self.device == "cpu", dtype=torch.bfloat16):
            return self.body(x).float()


def autocast_off(num_classes: int = 4) -> nn.Module:
    return Autocast(num_classes, "cuda")


def autocast_on(num_classes: int = 4) -> nn.Module:
    return Autocast(num_classes, "cpu")


# Errors


class Fails(nn.Module):
    def __init__(self, classes: int, how: Callable[[], object]) -> None:
        super().__init__()
        self.body, self.how = plain(classes), how

    def forward(self, x: Tensor) -> Tensor:
        self.how()
        return self.body(x)


def key_error(num_classes: int = 4) -> nn.Module:
    return Fails(num_classes, lambda: {}["scale"])


def attribute_error(num_classes: int = 4) -> nn.Module:
    return Fails(num_classes, lambda: Fails.scale)


def import_error(num_classes: int = 4) -> nn.Module:
    def how() -> None:
        import a_package_that_is_not_there  # noqa: F401

    return Fails(num_classes, how)


def zero_division(num_classes: int = 4) -> nn.Module:
    return Fails(num_classes, lambda: 1 // 0)


def file_error(num_classes: int = 4) -> nn.Module:
    return Fails(num_classes, lambda: Path("/nowhere/scales.txt").read_text())


def quits(num_classes: int = 4) -> nn.Module:
    raise SystemExit("CUDA is needed")


class BySize(nn.Module):
    """Looks its scale up by the size of the image, which is no number while a network is traced to be counted."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.scales = plain(classes), {"8": 0.5}

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scales[str(x.shape[-1])]


def by_size(num_classes: int = 4) -> nn.Module:
    return BySize(num_classes)


def branches(num_classes: int = 4) -> nn.Module:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain(num_classes)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return 2 * y if y.abs().max() > 3 else y

    return Branches()
