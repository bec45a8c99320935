"""A training run: ``configs/recipes/<name>.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from specexit.buckets import Location
from specexit.config import Config
from specexit.drafts.directory import Source
from specexit.schemas.target import Layers


class OptimizerConfig(Config):
    """Muon for weight matrices, AdamW for the rest; clipped; linear warm-up, constant, linear decay."""

    muon_rate: float = Field(
        default=0.02, gt=0, allow_inf_nan=False, description="peak learning rate of Muon (weight matrices)"
    )
    adam_rate: float = Field(
        default=3e-3, gt=0, allow_inf_nan=False, description="peak learning rate of AdamW (embeddings, norms, LM head)"
    )
    head_rate: float = Field(
        default=0.02, gt=0, allow_inf_nan=False, description="peak learning rate of AdamW (signal head)"
    )
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="decoupled weight decay of both")
    warmup: float = Field(default=0.04, ge=0, lt=1, description="share of the steps with a rising rate")
    decay: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of the steps, at the end, with a falling rate; those behind the warm-up at most",
    )
    floor: float = Field(
        default=0.02, ge=0, le=1, description="share of the peak that the decay comes to, behind the last step"
    )
    clip: float = Field(default=1.0, gt=0, description="largest global gradient norm")


class DraftShapeConfig(Config):
    """Sizes of the draft layer."""

    hidden_size: int = Field(gt=0, description="width of the draft layer; the target's, unless it embeds by itself")
    intermediate_size: int = Field(gt=0, description="width of its MLP")
    num_attention_heads: int = Field(gt=0, description="query heads")
    num_key_value_heads: int = Field(gt=0, description="key and value heads; must divide the query heads")
    head_dim: int = Field(gt=0, multiple_of=2, description="width of a head; even, as RoPE turns pairs")
    draft_vocab_size: int = Field(gt=0, description="the target's most frequent tokens that the draft can propose")

    @model_validator(mode="after")
    def _heads(self) -> DraftShapeConfig:
        heads, kv = self.num_attention_heads, self.num_key_value_heads
        if heads % kv:
            raise ValueError(f"num_attention_heads={heads}: expected a multiple of num_key_value_heads={kv}")
        return self


class SignalConfig(Config):
    """Where the signals are read, and how hard they pull."""

    source: Source = Field(
        default="draft", description="draft: the draft layer's output, jointly; fc: a probe on the target"
    )
    share: float = Field(
        default=0.3,
        ge=0,
        allow_inf_nan=False,
        description="pull of each signal on the shared state, relative to the tokens'; 0: its head only reads that",
    )
    boundary_weight: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="weight of split tokens in the signal losses; verdicts are read nowhere else",
    )
    smoothing: float = Field(
        default=0.95, ge=0, lt=1, description="of the gradient magnitudes behind the dynamic weights"
    )


def _size_or_rest(size: int) -> int:
    if size < 1 and size != -1:
        raise ValueError("expected a number from 1 on, or -1")
    return size


class MeshConfig(Config):
    """Device mesh; the product must be the number of devices."""

    dcn_data: Annotated[int, AfterValidator(_size_or_rest)] = Field(
        default=1, description="slices, each with its own replicas; -1 for as many as there are"
    )
    data: Annotated[int, AfterValidator(_size_or_rest)] = Field(
        default=-1, description="replicas in a slice; -1 takes the devices that are left"
    )
    fsdp: int = Field(default=1, gt=0, description="shards of parameters and batch")
    expert: int = Field(default=1, gt=0, description="shards of a target's experts, and of the batch")
    context: int = Field(default=1, gt=0, description="stretches of each row's time")
    tensor: int = Field(default=1, gt=0, description="shards of heads, MLP and vocabulary")


class CheckpointConfig(Config):
    """What is kept, and how often."""

    every: int = Field(default=100, gt=0, description="steps between checkpoints")
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept")


class ClusterConfig(Config):
    """The processes of a job. JAX finds them itself on GKE, Cloud TPU VMs and SLURM; elsewhere, all three are given."""

    coordinator: str | None = Field(default=None, description="host:port of process 0, reachable from all others")
    num_processes: int | None = Field(default=None, gt=0, description="processes in the job")
    process_id: int | None = Field(default=None, ge=0, description="which of them this is")
    heartbeat: int = Field(
        default=100, gt=0, description="seconds of silence after which a process is taken for dead and all others stop"
    )

    @field_validator("coordinator")
    @classmethod
    def _host_and_port(cls, coordinator: str | None) -> str | None:
        host, _, port = (coordinator or "host:1").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError("expected HOST:PORT, such as 10.0.0.2:9911")
        return coordinator

    @model_validator(mode="after")
    def _all_or_none(self) -> ClusterConfig:
        given = (self.coordinator, self.num_processes, self.process_id)
        if None in given and given != (None, None, None):
            raise ValueError(
                f"coordinator={self.coordinator}, num_processes={self.num_processes}, process_id={self.process_id}: "
                "expected all three, or none where JAX finds the processes itself"
            )
        if self.process_id is not None and self.num_processes is not None and self.process_id >= self.num_processes:
            raise ValueError(f"process_id={self.process_id}, expected less than num_processes={self.num_processes}")
        return self


BestBy = Literal["acceptance_length", "auroc", "calibration_error", "brier", "cut"]
"""What the best checkpoint is chosen by: see ``jax_specexit.evaluation.judging.Evaluation``. The middle three are
those of validity over all boundaries; ``cut`` is the thinking cut at no loss."""


class TrainConfig(Config):
    """Train a draft and its signal heads."""

    target: str = Field(description="name in configs/targets, or a YAML file")
    data: Location = Field(description="folder that `specexit pack` wrote")
    features: Path | None = Field(
        default=None,
        description="folder that `specexit features` wrote: the target's hidden states are read from there, and its "
        "layers are neither loaded nor run",
    )
    eval_traces: Location | None = Field(
        default=None, description="labelled traces of problems that are not trained on"
    )
    out: Location = Field(description="run folder; an interrupted run in it is continued")
    draft: DraftShapeConfig
    aux_layers: Layers | None = Field(
        default=None, description="layers that the draft reads; the target's own choice unless given"
    )
    signals: SignalConfig = SignalConfig()
    init_from: Location | None = Field(default=None, description="draft directory whose trunk the run starts from")
    freeze_trunk: bool = Field(default=False, description="train the signal head alone; source fc, with init_from")
    steps: int = Field(gt=0, lt=2**31, description="optimizer steps")
    batch_size: int = Field(gt=0, description="packed rows per step, over all devices")
    length: int | None = Field(default=None, gt=0, description="tokens in a packed row; data of another one is refused")
    ttt_steps: int = Field(default=3, gt=0, description="training-time-test steps; draft tokens proposed in serving")
    ttt_decay: float = Field(default=0.8, gt=0, le=1, description="weight of each further TTT step")
    skip_unknown: bool = Field(
        default=False,
        description="leave out of the token loss what the target would go on with by a token that the draft cannot say",
    )
    first_step_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the run, at its start, on TTT step 0 alone, which costs about half",
    )
    loss_chunk: int = Field(
        default=128, gt=0, description="time rows whose logits exist at once; must divide the length"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16",
        description="of activations; parameters stay float32; with float32 so do the factors of products, on TPUs, too",
    )
    target_int8: bool = Field(
        default=False,
        description="weights and activations of the frozen target's layers in int8: half its time and memory, where "
        "the chip has it; its features and its teaching then carry rounding errors: 2 % on the tiny reasoner, 4 to 25 %"
        " in random matrices of a real width, see docs/training-variants.md",
    )
    remat: bool = Field(
        default=False, description="compute a TTT step again in the backward pass: less memory, more time"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    topology: str | None = Field(
        default=None, description="TPU slice that the recipe is made for, e.g. v5e:4x4; `specexit plan` compiles for it"
    )
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(default=10, gt=0, description="steps between metric lines; a checkpoint has one in any case")
    evaluate_every: int | None = Field(
        default=None, gt=0, description="steps between evaluations on eval_traces; by default only at the end"
    )
    evaluate_n: int | None = Field(default=None, gt=0, description="the first n eval_traces; all by default")
    evaluate_length: int | None = Field(
        default=None,
        gt=0,
        description="longest trace that is evaluated, in tokens; longer ones are left out and counted; by default the "
        "target's max_model_len",
    )
    best_by: BestBy = Field(default="auroc", description="evaluation metric whose best checkpoint is kept in best/")
    max_nonfinite: int = Field(
        default=0, ge=0, description="updates in a row that may be skipped for a NaN or infinity before the run stops"
    )
    profile_steps: tuple[int, int] | None = Field(
        default=None, description="[first, last] step of a profiler trace; SIGUSR1 asks a running process for one"
    )
    wandb: str | None = Field(default=None, description="Weights & Biases project to log to as well; needs the extra")
    cluster: ClusterConfig = ClusterConfig()
    # Grain takes no negative one, and JAX the last 32 bits: a larger one would have the weights of another.
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the initial weights and the order of the data")

    @model_validator(mode="after")
    def _evaluation(self) -> TrainConfig:
        if self.evaluate_every is not None and self.eval_traces is None:
            raise ValueError(f"evaluate_every={self.evaluate_every} without eval_traces: expected labelled traces")
        return self

    @model_validator(mode="after")
    def _features(self) -> TrainConfig:
        if self.features is not None:
            given = (("eval_traces", self.eval_traces, "null"), ("target_int8", self.target_int8 or None, "false"))
            for name, value, without in given:
                if value is not None:
                    raise ValueError(
                        f"{name}={value} with features={self.features}: there the target is not run, "
                        f"expected {name}={without}"
                    )
        return self

    @model_validator(mode="after")
    def _profile(self) -> TrainConfig:
        if self.profile_steps is not None and not 0 < self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(
                f"profile_steps={list(self.profile_steps)}, expected [first, last] with 1 <= first <= last"
            )
        return self

    @model_validator(mode="after")
    def _frozen_trunk(self) -> TrainConfig:
        if self.freeze_trunk and (self.signals.source != "fc" or self.init_from is None):
            raise ValueError(
                f"freeze_trunk=true with signals.source={self.signals.source}, init_from={self.init_from}: "
                "expected source fc and a draft directory to start from"
            )
        return self
