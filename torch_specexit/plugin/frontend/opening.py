"""How the front end of an API server comes to be: its settings are checked before anything starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from specexit.config import ConfigError
from specexit.data.answers import KINDS
from specexit.data.answers.function import FUNCTIONS, to_be_called
from specexit.drafts.certified import doubts
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.hold import Imposed, nothing_said
from specexit.drafts.policy import PolicyError, PolicyFile, Serving
from specexit.method.decision import Policy
from specexit.method.splits import ThinkTokens, load_tokenizer, misread, written
from specexit.processes import look_in_working_folder
from torch_specexit.plugin.certified import served_fingerprints, served_target
from torch_specexit.plugin.compat.checks import draft_cache, draft_folder, folder_of
from torch_specexit.plugin.compat.fit import misfits
from torch_specexit.plugin.compat.request_hooks import REQUEST_HOOKS
from torch_specexit.plugin.frontend.activity import Activity, misfit_of
from torch_specexit.plugin.frontend.audit import Audit, generator_of
from torch_specexit.plugin.frontend.grammars import parser_of
from torch_specexit.plugin.frontend.imposed import FOLDER, Kept
from torch_specexit.plugin.frontend.metrics import ExitMetrics
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.own_end import end_tokens
from torch_specexit.plugin.frontend.protocols import AsyncLLM
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.frontend.watch import PolicyWatch, policies_for
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import VllmConfig
from torch_specexit.plugin.settings import draft_config

logger = logging.getLogger("vllm.specexit")

IN_THE_CACHE = (
    "specexit: the draft %s lies in the cache of the Hub (%s), and with it policy.json and hold.json: what an operator "
    "says there, a kill switch by the route of several API servers among it, and what audits impose are gone with the "
    "draft's next revision, or another cache; serve a folder, or say speculative_config.revision and set %s"
)


class Opening(NamedTuple):
    """What is known of a server before its engine starts."""

    folder: Path
    """Of the draft."""
    block: SpecExitBlock
    file: PolicyFile
    serving: Serving
    watch: PolicyWatch
    """Of the file, since before it was read: what is written while the engine starts is news to it."""
    doubts: list[str]
    """Why no certificate holds; not yet because of a target that is named by its id on the Hub, whose weights vLLM may
    have to fetch first."""
    misfit: str | None
    kept: Kept
    imposed: tuple[Imposed, ...]
    """What audits had imposed, on any server with this draft, when this start began."""


def settings_of(vllm_config: VllmConfig) -> Opening | None:
    """The draft and the settings of a server; None where it has no SpecExit draft.

    Raises:
      DraftError, PolicyError: the draft directory cannot be used, or what audits have imposed cannot be read.
      ConfigError: the server's own settings hold something that is not known or out of range; or exits are required,
        and would not be served, or not be certified for what is served.
    """
    config = draft_config(vllm_config)
    if config is None or config.specexit is None:
        return None
    draft = vllm_config.speculative_config.draft_model_config if vllm_config.speculative_config else None
    assert draft is not None
    folder = draft_folder(draft.model, draft.revision, draft_cache(vllm_config))
    served = served_fingerprints(folder, vllm_config)
    watch = PolicyWatch(folder, config.specexit, vllm_config.additional_config, served)
    file, serving = policies_for(folder, config.specexit, vllm_config.additional_config)
    # Of a target that is named by its id on the Hub the engine may have to fetch weights, so what lies there by now
    # says nothing; `open_front_end` asks again when it has.
    made, to_fetch = file.fingerprints.target, not Path(vllm_config.model_config.model).is_dir()
    known = served | ({"target": made} if to_fetch and made is not None else {})
    doubted = doubts(file, known, serving.transition)
    misfit, kept = misfit_of(vllm_config), Kept(folder)
    opening = Opening(folder, config.specexit, file, serving, watch, doubted, misfit, kept, kept.read())
    uncertified = Operation(opening.block, file, serving, opening.doubts).uncertified_because()
    # A server in which one of these does not fit might stay ready, whatever happens to its exits.
    blind = misfits(REQUEST_HOOKS, every=True) if serving.required else None
    wrong = [*filter(None, [opening.misfit or blind]), *uncertified]
    if serving.required and wrong:
        raise ConfigError(f"specexit.required is true, but exits would not be served as certified: {'; '.join(wrong)}")
    if not Path(draft.model).is_dir() and (draft.revision in (None, "main") or not os.environ.get(FOLDER)):
        logger.warning(IN_THE_CACHE, draft.model, folder, FOLDER)
    return opening


def open_front_end(engine: AsyncLLM, opening: Opening) -> FrontEnd:
    """The front end of vLLM's `AsyncLLM`; its output and input processor get it as an attribute."""
    block, serving = opening.block, opening.serving
    served = opening.watch.served
    served["target"] = served_target(engine.vllm_config)  # the engine has fetched what was missing
    operation = Operation(block, opening.file, serving, doubts(opening.file, served, serving.transition), opening.kept)
    with suppress(PolicyError, ConfigError):  # which the first request logs
        opening.watch.reload(operation)  # for words as new as what is imposed under them, which is read below
    if (reason := opening.watch.changed_in_start(serving)) is not None:
        operation.doubt(reason)
    resume(operation, opening._replace(imposed=_imposed_by_now(opening, operation.imposed.words)))
    front = FrontEnd(
        operation,
        Activity(),
        watch=opening.watch,
        end_tokens=end_tokens(engine.model_config),
        api_servers=engine.vllm_config.parallel_config._api_process_count,
        tokens=_tokens_of(engine, operation),
    )
    front.taken_for_over = parser_of(engine)
    front.audit = _audit_of(engine, opening, front)
    if (metrics := _metrics_of(engine)) is not None:
        metrics.watch(front)
    if opening.misfit is not None:
        front.activity.fail("misfit", opening.misfit)
    if doubted := operation.uncertified_because():
        logger.warning("specexit: exits are served uncertified: %s", "; ".join(doubted))
    setattr(engine.output_processor, KEY, front)
    setattr(engine.input_processor, KEY, front)
    return front


