"""A model card in the Hub's convention, written from what the draft directory says and from nothing else."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from specexit.config import write_text
from specexit.data.overlap import read_prompts
from specexit.drafts.begun import imported_as
from specexit.drafts.certified import confidence, doubts_of, exits_of, in_percent, provisos
from specexit.drafts.config import DraftConfig
from specexit.drafts.files import MAX_NAME
from specexit.drafts.hold import held_points
from specexit.drafts.policy import FILE, OperatingPoint, PolicyFile, read_policy
from specexit.drafts.published import hub_name, read_origin
from specexit.drafts.verified import Accepted, Served, read_verification
from specexit.errors import cut, printable
from specexit.method.signals import NAMES
from specexit.schemas.export import ExportConfig
from specexit.schemas.target import TargetConfig
from specexit.tiny import EMBEDDED

CARD = "README.md"


def write_card(folder: Path, config: ExportConfig, draft: DraftConfig, target: TargetConfig) -> None:
    """Write ``README.md`` into an exported folder.

    Args:
      folder: where the export is written.
      config: of the export; policy, verification and origin are read in its ``draft``.
      draft: the draft's config.
      target: the model it drafts for.

    Raises:
      InputError: a file of the draft directory cannot be used; its class is that of whatever reads the file.
    """
    exits = draft.specexit is not None and config.format in ("plugin", "speculators", "angelslim")
    model = config.base_model or _on_the_hub(target)
    front: dict[str, Any] = {} if model is None else {"base_model": model, "base_model_relation": "adapter"}
    front |= {
        "pipeline_tag": "text-generation",
        "tags": ["eagle3", "speculative-decoding", "draft", *(["early-exit", "specexit"] if exits else [])],
    }
    front |= {} if config.license is None else {"license": config.license}
    parts = [
        f"# EAGLE-3 draft for {target.name}",
        "A speculative draft: it proposes tokens, the target decides. "
        + (
            "It also reads off when the target's thinking can end; see *Early exit*."
            if exits
            else "It carries no early exit in this form."
        ),
        _geometry(draft),
        _data(config.draft, target),
        *([RELEASED] if config.format == "angelslim" else [_exit(config.draft, target.folder)] if exits else []),
        _verification(config.draft, target.folder, exits=exits),
        _serving(config, target, model, exits=exits),
        "## Limits\n\nFor this target and its tokenizer: beside a model of other sizes vLLM refuses it, and beside "
        "another of the same it accepts fewer of the drafted tokens"
        + (", and what is read off for an early exit means nothing." if exits else ".")
        + " What is not stated above was not measured.",
    ]
    text = "---\n" + yaml.safe_dump(front, sort_keys=False) + "---\n\n" + "\n\n".join(parts) + "\n"
    write_text(folder / CARD, text)


RELEASED = """## Early exit

