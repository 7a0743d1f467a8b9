"""Converted PyTorch graphs: logits equal to PyTorch's, and refusals by name; without PyTorch from a stored program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models.torch import from_torch, graph
from advjax.models.torch.reading import module_logits
from advjax.types import UserError, Variables
from support.torch_families import FIXTURES, torch_networks


def decoded(value):
    if isinstance(value, dict):
        return graph.Ref(value["ref"]) if set(value) == {"ref"} else {key: decoded(each) for key, each in value.items()}
    return tuple(decoded(each) for each in value) if isinstance(value, list) else value


def stored(name):
    """Program, variables, images in [0, 1], and PyTorch's logits."""
    with np.load(FIXTURES / f"graph_{name}.npz") as file:
        arrays = {
            kind: {key.removeprefix(f"{kind}/"): jnp.asarray(file[key]) for key in file.files if key.startswith(kind)}
            for kind in ("params", "buffers")
        }
        program = graph.Program(**json.loads(str(file["program"])))
        images, logits = file["images"].astype(np.float32) / 255, file["logits"]
    steps = tuple(
        graph.Step(name, operation, decoded(args), decoded(kwargs)) for name, operation, args, kwargs in program.steps
    )
    sources = {key: tuple(source) for key, source in program.sources.items()}
    program = program._replace(steps=steps, sources=sources, output=graph.Ref(program.output))
    return program, Variables(arrays.pop("params"), arrays), images, logits


def test_a_stored_program_gives_the_logits_of_pytorch():
    program, variables, images, logits = stored("mixed")
    logits_fn = jax.jit(graph.function_of(program))
    np.testing.assert_allclose(logits_fn(variables, images), logits, atol=1e-5)
    assert np.ptp(logits, axis=0).max() > 1e-2
    gradient = jax.grad(lambda params, x: logits_fn(variables._replace(params=params), x)[:, 0].sum(), (0, 1))
    by_params, by_images = gradient(variables.params, jnp.asarray(images))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_params, by_images))) and by_images.any()


def test_any_number_of_images_for_an_export_of_a_fixed_number():
    """The stored export has fixed its four images inside."""
    program, variables, images, logits = stored("mixed")
    assert program.image_shape[0] is None
    fixed = graph.with_fixed_number(program, variables, len(images))
    assert fixed.image_shape == (4, 3, 32, 32)
    logits_fn = graph.function_of(fixed)
    for rows in ([2], [3, 1, 0], [0, 1, 2, 3], [3, 0, 3, 2, 1, 0, 2, 1, 0]):
        np.testing.assert_allclose(jax.jit(logits_fn)(variables, images[np.array(rows)]), logits[rows], atol=1e-5)

    @jax.jit
    def gradient_of(images):
        return jax.grad(lambda images: logits_fn(variables, images)[:, 0].sum())(images)

    # What pads the last batch adds nothing to the gradient of an image.
    gradient, whole = gradient_of(images[:3]), gradient_of(images)
    np.testing.assert_allclose(gradient, whole[:3], atol=1e-6)
    assert np.abs(whole).max() > 1e-3


def linear_program(batch):
    """Weighs the sums of three channels; ``batch`` is what an export has written for the number of images."""
    steps = (
        graph.Step("sums", "sum", (graph.Ref("x"), [2, 3]), {}),
        graph.Step("rows", "view", (graph.Ref("sums"), [batch, 3]), {}),
        graph.Step("logits", "mm", (graph.Ref("rows"), graph.Ref("w")), {}),
    )
    program = graph.Program(steps, {"w": ("params", "weight")}, "x", (None, 3, 4, 4), graph.Ref("logits"))
    return program, Variables({"weight": jnp.arange(6.0).reshape(3, 2)}, {"buffers": {}})


@pytest.mark.parametrize(("batch", "number"), [(-1, None), (5, 5)])
def test_the_number_of_images_that_a_graph_has_fixed_inside_is_found(images, batch, number):
    program, variables = linear_program(batch)
    found = graph.with_fixed_number(program, variables, 5)
    assert found.image_shape == (number, 3, 4, 4)
    logits_fn, few = graph.function_of(found), images[:2, :4, :4]
    expected = few.sum((1, 2)) @ np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(logits_fn(variables, few), expected, rtol=1e-5)


