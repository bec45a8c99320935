"""What a benchmark stands on: hashes of what it reads, so that nothing is taken for another's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from specexit.bench.process import BenchError
from specexit.bench.results import Results, read_results
from specexit.config import read_yaml
from specexit.data.scores import Scores, check_scores_of, read_scores
from specexit.data.traces import data_sha256
from specexit.differences import differences, fields_sha256, file_sha256
from specexit.drafts.computation import config_hashes
from specexit.drafts.directory import read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import Serving, policy_sha256, read_policy
from specexit.drafts.tensors import weights_hash
from specexit.schemas.bench import BenchConfig
from specexit.schemas.target import TargetConfig

A_POINT = 0.01


def inputs_of(config: BenchConfig, target: TargetConfig, over: Callable[[Serving], Serving]) -> dict[str, str]:
    """Key of the config -> hash of what lies there: weights, the target's YAML, policies, how they are served, trace
    files, scores, and methods of one's own; and what methods are tuned to lose at most.

    Args:
      config: of the benchmark.
      target: of its drafts.
      over: a draft's settings of serving -> those that are in force where it is served here.

    Raises:
      DraftError, TraceError: one cannot be read.
    """
    found = {"target": target_fingerprint(target.folder) or "unknown", "target.settings": settings_sha256(target)}
    for key, draft in (("draft", config.draft), ("draft_fc", config.draft_fc)):
        if draft is not None:
            block = read_config(draft).specexit
            found |= draft_inputs(draft, key)
            found[f"{key}.serving"] = fields_sha256(over(block.serving).ends) if block else "none"
    for key in ("traces", "calibration_traces", "scores"):
        path = getattr(config, key)
        if path is not None:
            found[key] = data_sha256(path)
    if config.calibration_traces is not None:
        found["tolerance"] = f"{tolerance_of(config.draft).lost:g}"
    for reference in config.methods or ():
        path = Path(os.path.expanduser(reference))  # as `find_method` reads it
        if reference.endswith(".py") and path.exists():
            found[reference] = file_sha256(path)
    return found


def settings_sha256(target: TargetConfig) -> str:
    """Hash of what a target's YAML says, but for where its model lies."""
    return fields_sha256(target.model_dump(mode="json", exclude={"path"}))


def others(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Of two sets of hashes, those that both name and that differ, in words; empty where none do.

    Example:
      >>> others({"traces": "a", "draft.weights": "b"}, {"draft.weights": "c", "target": "d"})
      'inputs.draft.weights b (now c)'
    """
    old, now = ({key: one[key] for key in there if key in here} for one in (there, here))
    return differences({"inputs": old}, {"inputs": now})


def draft_inputs(draft: Path, key: str = "draft") -> dict[str, str]:
    """``KEY.weights`` and ``KEY.policy`` -> hash of a draft's weights, and of the policy that it is served with; under
    ``KEY.`` as well, those of `config_hashes`.

    Raises:
      DraftError, TensorError: it cannot be read.
    """
    config = read_config(draft)
    policy = policy_sha256(config.specexit.policy) if config.specexit else "none"
    found = {"weights": weights_hash(draft), "policy": policy} | config_hashes(config)
    return {f"{key}.{name}": value for name, value in found.items()}


class Tolerance(NamedTuple):
    """Accuracy that a method may lose on the traces it is tuned on, and where the number is from."""

    lost: float
    why: str


def tolerance_of(draft: Path) -> Tolerance:
    """The loss that the certificate of the served operating point allows if it is one of accuracy, else `A_POINT`.

    Raises:
      DraftError, PolicyError: the draft cannot be read.
    """
    point = read_policy(draft).point() if read_config(draft).specexit else None
    if point is None or point.certificate is None or point.uncertified_because():
        return Tolerance(A_POINT, "the draft's policy has no certificate")
    risk, epsilon = point.certificate.risk, point.certificate.epsilon
    if risk == "accuracy_lost":
        return Tolerance(epsilon, "what the certificate of the draft's policy allows")
    return Tolerance(
        A_POINT, f"the draft's policy is certified for {risk} <= {epsilon:g}, which is no loss of accuracy"
    )


def read_scores_of(path: Path, draft: Path) -> Scores:
    """The scores that a draft gave.

    Raises:
      ScoreError: unreadable, or of another draft, see `specexit.data.scores.check_scores_of`.
      DraftError, TensorError: the draft cannot be read.
    """
    scores = read_scores(path)
    check_scores_of(draft, scores, path)
    return scores


def finished(out: Path, asked: Mapping[str, Any]) -> Results | None:
    """The results of a folder that holds just this benchmark; None where there are none yet.

    Args:
      out: the folder.
      asked: ``config``, ``versions`` and ``inputs`` of the benchmark that is asked for.

    Raises:
      BenchError: they are another benchmark's.
      ResultsError, ConfigError: ``results.json`` or ``run.yaml`` cannot be read.
    """
    if not (out / "results.json").exists():
        return None
    results = read_results(out / "results.json")
    refuse_other_run(out, results.inputs, asked, "a benchmark", "measure anew")
    return results


def refuse_other_run(out: Path, inputs: Mapping[str, str], asked: Mapping[str, Any], what: str, anew: str) -> None:
    """Refuse a folder that holds what another config, other versions or other inputs gave.

    Args:
      out: the folder, with its ``run.yaml``.
      inputs: hashes of what it was made from.
      asked: see `finished`.
      what: what it holds, for the message.
      anew: what is to be done anew.

    Raises:
      BenchError: it does.
      ConfigError: ``run.yaml`` cannot be read.
    """
    run = read_yaml(out / "run.yaml")
    there = {"config": run.get("config"), "versions": run.get("versions"), "inputs": inputs}
    if told := differences(there, asked):
        raise BenchError(f"{out}: holds {what} with {told}: delete the folder to {anew}, or give another out")