The released code reads three rows behind those of `fc`: confidence, progress and remain, in this order. It judges them
by a rule and by thresholds of its own; the operating points that this draft was calibrated for, and their certificates,
are of another rule and say nothing of it. It takes the target's hidden states in front of layers 2, n // 2 and n - 3 of
n, whatever `config.json` says."""
"""What the card of format ``angelslim`` says, as read in the released code."""


def _data(folder: Path, target: TargetConfig) -> str:
    origin, prompts = read_origin(folder), read_prompts(folder)
    if origin is not None:
        said = f"Imported: it was published in the layout of {_code(origin.layout)}. " + (
            "What it was trained on is not known here."
            if prompts is None
            else f"It came with a list of {len(prompts):,} prompts that it was trained on; whether it was on others as "
            "well is not known here."
        )
        if origin.target_said is not None:
            said += f" Its config names another target, {_code(origin.target_said)}."
    elif prompts is not None:
        said = f"Trained on what {target.name} wrote for {len(prompts):,} prompts."
    else:
        said = "What it was trained on is not recorded."
    imported = imported_as(folder)
    if origin is None and imported is not None:
        said += (
            f" It began as a draft that was published in the layout of `{imported}`: what that was trained on before "
            "is not known here, and its licence may hold for this one."
        )
    return f"## Data\n\n{said}"


def _code(text: str) -> str:
    """A stranger's words as code of one line: a heading or a link among them would pass for the card's own."""
    line = printable(text).replace("`", "'")
    return f"`{cut(line, MAX_NAME)}`"


def _geometry(draft: DraftConfig) -> str:
    layers = ", ".join(map(str, draft.eagle_aux_hidden_state_layer_ids))
    rows = {
        "hidden size": draft.hidden_size,
        "heads (key/value heads) of size": f"{draft.num_attention_heads} ({draft.num_key_value_heads}) of "
        f"{draft.head_dim}",
        "draft vocabulary": f"{draft.draft_vocab_size} of {draft.vocab_size}",
        "reads the target's residual stream after layers": f"{layers} of {draft.target_num_hidden_layers}",
        "longest sequence": draft.max_position_embeddings,
        "weights": draft.torch_dtype,
    }
    if draft.sliding_window is not None:
        rows["attends to"] = f"the last {draft.sliding_window} tokens"
    return "## The draft\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


AUDITED = " Audits have since shown, on a server, that its risk there is above the epsilon of that certificate."


def _exit(folder: Path, target: Path) -> str:
    stored = read_policy(folder)
    doubts, held = doubts_of(folder, stored, target), held_points(folder, stored)
    lines = ["## Early exit", ""]
    for point in stored.points:
        default = " (default)" if point.name == stored.default else ""
        said = _certificate(point, doubts, stored.sampling)
        said += AUDITED if point.name in held else ""
        lines.append(f"* `{point.name}`{default}: exits at {exits_of(point.policy)}. {said}")
    mode = stored.serving.mode
    lines += [] if mode == "exit" else ["", f"`{FILE}` says mode `{mode}`, in which a server makes no exits."]
    return "\n".join([*lines, "", *_not_covered(stored)])


def _not_covered(stored: PolicyFile) -> list[str]:
    """What the certificates were made on, as far as the file says, and what they do not cover."""
    marks, made = stored.fingerprints, []
    if stored.population is not None:
        kinds = (
            f" with answers of kind {', '.join(stored.population.answer_kinds)}"
            if stored.population.answer_kinds
            else ""
        )
        made.append(f"{stored.population.prompts} prompts{kinds}")
    if stored.sampling:
        made.append(", ".join(f"{name} {value}" for name, value in stored.sampling.items()))
    names = {"dtype": marks.dtype, "quantization": marks.quantization, "KV cache": marks.kv_cache_dtype}
    known = [f"{name} {value}" for name, value in names.items() if value is not None]
    made += [", ".join(known)] if known else []
    seen = f" They were made on {printable('; '.join(made))}." if made else ""
    return [
        f"A certificate speaks of prompts like those it was made on, decoded as they were; not of others.{seen}",
        "",
        "It does not cover:",
        "",
        "* prompts of another kind, language or length, or another chat template or system prompt;",
        "* other sampling, other weights or another quantisation of the target, another dtype of weights or KV cache;",
        "* answers whose being right or the same nobody can check, and what is written behind the thinking;",
        "* a single request: it bounds a share of many.",
    ]


def _certificate(point: OperatingPoint, doubts: list[str], sampling: dict[str, Any] | None) -> str:
    found, own = point.certificate, point.uncertified_because()
    wrong = [*([] if own is None else [own]), *doubts]
    if found is None:
        return "Without a certificate: nothing is known of its risk."
    if wrong:
        return f"Its certificate does not hold here ({printable('; '.join(wrong))}): nothing is promised of its risk."
    what = {"answer_changed": "change their answer", "accuracy_lost": "lose a right answer"}[found.risk]
    cut = "" if found.thinking_cut is None else f" It saved {found.thinking_cut:.1%} of their thinking."
    return (
        f"With {confidence(found.delta)}% confidence at most {in_percent(found.epsilon)}% of such prompts {what} "
        f"({found.errors:g} of {found.n} did{provisos(found, sampling)}).{cut}"
    )


def _verification(folder: Path, target: Path, *, exits: bool) -> str:
    found, doubt = read_verification(folder, target)
    if found is None:
        return "## Verification\n\nNot verified."
    shown = {name: value for name, value in found.differences.items() if exits or name not in NAMES}
    quantities = "; ".join(f"{name}: {value:.1e}" for name, value in shown.items())
    kind = "largest" if found.dtype == "float32" else "root mean square of the"
    lines = [f"JAX against PyTorch in {found.dtype} on {found.n} traces, {kind} differences: {quantities}."]
    if found.acceptance:
        lines.append(_accepted(found.acceptance))
    if found.vllm is not None:
        lines.append(_served(found.vllm))
    lines += [f"**Verified: {doubt}.**"] if doubt else []
    return "\n\n".join(["## Verification", *lines])


def _served(found: Served) -> str:
    """What an engine drafted, compared with the reference."""
    drafts, accepted = found.greedy_drafts, found.acceptance
    runner = "" if found.runner is None else f" ({found.runner} runner)"
    return (
        f"vLLM {found.vllm}{runner} in {found.dtype} went on greedily from the middle of {found.n} traces: "
        f"{drafts.same} of {drafts.compared} drafts were those of PyTorch on the same text, with "
        f"{accepted.vllm.length:.2f} tokens per step, {accepted.torch.length:.2f} by PyTorch."
    )


def _accepted(found: Accepted) -> str:
    """Acceptance by position, as a table."""
    head = " | ".join(f"step {step + 1}" for step in range(len(found.by_position)))
    shares = " | ".join(f"{share:.1%}" for share in found.by_position)
    return (
        f"Of the drafted tokens, this share is the traces' own text, all earlier steps included ({found.rows} rows, "
        f"greedy drafts): {found.length:.2f} tokens per step of the target, its own one counted.\n\n"
        f"| {head} |\n|{'---|' * len(found.by_position)}\n| {shares} |"
    )


def _on_the_hub(target: TargetConfig) -> str | None:
    """The target's name on the Hub, by its folder in the Hub's cache; None where it lies elsewhere. A folder's own name
    is nobody else's."""
    return None if target.path in EMBEDDED else hub_name(target.folder)


def _serving(config: ExportConfig, target: TargetConfig, model: str | None, *, exits: bool) -> str:
    served = "TARGET" if model is None else shlex.quote(model)
    k = config.num_speculative_tokens
    speculative = json.dumps({"method": "eagle3", "model": "FOLDER", "num_speculative_tokens": k})
    vllm = f"vllm serve {served} --speculative-config '{speculative}'"
    # No index has the package, so the name alone would install nothing, or what somebody else calls so.
    plugin = "pip install '.[serve]'  # the plug-in: in a checkout of SpecExit's sources, or 'WHEEL[serve]'\n"
    commands = {
        "plugin": plugin + vllm,
        "eagle3": vllm,
        "speculators": (plugin if exits else "") + "vllm serve FOLDER",
        "angelslim": "# AngelSlim's SpecExit benchmark, with FOLDER as its EAGLE model",
        "original": "# as its authors say",
    }
    said = f"## Serving\n\n```sh\n{commands[config.format]}\n```"
    if model is None and vllm in commands[config.format]:
        said += f"\n\n`TARGET` is the folder of {target.name}, or its name on the Hub."
    return said
