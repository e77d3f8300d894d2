"""The configuration of a run: one description of every setting for Python, TOML files and command-line flags."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sparsekit.checks import nearest
from sparsekit.errors import InputError

Method = Literal["dense", "static", "static-unstructured", "set", "rigl", "srigl"]


def _split(value: Any) -> Any:
    """Flags give lists as 'a,b'; TOML gives real lists."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _refuse_bool(value: Any) -> Any:
    """TOML's true is no number, although Python's is."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _refuse_endless(value: int) -> int:
    """Python's integers know no end, but schedules count in floats too."""
    if value >= 2**1000:
        raise ValueError("beyond what a float can hold")
    return value


def _fits_64_bits(value: Any) -> bool:
    """Whether an integer, and all integers in a list, are those that every reader of TOML must know."""
    if isinstance(value, list):
        return all(map(_fits_64_bits, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


_NoBool = BeforeValidator(_refuse_bool)
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31), _NoBool], ...], BeforeValidator(_split)]
Fraction = Annotated[float, Field(ge=0, le=1), _NoBool]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1), _NoBool]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _NoBool]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _NoBool]
PositiveFraction = Annotated[float, Field(gt=0, le=1), _NoBool]
Seed = Annotated[int, Field(ge=0), _NoBool, AfterValidator(_refuse_endless)]
Count = Annotated[int, Field(ge=1), _NoBool, AfterValidator(_refuse_endless)]


class RunConfig(BaseModel):
    """Everything that decides how a network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(
        "digits",
        description="digits, mnist, fashion-mnist, cifar10, cifar10-subset, or an .npz file with x and y",
    )
    validation: FractionBelowOne = Field(0.0, description="share of the training data set aside for validation")
    scaling: Literal["standardize", "unit"] = Field(
        "standardize", description="inputs of mean 0 and standard deviation 1, or pixels divided by 255"
    )
    augmentation: Literal["none", "crop-flip"] = Field(
        "none", description="training images as they are, or cropped at random after padding by 4, and flipped"
    )

    model: Literal["mlp", "cnn", "mnist_cnn", "resnet18", "wide_resnet22"] = Field(
        "mlp", description="network architecture"
    )
    hidden: Sizes = Field((256, 256), description="mlp: sizes of the hidden layers, as 512,512")
    channels: Sizes = Field((32, 64), description="cnn: channels of the convolutions, as 32,64")
    activation: Literal["relu", "gelu"] = Field("relu", description="mlp: activation of the hidden layers")
    batch_norm: bool = Field(False, description="mlp: normalise the hidden layers over the batch")
    dropout: FractionBelowOne | None = Field(
        None,
        description="probability of zeroing a hidden value in training (default: 0; mnist_cnn 0.25 and 0.5, "
        "wide_resnet22 0.3; cnn and resnet18 have none)",
    )

    method: Method = Field("srigl", description="topology method; static is constant fan-in")
    sparsity: FractionBelowOne = Field(0.9, description="share of the weights that is not stored")
    distribution: Literal["erk", "er", "uniform"] = Field("erk", description="how the layers share the weights")
    first_layer_dense: bool | None = Field(
        None, description="keep the first layer dense (default: with uniform only)"
    )
    dense_layers: Names = Field((), description="layers to keep dense, as fc1,fc3")
    no_ablation_layers: Names | None = Field(
        None, description="layers whose neurons are never ablated (default: the output layer)"
    )
    gamma_sal: FractionBelowOne = Field(
        0.3, description="SRigL: share of salient weights a neuron needs; 0: no ablation"
    )
    saliency_gradient: Literal["inactive", "all"] = Field(
        "inactive", description="SRigL: positions that their gradient can make salient"
    )
    revive: bool = Field(True, description="SRigL: whether ablated neurons may come back")
    compat: Literal["official"] | None = Field(
        None, description="SRigL: reproduce the authors' code and its faults"
    )
    initializer: Literal["he_normal", "fan_in_uniform"] = Field(
        "he_normal", description="first weights, by the stored inputs of each neuron; fan_in_uniform as PyTorch's"
    )
    delta_t: Count = Field(100, description="optimizer steps between topology updates")
    alpha: Fraction = Field(0.3, description="drop fraction at the start of training")
    t_end_fraction: Fraction = Field(0.75, description="share of the training after which the topology stays")

    epochs: Count = Field(10, description="passes over the training data")
    batch_size: Count = Field(128, description="samples a step; an incomplete last batch is dropped")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimizer")
    learning_rate: Positive = Field(0.1, description="learning rate after warm-up")
    lr_schedule: Literal["constant", "step", "cosine"] = Field("cosine", description="learning rate over training")
    warmup_epochs: NotNegative = Field(0.0, description="epochs of linear warm-up")
    step_epochs: Positive = Field(30.0, description="step schedule: epochs between two decays")
    step_factor: PositiveFraction = Field(0.1, description="step schedule: factor of a decay")
    momentum: FractionBelowOne = Field(0.9, description="SGD momentum")
    nesterov: bool = Field(True, description="SGD with Nesterov momentum")
    weight_decay: NotNegative = Field(5e-4, description="weight decay")
    label_smoothing: FractionBelowOne = Field(0.0, description="share of the target spread over all classes")
    checkpoint_every: Count = Field(
        1, description="epochs between two checkpoints, which --resume goes on from; the best one always has one"
    )

    seed: Seed = Field(0, description="seed of masks, weights, batches and random growth")
    threads: Count | None = Field(None, description="threads of kernels and BLAS (default: all processors)")
    backend: Literal["reference", "vectorized", "csr", "cpu"] = Field(
        "cpu", description="kernels of sparse layers"
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of weights and activations")

    def to_toml(self) -> str:
        """The configuration as TOML; settings left at None are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def make_config(*sources: Mapping[str, Any]) -> RunConfig:
    """A configuration from mappings, later ones overriding earlier ones; what none names keeps its default.

    Raises
    ------
    InputError
        For an unknown name (with the nearest known one) or a value that is not allowed, in one line.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        merged |= source
    for name in merged:
        if name not in RunConfig.model_fields:
            raise InputError(f"unknown setting {_clipped(name)}{nearest(name, RunConfig.model_fields)}")
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        raise InputError(_one_line(error)) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises
    ------
    InputError
        If the file cannot be read or is not TOML, or for a table: settings have no sections.
    """
    try:
        with open(path, "rb") as file:
            return parse_toml(file.read(), f"config {path}")
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror}") from None


