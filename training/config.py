"""One YAML file, one frozen config: everything a training run depends on besides its data.

Unknown names and wrong types are refused, and so is what would train wrongly without a word. The config is saved
beside the checkpoint with the hashes of its data and the versions it ran on.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from service.errors import ConfigurationError
from training.evaluation.metrics import check_metric

_STRICT = ConfigDict(extra="forbid")
_VERSIONS = ("eoseek", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")

Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Gt(0)]
Weight = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
HELD_OUT_TOP_K = 100  # documents found for a held-out query


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SetConfig:
    """One training set of the mixture; batches never mix sets."""

    name: str
    path: str  # file or BEIR folder, below `data_root`
    split: str = "train"  # of a BEIR folder
    sources: tuple[str, ...] = ()  # only lines whose `source` is one of these; () takes all
    exclude_sources: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ("",)  # one is drawn for each query in each epoch; "" is none
    weight: Positive = 1.0  # multiplies the set's share of batches
    in_batch_negatives: bool = True  # off: only a query's own negatives count
    follows_teacher: bool = True  # off: no distillation, for languages that the teacher does not know
    num_negatives: Annotated[int, Ge(0)] | None = None  # hard negatives a query; None is the run's
    query_length: Annotated[int, Gt(1)] | None = None  # tokens; None is the run's
    document_length: Annotated[int, Gt(1)] | None = None
    max_examples: Count | None = None  # a fixed random part of the set

    def __post_init__(self) -> None:
        if self.sources and self.exclude_sources:
            raise ValueError(f"set {self.name}: give sources or exclude_sources, not both")
        if not self.instructions:
            raise ValueError(f'set {self.name}: instructions is empty; [""] trains without one')


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TuningConfig:
    """Which weights are tuned."""

    method: Literal["lora", "full"] = "lora"
    rank: Count = 16
    alpha: Count = 64
    dropout: Share = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapter: str | None = None  # an exported adapter whose weights a new one starts from
    freeze_embeddings: bool = True  # full tuning only: token embeddings are a fifth of a small model and move little


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimizerConfig:
    """Adam with warm-up."""

    learning_rate: Positive = 3e-4
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: Share = 0.1  # share of all steps
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: Weight = 0.0
    max_grad_norm: Positive = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LossConfig:
    """InfoNCE and its companions; a weight of 0 leaves a term out."""

    temperature: Positive = 0.02
    symmetric_weight: Weight = 0.0  # documents find their queries
    matryoshka: tuple[Count, ...] = ()  # further dimensions that are trained beside the full one


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DistillationConfig:
    """Terms that follow a teacher, from its vectors (`eoseek teach`) or from the scores written in the data."""

    vectors: str | None = None  # folder of teacher vectors, below `data_root`
    kl_weight: Weight = 0.0
    margin_mse_weight: Weight = 0.0
    vector_weight: Weight = 0.0  # match the vectors themselves, turned
    teacher_temperature: Positive = 0.05

    def __post_init__(self) -> None:
        if self.vector_weight and not self.vectors:
            raise ValueError("distillation.vector_weight needs distillation.vectors, the teacher's vectors")

    @property
    def is_on(self) -> bool:
        """Whether any term is used."""
        return bool(self.kl_weight or self.margin_mse_weight or self.vector_weight)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MemoryConfig:
    """What a step keeps; results do not depend on it beyond rounding."""

    chunk_tokens: Count = 2048  # one forward; larger costs memory, smaller costs speed
    kept_tokens: Annotated[int, Ge(0)] = 0  # activations of so many tokens are kept, of the rest computed twice
    gradient_checkpointing: bool = False  # for single texts whose activations do not fit
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig:
    """Retrieval on a held-out part during training; 0 steps switches it off."""

    every_steps: Annotated[int, Ge(0)] = 0
    held_out_queries: Annotated[int, Ge(0)] = 50  # of each set; their positives leave the training set too
    corpus_size: Count = 2000  # documents searched: the held-out positives and others of the training sets
    at_start: bool = True
    metric: str = "ndcg@10"

    def __post_init__(self) -> None:
        check_metric(self.metric, deepest=HELD_OUT_TOP_K)
        if self.every_steps and not self.held_out_queries:
            raise ValueError("evaluation.held_out_queries 0 leaves nothing to search; every_steps 0 switches it off")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SavingConfig:
    """Checkpoints of the run."""

    every_steps: Count = 100
    keep: Count = 2  # the newest so many; the best by evaluation is kept beside them


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """One run."""

    name: str
    sets: tuple[SetConfig, ...]
    num_steps: Annotated[int, Gt(0), Le(10_000_000)]  # the plan of all steps is in memory
    base: str = "default"  # `default`, a directory, or a hub name
    base_licence: str = ""
    output: str = "runs"  # the run's directory is `output/name`
    data_root: str = "data"
    default_instruction: str = ""  # of the exported checkpoint
    seed: Annotated[int, Ge(0), Lt(2**32)] = 17
    batch_size: Annotated[int, Gt(1)] = 128  # over all processes
    num_negatives: Annotated[int, Ge(0)] = 7
    query_length: Annotated[int, Gt(1)] = 64
    document_length: Annotated[int, Gt(1)] = 256
    size_exponent: Annotated[float, Ge(0), Le(1)] = 1.0  # share of a set ~ weight * size ** exponent; 0: equal shares
    pooling: Literal["cls", "mean", "last_token"] | None = None  # None: the base's own
    trust_remote_code: bool = False
    logging_steps: Count = 10
    fsdp: Mapping[str, Any] | None = None  # accelerate's FSDP options, for several processes
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("sets is empty")
        if Path(self.name).name != self.name or self.name in ("", ".."):
            raise ValueError(f"name {self.name!r} must be the name of a folder: not empty, no slash, no dots alone")
        names = [each.name for each in self.sets]
        if len(set(names)) != len(names):
            raise ValueError(f"two sets share a name: {sorted(names)}")
        for each in self.sets:
            negatives = self.num_negatives if each.num_negatives is None else each.num_negatives
            if not each.in_batch_negatives and negatives == 0:
                raise ValueError(
                    f"set {each.name}: no in-batch negatives and num_negatives 0 leave nothing to contrast"
                )

    @property
    def run_dir(self) -> Path:
        """Where the run keeps its checkpoints and logs."""
        return Path(self.output) / self.name

    def data_path(self, path: str) -> Path:
        """A path of the config, below `data_root` unless absolute."""
        return Path(self.data_root).expanduser() / Path(path).expanduser()


_ADAPTER = TypeAdapter(TrainingConfig)


def load_config(path: Path, overrides: Mapping[str, str] | None = None) -> TrainingConfig:
    """Read a recipe.

    Args:
        path: the YAML file.
        overrides: `{"tuning.rank": "32"}`: dotted name to a YAML value, instead of what the file says; `*` is each
            entry of a list.
    Raises:
        ConfigurationError: unreadable, an unknown name, a wrong type or value; says which and why.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"recipe {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"recipe {path}: holds no mapping")
    for name, value in (overrides or {}).items():
        try:
            _override(content, name, yaml.safe_load(value))
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(f"override {name}={value}: no YAML value ({reason}); quote it") from error
    return config_from(content, str(path))


