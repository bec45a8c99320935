"""``policy.json`` of a draft directory: when to exit, what is guaranteed of it, and for what it was calibrated.

It lies beside ``config.json`` and not in it, because vLLM hashes that file into the key of its compile cache: another
policy must not recompile the target, and a server can reload this file alone. A draft carries one or several operating
points; each is a policy with the certificate that `specexit calibrate` found for it, or with none.

Directories that still have their policy in the ``specexit`` block of ``config.json`` are read all the same;
``specexit migrate`` rewrites them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from specexit.config import Config, write_text
from specexit.drafts.files import TensorError, parse_json, read_object
from specexit.errors import InputError, dotted, repeated, shown
from specexit.method.decision import MOST_TOKENS, Policy
from specexit.method.loops import LoopGuard

FILE = "policy.json"
FORMAT_VERSION = 1
MAX_BYTES = 10_000_000
MOST_PROMPTS = 350_000
"""Most prompts of a `Selection`: with 26 bytes each they leave a tenth of `MAX_BYTES` to all else."""
BLOCK_FIELDS = ("policy", "calibration", "serving")
"""What a ``specexit`` block of ``config.json`` held before there was a ``policy.json``."""

Mode = Literal["exit", "shadow", "off"]
Risk = Literal["answer_changed", "accuracy_lost"]


TENANT = re.compile("[0-9a-f]{16}")
"""What `torch_specexit.plugin.frontend.callers.mark_of` makes of an API key."""

TAKEN = {"off": "no exits, in serving.loras and serving.tenants", "own": "a policy of the request's, in metrics"}
"""Names that no operating point can have -> what they mean."""

ROUNDING = 1e-9
"""How far a bound may be above epsilon: both come out of sums of floating-point numbers."""


class PolicyError(InputError):
    """A policy file that cannot be used; the message names the file, the field and what was expected."""


def policy_sha256(policy: Policy) -> str:
    """What a certificate knows its policy by: the first 16 digits of a hash of what differs from the defaults.

    A field that is added to policies later leaves existing certificates valid.

    Example:
      >>> policy_sha256(Policy(thresholds={"validity": 0.9})) == policy_sha256(Policy(thresholds={"validity": 0.5}))
      False
    """
    said = json.dumps(policy.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


class GroupRisk(Config):
    """What a certificate found in one group of the prompts."""

    n: int = Field(gt=0, description="prompts of the group")
    errors: float = Field(ge=0, description="of these, how many the policy gets wrong; a prompt's samples count shares")
    bound: float = Field(ge=0, le=1, description="of the group alone, see the certificate's")


class Certificate(Config):
    """The guarantee behind a policy.

    With probability at least ``1 - delta`` over the calibration prompts, its risk is at most ``epsilon`` on prompts
    that are exchangeable with them and decoded like them.
    """

    risk: Risk
    epsilon: float = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
    n: int = Field(gt=0, description="calibration prompts that count: that could judge or, as `unjudged` says, all")
    errors: float = Field(ge=0, description="of these, how many the policy gets wrong; a prompt's samples count shares")
    bound: float = Field(
        description="upper confidence bound of the risk at level 1 - delta, the worst group's, had this policy been "
        "fixed beforehand; what choosing it among others promises is epsilon"
    )
    data_sha256: str = Field(description="of the trace file that the policy was calibrated on")
    policy_sha256: str | None = Field(
        default=None, description="of the policy that it is of, see `policy_sha256`; null in files of older versions"
    )
    samples: int | None = Field(default=None, description="traces of these prompts")
    unjudged: Literal["refuse", "error"] = Field(
        default="refuse", description="what became of traces that cannot judge: left out, or counted as errors"
    )
    n_unjudged: int = Field(default=0, ge=0, description="traces that cannot judge")
    groups: dict[str, GroupRisk] = Field(default={}, description="each group on its own, where the worst is controlled")
    answers: Literal["trial", "whole"] = Field(
        default="trial",
        description="trial: the risk is of trial answers; whole: the bound covers answers written in full as well",
    )
    n_whole: int = Field(default=0, ge=0, description="prompts that were also asked for it where the policy exits")
    whole_contradictions: int = Field(default=0, ge=0, description="of these, on how many it contradicts its trial")
    thinking_cut: float | None = Field(default=None, description="share of the thinking that it saves on these traces")
    exits: float | None = Field(default=None, description="share of these traces that exit early")

    @field_validator("bound")
    @classmethod
    def _within_epsilon(cls, bound: float, info: Any) -> float:
        epsilon = info.data.get("epsilon", 1.0)
        if not 0 <= bound <= epsilon + ROUNDING:
            raise ValueError(f"expected at least 0 and at most epsilon, which is {epsilon:g}")
        return bound

    def is_of(self, policy: Policy) -> bool:
        """Whether it was made for just this policy. One of an older version does not say so, and is of none."""
        return self.policy_sha256 == policy_sha256(policy)


class OperatingPoint(Config):
    """One policy under a name that a server's operator or a request can choose."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^\P{C}+$")
    policy: Policy
    certificate: Certificate | None = None

    def uncertified_because(self) -> str | None:
        """Why no certificate holds for this policy, whatever it is served with; None where one does."""
        if self.certificate is None:
            return f"point {self.name} has no certificate"
        if self.certificate.is_of(self.policy):
            return None
        made = self.certificate.policy_sha256
        if made is None:
            return f"the certificate of point {self.name} does not say of which policy it is: calibrate again"
        return f"policy of point {self.name} is {policy_sha256(self.policy)}, calibrated was {made}: calibrate again"