@pytest.mark.parametrize("number", [None, 4])
def test_images_of_another_shape_are_refused(number):
    program, variables, images, _ = stored("mixed")
    logits_fn = graph.function_of(program._replace(image_shape=(number, 3, 32, 32)))
    with pytest.raises(ValueError, match=r"shape of the example, \[n, 32, 32, 3\], got \(4, 16, 32, 3\)"):
        logits_fn(variables, images[:, ::2])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(3, 12, 12, 3)).astype(np.float32)


def assert_logits_of(network, logits_fn, variables, images):
    """For other numbers of images than the example has."""
    for rows in ([1, 0], [2, 1, 0, 2, 0, 1, 1]):
        expected = module_logits(network, images[rows])
        np.testing.assert_allclose(jax.jit(logits_fn)(variables, images[rows]), expected, rtol=1e-4, atol=1e-5)


def test_a_module_is_converted_in_eval_mode_and_left_in_its_own(torch):
    networks = torch_networks()
    network = networks.trained_looking(networks.Mixed()).train()
    network.norm.eval()
    batch = networks.random_images((32, 32, 3)).astype(np.float32) / 255
    logits_fn, variables = from_torch(network, batch)
    assert network.training and network.attention.training and not network.norm.training
    names = dict(network.named_parameters())
    assert set(variables.params) == set(names) and "norm.running_mean" in variables.model_state["buffers"]
    np.testing.assert_array_equal(variables.params["conv.weight"], names["conv.weight"].detach().numpy())
    # New parameters are used: nothing of the module has been compiled in.
    changed = {**variables.params, "linear.bias": variables.params["linear.bias"] + 1}
    np.testing.assert_allclose(
        logits_fn(variables._replace(params=changed), batch), logits_fn(variables, batch) + 1, rtol=1e-5
    )