def _tokens_of(engine: AsyncLLM, operation: Operation) -> ThinkTokens | None:
    """Markers and split tokens, by ``tokenizer.json`` as in the workers; None where the engine has no tokenizer.

    One that reads text otherwise is a doubt: nothing was calibrated on prompts as it reads them.
    """
    tokenizer, model = engine.output_processor.tokenizer, engine.vllm_config.model_config
    if tokenizer is None:
        return None
    files = load_tokenizer(folder_of(model.tokenizer, model.tokenizer_revision, "tokenizer.json"))
    if (how := misread(tokenizer, files)) is not None:
        operation.doubt(f"vLLM's tokenizer, a {type(tokenizer).__name__}, {how} of tokenizer.json")
    return operation.block.think_tokens(files)


def _imposed_by_now(opening: Opening, words: tuple[str, ...]) -> tuple[Imposed, ...]:
    """What audits have imposed by now: those of other servers with this draft go on while this one's engine starts. New
    entries under words that this server has not read are left out: they are the others', and not for it to lift."""
    try:
        found, known = opening.kept.read(), {one.under for one in opening.imposed}
    except PolicyError as error:
        logger.error("specexit: what audits have imposed since the start cannot be read: %s", error)
        return opening.imposed
    return tuple(one for one in found if nothing_said(one.words, words) or one.under in known)


def resume(operation: Operation, opening: Opening) -> None:
    """Go on with what audits had imposed before this start; log that, and where the next restart would end it."""
    path = opening.kept.path
    if opening.serving.audit_rate > 0 and opening.serving.hold and not opening.kept.writable:
        logger.warning("specexit: %s cannot be written: what audits impose ends with a restart (%s)", path, FOLDER)
    if not operation.resume(opening.imposed):
        logger.warning(
            "specexit: policy.json has another default, mode or hold than %s: what was imposed is lifted", path
        )
    own = operation.imposed
    if any(nothing_said(one.words, own.words) and one.settings != own.settings for one in opening.imposed):
        logger.warning("specexit: what audits have imposed on servers of another mode or hold stays theirs (%s)", path)
    if rejected := ", ".join(operation.rejected):
        served, mode = operation.served().name, operation.mode
        message = "specexit: audits before this start have shown a risk above epsilon at %s (%s); point %s, mode %s"
        logger.error(message, rejected, path, served, mode)


def _audit_of(engine: AsyncLLM, opening: Opening, front: FrontEnd) -> Audit | None:
    tokenizer, tokens = engine.output_processor.tokenizer, front.tokens
    if opening.serving.audit_rate == 0:
        return None
    if tokens is None or engine.model_config.is_multimodal_model:
        logger.warning("specexit: audits are off, they need a tokenizer and a model that reads nothing but text")
        front.operation.audits = False
        return None
    if strange := _not_to_be_called(_kinds_of(front.operation.file)):
        message = (
            "specexit: audits are off, answers of kind %s are compared where the variable %s of the environment says so"
        )
        logger.warning(message, " ".join(map(repr, strange)), FUNCTIONS)
        front.operation.audits = False
        return None

    if to_be_called():
        look_in_working_folder()  # where the functions of a calibration may lie

    def kinds() -> tuple[str, ...]:
        found = _kinds_of(front.operation.file)
        return () if _not_to_be_called(found) else found

    def settled(point: str, result: str, policy: Policy) -> None:
        front.audited(point, result, policy)
        front.counted(point, result)

    return Audit(
        generator_of(engine),
        # As vLLM has the early answer, so that the token which ends the turn is part of neither.
        partial(tokenizer.decode, skip_special_tokens=True),
        tokens,
        engine.model_config.max_model_len,
        settled,
        kinds,
        written(tokenizer, opening.serving.transition),
    )


def _kinds_of(file: PolicyFile) -> tuple[str, ...]:
    """Kinds of the answers that a file was calibrated on."""
    return (file.population.answer_kinds if file.population else ()) or ("math",)


def _not_to_be_called(kinds: Iterable[str]) -> list[str]:
    return sorted({*kinds} - {*KINDS, *to_be_called()})


def _metrics_of(engine: AsyncLLM) -> ExitMetrics | None:
    loggers = engine.logger_manager.stat_loggers if engine.logger_manager else ()
    return next((getattr(logger, KEY) for logger in loggers if hasattr(logger, KEY)), None)