def parse_toml(content: bytes, name: str) -> dict[str, Any]:
    """The settings in the content of a TOML file that messages call `name`; refused like :func:`read_toml`."""
    try:
        settings = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, an endless number; lists in lists in lists
        raise InputError(f"{name} is not TOML: {error}") from None
    for key, value in settings.items():
        if isinstance(value, dict):
            raise InputError(f"{name} has a table [{_clipped(key)[1:-1]}], but settings stand at the top level")
        if not _fits_64_bits(value):
            raise InputError(f"{name} is not TOML: an integer in {_clipped(key)} has more than 64 bits")
    return settings


def choices(name: str) -> list[str]:
    """The values a setting may take, where they are few and have names; else nothing."""
    return [choice for option in _options(name) for choice in option.get("enum", [option.get("const")]) if choice]


def kind(name: str) -> str:
    """What a setting's value is: 'integer', 'number', 'boolean', 'array' or 'string'."""
    return _options(name)[0].get("type", "string")


def _options(name: str) -> list[dict[str, Any]]:
    """JSON schemas of the alternatives, None among them where a setting may be left out."""
    schema = _schemas()[name]
    return schema.get("anyOf", [schema])


@cache
def _schemas() -> dict[str, Any]:
    return RunConfig.model_json_schema()["properties"]


def _one_line(error: ValidationError) -> str:
    """The first complaint of pydantic as 'name must be ..., not value'."""
    first = error.errors()[0]
    name, value = str(first["loc"][0]), first["input"]
    hint = nearest(value, choices(name))
    return f"{name} must be {_allowed(name)}, not {_clipped(value)}{hint}"


def _clipped(value: Any) -> str:
    """How a value is written in Python, or the beginning of that: a message is one line, not a book."""
    return f"{value!r:.200}"


def _allowed(name: str) -> str:
    if choices(name):
        return f"one of {', '.join(choices(name))}"
    option = _options(name)[0]
    if kind(name) == "array":
        item = "integers of at least 1" if option["items"]["type"] == "integer" else "names"
        return f"{item} separated by commas"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {option[key]:g}" for key, sign in signs.items() if key in option)
    article = "an" if kind(name) == "integer" else "a"
    return f"{article} {kind(name)} {bounds}".strip()