def config_from(content: Mapping[str, Any], place: str = "config") -> TrainingConfig:
    """The config of a mapping. Raises ConfigurationError as `load_config`."""
    _refuse_accumulation(content)
    try:
        return _ADAPTER.validate_python(dict(content))
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, each['loc'])) or 'run'}: {each['msg']}" for each in error.errors()]
        raise ConfigurationError(f"{place}: {'; '.join(reasons)}") from error


def _refuse_accumulation(content: Mapping[str, Any]) -> None:
    for group in (content, content.get("optimizer"), content.get("memory")):
        steps = group.get("gradient_accumulation_steps") if isinstance(group, Mapping) else None
        if steps is not None:
            raise ConfigurationError(
                f"gradient_accumulation_steps {steps}: accumulating is not a larger batch, as a query would meet the "
                "negatives of its own part only. Give the whole batch_size; memory.chunk_tokens bounds the memory"
            )


def _override(content: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    places: list[Any] = [content]
    for group in groups:
        if group == "*":  # each entry of a list, as in `sets.*.max_examples`
            places = [entry for place in places if isinstance(place, list) for entry in place]
        else:
            places = [place.setdefault(group, {}) for place in places if isinstance(place, dict)]
        if not places or not all(isinstance(place, dict | list) for place in places):
            raise ConfigurationError(f"override {name}: {group} is no group")
    for place in places:
        if not isinstance(place, dict):
            raise ConfigurationError(f"override {name}: {groups[-1]} is a list; write {groups[-1]}.* for its entries")
        place[last] = value


def config_as_dict(config: TrainingConfig) -> dict[str, Any]:
    """Plain values of a config, which `config_from` reads back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {package: version(package) for package in _VERSIONS}