class Fingerprints(Config):
    """What a certificate was made with; None where it was not known. Where one of these differs, the risk may, too."""

    draft: str | None = Field(
        default=None, description="BLAKE3 of the draft's weights, see `specexit.drafts.tensors.weights_hash`"
    )
    computation: str | None = Field(
        default=None, description="of the draft's config.json, see `specexit.drafts.computation`; null in older files"
    )
    boundaries: str | None = Field(default=None, description="of where that finds boundaries, likewise")
    target: str | None = Field(default=None, description="see `specexit.drafts.fingerprints.target_fingerprint`")
    tokenizer: str | None = Field(default=None, description="SHA-256 of the target's tokenizer.json")
    dtype: str | None = Field(default=None, description="of the target's weights as they were served")
    quantization: str | None = Field(default=None, description="the target's method, 'none' without one")
    kv_cache_dtype: str | None = Field(default=None, description="as vLLM calls it, 'auto' by default")


class Population(Config):
    """The prompts of a calibration that could judge."""

    prompts: int = Field(gt=0, description="different prompts")
    traces: int = Field(gt=0)
    groups: dict[str, int] = Field(default={}, description="prompts of each group, by name")
    answer_kinds: tuple[str, ...] = ()
    references: int = Field(default=0, ge=0, description="prompts whose right answer is known")


TRAFFIC_LEVELS = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


class Traffic(Config):
    """How the calibration prompts looked, so that a server can tell when its traffic does not look like that.

    Quantiles are at `TRAFFIC_LEVELS`.
    """

    prompt_tokens: tuple[float, ...]
    thinking_tokens: tuple[float, ...] = Field(description="of whole traces, nothing cut")
    boundaries: tuple[float, ...] = Field(description="split tokens in a trace")
    split_shares: dict[str, float] = Field(
        default={}, description="token id -> its share of a trace's boundaries, on average; empty in older files"
    )

    @field_validator("prompt_tokens", "thinking_tokens", "boundaries")
    @classmethod
    def _are_quantiles(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(before <= level < math.inf for before, level in pairwise((0, *levels)))
        if len(levels) != len(TRAFFIC_LEVELS) or not rising:
            raise ValueError(f"expected {len(TRAFFIC_LEVELS)} numbers of at least 0, none below the one before")
        return levels

    @field_validator("split_shares")
    @classmethod
    def _are_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        if not all(token.isdecimal() and 0 <= share <= 1 for token, share in shares.items()):
            raise ValueError("expected token ids with a share between 0 and 1 each")
        return shares

    @model_validator(mode="before")
    @classmethod
    def _without_older(cls, given: Any) -> Any:
        """Drop two fields of older files: quantiles of a signal, which no server sees at all boundaries, and
        ``split_tokens``, shares of the boundaries of all traces together, where a long trace outweighs a short one."""
        older = ("validity", "split_tokens")
        return {key: value for key, value in given.items() if key not in older} if isinstance(given, dict) else given


class Selection(Config):
    """Prompts that chose the checkpoint: what they say of it is flattering, so they may not calibrate it."""

    by: str = Field(description="the figure by which the checkpoint was chosen")
    prompts: tuple[str, ...] = Field(description="hashes, see `specexit.data.rows.Trace.prompt_hash`, first 16 digits")


class Event(Config):
    """One change of the file."""

    when: str = Field(description="UTC, ISO 8601")
    what: str
    data_sha256: str | None = None


Requests = Literal["none", "off-only", "stricter", "any"]
Route = Literal["reports", "interrupt", "switch"]
Effort = Literal["minimal", "low", "medium", "high", "xhigh", "max"]


class Serving(Config):
    """How a server treats exits, unless it is told otherwise when it is started."""

    mode: Mode = Field(
        default="exit",
        description="shadow decides and reports, but lets every request think on; off: no exits, whatever requests ask",
    )
    requests: Requests = Field(
        default="stricter",
        description="what requests may change: nothing, switch exits off, make them rarer, or whatever they like",
    )
    audit_rate: float = Field(
        default=0.0, ge=0, le=1, description="share of the requests that think on, to see whether exits change answers"
    )
    thinking_margin: int | None = Field(
        default=None,
        ge=0,
        le=MOST_TOKENS,
        description="tokens beyond max_thinking_tokens at which thinking ends at any token; null: at boundaries alone",
    )
    transition: str = Field(
        default="", max_length=1000, description="text that is written before the end marker where thinking is ended"
    )
    loop_period: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="thinking that repeats a piece of at most so many tokens loop_repeats times in a row is ended; "
        "null: it is not looked for",
    )
    loop_repeats: int = Field(default=4, ge=2, le=8, description="how often such a piece comes in a row")
    share: float = Field(
        default=1.0, ge=0, le=1, description="share of the requests that may exit, by a hash of the id"
    )
    hold: bool = Field(
        default=True,
        description="with audits: step to a stricter point, then to shadow, once the risk is shown to exceed epsilon",
    )
    required: bool = Field(
        default=False, description="do not start, nor stay ready, without exits that are certified for what is served"
    )
    routes: tuple[Route, ...] = Field(default=(), description="HTTP routes to open, beside GET /v1/specexit")
    efforts: dict[Effort, str] = Field(default={}, description="reasoning_effort of a request -> operating point")
    loras: dict[str, str] = Field(default={}, description="LoRA adapter -> operating point, or off")
    tenants: dict[str, str] = Field(
        default={}, description="SHA-256 of an API key, first 16 digits in lower case -> operating point, or off"
    )
    exit_log: bool = Field(default=False, description="one line of JSON in the log for each finished request")

    @property
    def ends(self) -> dict[str, Any]:
        """The settings that decide where, and with what text, a thinking ends that may exit; the others are about
        requests and operators."""
        return self.model_dump(include={"thinking_margin", "transition", "loop_period", "loop_repeats"})

    @property
    def loop_guard(self) -> LoopGuard | None:
        """What counts as a loop; None where loops are not looked for."""
        return None if self.loop_period is None else LoopGuard(self.loop_period, self.loop_repeats)