LAYERS = {
    "pixels in a list": lambda t: t.nn.Sequential(t.nn.Conv2d(3, 4, 3, stride=2), t.nn.ReLU6(), t.nn.AvgPool2d(2)),
    "ceil_mode": lambda t: t.nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    "dilated pooling": lambda t: t.nn.MaxPool2d(2, 2, dilation=2),
    "average without padding": lambda t: t.nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "adaptive": lambda t: t.nn.AdaptiveAvgPool2d((5, 3)),
    "adaptive maximum": lambda t: t.nn.AdaptiveMaxPool2d(4),
    "groups": lambda t: t.nn.Sequential(t.nn.Conv2d(3, 6, 3, groups=3, dilation=2, padding="same"), t.nn.CELU()),
    "instance norm": lambda t: t.nn.Sequential(t.nn.Conv2d(3, 6, 3), t.nn.GroupNorm(6, 6), t.nn.SELU()),
    "layer norm": lambda t: t.nn.Sequential(t.nn.LayerNorm(12), t.nn.Softplus(), t.nn.Hardsigmoid()),
    "tanh approximation": lambda t: t.nn.Sequential(t.nn.GELU("tanh"), t.nn.Hardtanh(-0.2, 0.4), t.nn.Tanh()),
    "nearest": lambda t: t.nn.Upsample(scale_factor=1.5, mode="nearest"),
    "bilinear": lambda t: t.nn.Upsample((7, 9), mode="bilinear"),
    "softmax": lambda t: t.nn.Sequential(t.nn.Softmax(1), t.nn.LogSoftmax(2), t.nn.Softsign()),
    "dropout": lambda t: t.nn.Sequential(t.nn.Dropout(), t.nn.LogSigmoid()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(torch, images, name):
    torch.manual_seed(0)
    network = torch.nn.Sequential(LAYERS[name](torch), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    network(torch.zeros(2, 3, 12, 12))
    logits_fn, variables = from_torch(network, images)
    assert_logits_of(network.eval(), logits_fn, variables, images)


def module(torch, forward):
    """A linear classifier of what a function makes of the pixels."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.LazyLinear(5)
            self.register_buffer("scale", torch.linspace(0.5, 1.5, 12))

        def forward(self, x):
            return self.linear(forward(self, x).flatten(1))

    network = Network()
    network(torch.zeros(2, 3, 12, 12))
    return network


FUNCTIONS = {
    "shapes": lambda self, x: x.reshape(len(x), -1).unflatten(1, (3, 144)).transpose(1, 2).squeeze().contiguous(),
    "slices": lambda self, x: x[:, [2, 0], 1:-1:2] + x[:, 1:2, -1:, ...] - x[:, -1:, :1],
    "statistics": lambda self, x: (
        x.std((2, 3)) + x.var(3).mean(2) + x.amax((2, 3)) - x.norm(dim=1).sum((1, 2))[:, None]
    ),
    "arithmetic": lambda self, x: (2 - x) ** 2 / (1 + x.abs()).sqrt() * self.scale - x.exp().log() + 1 / (x + 2),
    "comparison": lambda self, x: x.where(x > 0.5, -x).clamp(min=-0.4).maximum(x.minimum(self.scale)),
    "stack": lambda self, x: self.scale + sum(2 * part for part in x.split([1, 2], 1)[1].unbind(1)),
    "matrix product": lambda self, x: (x @ x.transpose(2, 3)).softmax(-1) + x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(torch, images, name):
    torch.manual_seed(0)
    network = module(torch, FUNCTIONS[name])
    logits_fn, variables = from_torch(network, images)
    assert_logits_of(network, logits_fn, variables, images)


REFUSED = {
    "cumsum": (lambda torch: lambda self, x: x.cumsum(1), "does not convert aten.cumsum"),
    "sort": (lambda torch: lambda self, x: x.sort(-1).values, r"does not convert aten.sort.*torch.operations"),
    "random": (lambda torch: lambda self, x: x + torch.rand_like(x), "does not convert aten.rand"),
    "branch": (lambda torch: lambda self, x: x * 2 if x.sum() > 0 else x, "torch.export cannot export Network: "),
    "transposed": (
        lambda torch: lambda self, x: torch.conv_transpose2d(x, x.new_ones(3, 1, 2, 2)),
        "does not convert transposed convolutions",
    ),
    "batch": (lambda torch: lambda self, x: x - x.mean(0), "must not depend on the other images of a batch"),
    "batch of a fixed number": (
        lambda torch: lambda self, x: x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(0),
        "must not depend on the other images of a batch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_converted_is_named(torch, images, name):
    forward, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        from_torch(module(torch, forward(torch)), images)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs(torch, images, dynamic):
    networks = torch_networks()
    block = torch.nn.Sequential(
        networks.conv(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4 * 12 * 12, 5)
    )
    network = networks.trained_looking(block)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    dynamic_shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    exported = torch.export.export(network, (pixels,), dynamic_shapes=dynamic_shapes)
    logits_fn, variables = from_torch(exported, images)
    np.testing.assert_allclose(logits_fn(variables, images), module_logits(network, images), atol=1e-5)
    assert_logits_of(network, logits_fn, variables, images)
    if not dynamic:
        with pytest.raises(UserError, match=r"cannot be applied to images \[n, h, w, c\] of shape \(2, 12, 12, 3\)"):
            from_torch(exported, images[:2])
    with pytest.raises(
        UserError, match=r"from_torch does not convert aten\.|the module changes .*: export it in eval mode"
    ):
        from_torch(torch.export.export(network.train(), (pixels,)), images)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module or an ExportedProgram, got OrderedDict"):
        from_torch(network.state_dict(), images)


@pytest.mark.parametrize("shape", [(2, 12, 12), (1, 12, 12, 3)])
def test_a_bad_example_is_refused(torch, shape):
    with pytest.raises(ValueError, match="images must be"):
        from_torch(torch.nn.Flatten(), np.zeros(shape, np.float32))