LEAST = {"temperature": 0, "top_p": 0, "top_k": -1}
"""Setting that decides which tokens are drawn -> the smallest number that it may be."""


def wrong_sampling(sampling: Mapping[str, Any]) -> str | None:
    """What is wrong with how traces were sampled, as far as a server compares that with its requests; None if nothing.

    Example:
      >>> wrong_sampling({"temperature": "0.6"}), wrong_sampling({"temperature": 0.6, "max_tokens": 512})
      ("temperature is '0.6', expected a finite number of at least 0", None)
    """
    for key, least in LEAST.items():
        value = sampling.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            return f"{key} is {shown(value)}, expected a finite number of at least {least}"
    return None


class PolicyFile(Config):
    """``policy.json``."""

    format_version: int = FORMAT_VERSION
    default: str = Field(default="default", description="name of the operating point that serves")
    points: tuple[OperatingPoint, ...] = Field(
        default=(OperatingPoint(name="default", policy=Policy(thresholds={"validity": 0.9})),), min_length=1
    )
    fingerprints: Fingerprints = Fingerprints()
    sampling: dict[str, Any] | None = Field(default=None, description="of the calibration traces")
    trial: dict[str, Any] | None = Field(default=None, description="how their trial answers were made")
    population: Population | None = None
    traffic: Traffic | None = None
    serving: Serving = Serving()
    selection: Selection | None = None
    history: tuple[Event, ...] = ()

    @field_validator("sampling")
    @classmethod
    def _is_sampling(cls, sampling: dict[str, Any] | None) -> dict[str, Any] | None:
        wrong = wrong_sampling(sampling or {})
        if wrong is not None:
            raise ValueError(wrong)
        return sampling

    @model_validator(mode="after")
    def _names(self) -> PolicyFile:
        names = [point.name for point in self.points]
        twice = sorted(name for name, n in Counter(names).items() if n > 1)
        if twice:
            raise ValueError(f"points has {', '.join(map(repr, twice))} more than once, expected different names")
        for name in TAKEN.keys() & names:
            raise ValueError(f"points has {name!r}, expected another name: that one means {TAKEN[name]}")
        if self.default not in names:
            raise ValueError(f"default is {shown(self.default)}, expected the name of a point: {', '.join(names)}")
        serving = self.serving
        for key in serving.tenants:
            if not TENANT.fullmatch(key):  # repeated in part only: it may be the API key itself
                raise ValueError(
                    f"serving.tenants has a name of {len(key)} characters, {key[:4]!r}..., expected the first 16 "
                    "hexadecimal digits of an API key's SHA-256 in lower case: printf %s KEY | sha256sum | cut -c-16"
                )
        if "" in serving.loras:
            raise ValueError("serving.loras has an adapter without a name, expected that of one")
        for place in ("efforts", "loras", "tenants"):
            for key, name in getattr(serving, place).items():
                if name not in names and (name != "off" or place == "efforts"):
                    raise ValueError(f"serving.{place}.{key} is {name!r}, expected a point: {', '.join(names)}")
        return self

    def point(self, name: str | None = None) -> OperatingPoint:
        """An operating point by its name, by default the one that serves.

        Raises:
          PolicyError: there is none of that name.
        """
        wanted = self.default if name is None else name
        for point in self.points:
            if point.name == wanted:
                return point
        known = ", ".join(point.name for point in self.points)
        raise PolicyError(f"operating point {wanted!r} does not exist, expected one of {known}")


def read_policy(folder: Path) -> PolicyFile:
    """Read ``policy.json``; where there is none, the policy in the ``specexit`` block of ``config.json``.

    Raises:
      PolicyError: a file is not JSON, a field is missing or wrong, or there is no policy in either of them.
    """
    path = folder / FILE
    if path.exists():
        raw = read_object(path, MAX_BYTES, PolicyError)
        version = raw.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise PolicyError(f"{path}: format_version is {shown(version)}, expected {FORMAT_VERSION}")
        return _validated(raw, path)
    path = folder / "config.json"
    block = read_object(path, MAX_BYTES, PolicyError).get("specexit")
    if not isinstance(block, dict):
        raise PolicyError(f"{path}: no specexit block and no {FILE} beside it, so this draft has no policy")
    if "policy" not in block:  # which `write_policy` has taken out: a file was lost on the way
        raise PolicyError(
            f"{folder / FILE}: is not there, and {path} has no policy in its place: copy the file from where the draft "
            "is from, or write {} into it to exit at validity 0.9 without a certificate"
        )
    point: dict[str, Any] = {"name": "default", "policy": block["policy"], "certificate": block.get("calibration")}
    return _validated({"points": [point], "serving": block.get("serving", {})}, path, old=True)


def write_policy(folder: Path, policy: PolicyFile) -> None:
    """Write ``policy.json``, and take the policy out of ``config.json`` where an older version had put it.

    Raises:
      PolicyError: ``config.json`` is unreadable, the draft is a plain one, or see `check_policy`.
    """
    path = folder / "config.json"
    config = read_object(path, MAX_BYTES, PolicyError)
    block = config.get("specexit")
    if not isinstance(block, dict):
        raise PolicyError(f"{path}: no specexit block, so there is no signal that a policy could judge")
    write_text(folder / FILE, _checked(policy, folder / FILE))
    if any(name in block for name in BLOCK_FIELDS):  # read no longer once policy.json is there, so the order is safe
        config["specexit"] = {name: value for name, value in block.items() if name not in BLOCK_FIELDS}
        write_text(path, json.dumps(config, indent=2) + "\n")


def check_policy(folder: Path, policy: PolicyFile) -> None:
    """Check that a policy, once written, could be read again: nothing checks a copy with changes.

    Raises:
      PolicyError: a field is wrong, something names a point that there is not, or the file would be larger than is
        read.
    """
    _checked(policy, folder / FILE)


def _checked(policy: PolicyFile, path: Path) -> str:
    """The text of the file, checked to be one that `read_policy` takes."""
    fields = policy.model_dump(mode="json")
    _validated(fields, path)
    text = json.dumps(fields, indent=2) + "\n"
    size = len(text.encode())
    if size > MAX_BYTES:
        sizes = {name: len(json.dumps(value, indent=2).encode()) for name, value in fields.items()}
        most = max(sizes, key=sizes.__getitem__)
        raise PolicyError(
            f"{path}: would hold {size:,} bytes, {sizes[most]:,} of them in field {most}, expected at most "
            f"{MAX_BYTES:,} in all, as nothing reads more: shorten that field"
        )
    try:
        parse_json(text.encode(), path)
    except TensorError as error:
        raise PolicyError(str(error)) from error
    return text


def _validated(raw: dict[str, Any], path: Path, *, old: bool = False) -> PolicyFile:
    try:
        return PolicyFile.model_validate(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        key, said = dotted(problem), problem["msg"].removeprefix("Value error, ")
        if old:
            key = "specexit." + key.removeprefix("points.0.").replace("certificate", "calibration")
        if problem["type"] == "value_error" and not key:
            raise PolicyError(f"{path}: {said}") from error
        raise PolicyError(f"{path}: field {key} is {repeated(problem)}: {said}") from error
