"""How a server treats exits just now: its operating points, which of them serves, and what each request gets.

Everything about a request is decided here, once, and goes to the workers with it. So a change, by an operator, by the
watched file or by failing audits, is in force for the next request, and nothing is restarted or compiled again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from specexit.drafts.directory import Mode, SpecExitBlock
from specexit.drafts.hold import Imposed, claim_of, nothing_said
from specexit.drafts.policy import OperatingPoint, PolicyFile, Risk, Serving
from specexit.method.decision import Policy
from torch_specexit.plugin.frontend.arguments import (
    RESOLVED,
    ArgumentError,
    RequestArguments,
    check_splits,
    imposed_policy_of,
    names_ours,
    parse,
    policy_of,
)
from torch_specexit.plugin.frontend.efforts import point_for
from torch_specexit.plugin.frontend.imposed import Kept, nothing, said_since, switched_since
from torch_specexit.plugin.frontend.permissions import check_permitted, check_rarer, stricter_of


def in_share(request: str, share: float, *, draw: str = "") -> bool:
    """Whether a request is one of a share, by a hash of its id; ``draw`` makes one draw independent of another.

    Example:
      >>> in_share("chatcmpl-1", 0.0), in_share("chatcmpl-1", 1.0)
      (False, True)
    """
    return int.from_bytes(hashlib.sha256((draw + request).encode()).digest()[:8], "big") < share * 2**64


class Admitted(NamedTuple):
    """What a server has decided about one request."""

    policy: Policy
    mode: Mode
    splits: tuple[str, ...] | None
    point: str | None
    """The operating point that it is served under; None for a policy of the request's own, or no exits."""
    certified: bool
    """Whether a certificate holds for how it is served; none does with an adapter, which makes another target, nor for
    a request that is sampled otherwise than the traces of the calibration."""
    audited: bool
    caller: str | None
    """See `torch_specexit.plugin.frontend.callers`."""
    counted: bool = True
    """False for what no client has sent, see `torch_specexit.plugin.frontend.inner`."""
    response: str | None = None
    """Id of the response that it is part of."""
    choice: int = 0
    """Its place among the choices for one prompt; the first one stands for the prompt where prompts are counted."""
    lora: str | None = None
    """Name of its adapter."""

    @property
    def is_traffic(self) -> bool:
        """Whether it is compared with the prompts of the calibration, which were asked once, without any adapter."""
        return self.counted and self.choice == 0 and self.lora is None

    def extra_args(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the workers get in place of the client's own arguments."""
        others = {key: value for key, value in (given or {}).items() if not names_ours(key)}
        resolved = {"policy": self.policy.model_dump(), "mode": self.mode, "splits": self.splits}
        return others | {RESOLVED: resolved | {"caller": self.caller, "response": self.response}}


class Operation:
    """The operating points of one server, and which of them is served.

    Args:
      block: of the draft.
      file: the draft's policies.
      serving: settings of the server.
      doubts: why no certificate of the file holds for what is served; empty where they hold.
      kept: where what audits impose outlasts a restart; None where it does not.
    """

    def __init__(
        self,
        block: SpecExitBlock,
        file: PolicyFile,
        serving: Serving,
        doubts: Sequence[str] = (),
        kept: Kept | None = None,
    ):
        self.block, self.kept = block, kept
        self.lasting: tuple[str, ...] = ()
        """Doubts that have come up since the start; another policy file does not lift them."""
        self._ours: frozenset[str] = frozenset()
        """Claims of all points since the start. A folder of what is kept may have those of other drafts."""
        self._take(file, serving, doubts)
        self.started = serving
        """The settings that the engine was started with."""
        self.audits = True
        """Whether this server can make audits; where it cannot, no request thinks on for one."""
        self._ordered_mode: Mode | None = None
        self._ordered_point: str | None = None
        self.name = file.default
        self.imposed = nothing(file, serving)
        """What audits have imposed."""
        self.lifted = 0
        """How often an operator's word has lifted that."""

    def _take(self, file: PolicyFile, serving: Serving, doubts: Sequence[str]) -> None:
        self.file, self.serving, self.doubts = file, serving, (*doubts, *self.lasting)
        self._of_points = {point.name: point.uncertified_because() for point in file.points}
        self._claims = {point.name: claim_of(point) for point in file.points}
        self._ours |= frozenset(self._claims.values())

    @property
    def in_shadow(self) -> bool:
        """Whether audits have put the server into shadow mode; an operator may have switched exits off all the same.

        They have where no point is left to serve by default, be it that the last one was shown to be too bold before,
        when only some asked for it.
        """
        rejected = any(self.stricter(point) is None for point in self._among(self.imposed.for_all))
        return rejected or self.served().name in self.shadowed

    @property
    def ceiling(self) -> str | None:
        """Name of the boldest point that audits let serve, the strictest in shadow mode; None without a limit."""
        instead = [self.stricter(point) or point for point in self._among(self.imposed.for_all)]
        found = min(instead, key=epsilon_of, default=None)
        return None if found is None else found.name

    @property
    def stepped(self) -> dict[str, str]:
        """Points whose audits, while others served by default, have shown them to change too many answers -> the next
        stricter one, which stands in for them. By name."""
        instead = {point.name: self.stricter(point) for point in self._among(self.imposed.for_some)}
        return {name: point.name for name, point in instead.items() if point is not None}

    @property
    def shadowed(self) -> set[str]:
        """Names of such points that have no stricter one: requests for them are not cut."""
        return {point.name for point in self._among(self.imposed.for_some) if self.stricter(point) is None}

    @property
    def rejected(self) -> list[str]:
        """Names of all points whose audits have shown them to change too many answers."""
        return [point.name for point in self._among(self.imposed.for_all | self.imposed.for_some)]

    def _among(self, claims: Container[str]) -> list[OperatingPoint]:
        return [point for point in self.file.points if self._claims[point.name] in claims]

    def claim(self, point: OperatingPoint) -> str:
        """What audits of one of the file's points speak of, see `claim_of`."""
        return self._claims[point.name]

    def reject(self, point: OperatingPoint) -> None:
        """Audits have shown a point to change too many answers: the next stricter one serves, or shadow mode.

        Where it serves by default, to all; else to those who ask for it.
        """
        claim = self.claim(point)
        place = "for_all" if claim == self.claim(self.served()) else "for_some"
        more = getattr(self.imposed, place) | {claim: point.name}
        self.imposed = self.imposed.model_copy(update={place: more})
        if self.kept is not None:
            self.kept.write(self.imposed, self._ours)

    def accept(self, point: OperatingPoint) -> None:
        """Audits have shown a point in shadow mode to change few enough answers: it serves again."""
        claim = self.claim(point)
        self.imposed = self.imposed.without({claim})
        if self.kept is not None:
            self.kept.write(self.imposed, self._ours, cleared=claim)

    def resume(self, found: Sequence[Imposed]) -> bool:
        """Go on with what audits had imposed before a restart, but for what an operator's word has lifted since.

        Args:
          found: what is kept. What was imposed under the same words and other settings is another server's, and stays.
            Words are the same where the history alone has been shortened. Nor is it for this server to lift what was
            imposed on points of another draft.

        Returns:
          Whether nothing has been lifted.
        """
        words, settings = self.imposed.under
        holding = [one for one in found if nothing_said(one.words, words)]
        lifted = [one for one in found if one not in holding and self._own(one).claims]
        for one in holding:
            if one.settings == settings:
                self.imposed = self.imposed.also(one)
                if self.kept is not None and one.words != words:
                    self.kept.carry(one, self.imposed, self._ours)
        if self.kept is not None:
            for one in lifted:
                self.kept.forget(one, self._ours)
        return not lifted

    def _own(self, imposed: Imposed) -> Imposed:
        return imposed.among(self._ours) if self.kept is None else self.kept.own(imposed, self._ours)

    def _lift(self, *, edited: bool = False) -> None:
        if self.kept is not None:
            self.kept.forget(self.imposed, self._ours)
        # Whoever says `mode: exit` by the route every minute lifts nothing, and must not make audits begin anew.
        self.lifted += edited or bool(self.rejected)
        self.imposed = nothing(self.file, self.serving)

    @property
    def mode(self) -> Mode:
        """How requests are treated: as the operator says, or stricter where audits have imposed it."""
        said = self._ordered_mode or self.serving.mode
        return "shadow" if said == "exit" and self.in_shadow else said

    def load(self, file: PolicyFile, serving: Serving, doubts: Sequence[str] = ()) -> None:
        """Go on with other policies and settings.

        What audits have imposed stays on points whose policy and certificate stay, as long as the operator's words are
        the same (see `Imposed`), or the new ones have come by the route and lift nothing (see `switch`).

        A mode or a point that an operator has set by `switch` stays, too: another policy does not mean that what was
        switched off is to be on again. The mode goes where the file or the server's settings now say another one; the
        point goes where the file has another default, or no such point any more. Either goes by a word to another API
        server process, which has come through the file: it is newer, and whoever gave it was told that it reaches all.
        """
        new_mode, new_point = switched_since(self.file, file)
        if new_mode or (serving.mode, file.serving.mode) != (self.serving.mode, self.file.serving.mode):
            self._ordered_mode = None
        names = {point.name for point in file.points}
        if new_point or file.default != self.file.default or self._ordered_point not in names:
            self._ordered_point = None
        self._take(file, serving, doubts)
        self.name = self._ordered_point or file.default
        self._hear(nothing(file, serving))

    def _hear(self, now: Imposed) -> None:
        """Take in the words of another policy file: what they do not lift holds under them."""
        before = self.imposed
        if now.under == before.under:
            return
        said = said_since(before.words, now.words)
        if said is None or any(self._lifts(mode, point) for mode, point in said):
            self._lift(edited=said is None)
            return
        self.imposed = before.model_copy(update={"words": now.words, "settings": now.settings})
        if self.kept is not None:
            self.kept.carry(before, self.imposed, self._ours)

    def doubt(self, reason: str) -> bool:
        """Have no certificate hold from now on, until a restart; return whether the reason is new."""
        if reason in self.lasting:
            return False
        self.lasting, self.doubts = (*self.lasting, reason), (*self.doubts, reason)
        return True

    def switch(self, mode: Mode | None = None, point: str | None = None) -> None:
        """Set another mode or another point, by an operator's word.

        It lifts what audits have imposed where it asks for exits, or for a point that they hold back. A kill switch
        lifts nothing: a restart forgets the word, and must not forget with it what was shown.

        Args:
          mode: from now on, or None for the one that holds.
          point: served by default from now on, or None for the one that is.

        Raises:
          PolicyError: there is no such point.
        """
        self.file.point(point)  # which has to exist
        lifts = self._lifts(mode, point)
        self._ordered_mode, self._ordered_point = mode or self._ordered_mode, point or self._ordered_point
        self.name = self._ordered_point or self.file.default
        if lifts:
            self._lift()

    def _lifts(self, mode: str | None, point: str | None) -> bool:
        """Whether a word by the route lifts what audits have imposed."""
        return mode == "exit" or (
            point is not None and not any(self._leaves(p) for p in self.file.points if p.name == point)
        )

    def served(self) -> OperatingPoint:
        """The point that serves a request that says nothing."""
        return self.in_place_of(self.file.point(self.name))

    def uncertified_because(self) -> list[str]:
        """Why no certificate holds for the point that serves; empty where one does."""
        return self._uncertified(self.served())

    def _uncertified(self, point: OperatingPoint) -> list[str]:
        own = self._of_points[point.name]
        return [*self.doubts, *([] if own is None else [own])]

    def stricter(self, point: OperatingPoint) -> OperatingPoint | None:
        """The next stricter point with a certificate of its own for the same risk; None where there is none."""
        below = [p for p in self._certified() if risk_of(p) == risk_of(point) and epsilon_of(p) < epsilon_of(point)]
        return max(below, key=epsilon_of, default=None)

    def _certified(self) -> list[OperatingPoint]:
        """Points whose certificate is of their policy: any other epsilon says nothing of what would be served."""
        return [point for point in self.file.points if self._of_points[point.name] is None]

    def serves(self, point: OperatingPoint) -> bool:
        """Whether those who ask for a point get it, audits having imposed nothing stricter."""
        return self.in_place_of(point).name == point.name

    def _leaves(self, point: OperatingPoint) -> bool:
        """Whether audits have imposed nothing on those who ask for a point, shadow mode included."""
        return self.serves(point) and not self.in_shadow and point.name not in self.shadowed

    def resolve(
        self,
        extra_args: Mapping[str, Any] | None,
        request: str = "",
        *,
        lora: str | None = None,
        caller: str | None = None,
        forced: bool = False,
        sampled: bool = True,
        choice: int = 0,
    ) -> Admitted:
        """Decide what a request gets.

        Args:
          extra_args: of the request.
          request: its id in the engine.
          lora: name of its adapter.
          caller: mark of its API key.
          forced: its client decides what the model writes, so that its audit would show nothing.
          sampled: it is sampled as the traces of the calibration were; another request gets the same, uncertified, and
            its audit would show nothing.
          choice: see `Admitted`; a certificate counts prompts, so only the first of several is audited.

        Raises:
          ArgumentError: it asks for something that does not exist, is out of range, or not allowed.
        """
        arguments = parse(extra_args)
        check_splits(arguments, self.block)
        rule = self.serving.requests
        check_permitted(arguments, rule)
        offered = self._offered(arguments, lora, caller)
        if offered is None:  # the operator's word, which nothing that a request says goes over
            return Admitted(self.served().policy, "off", None, None, False, False, caller, choice=choice, lora=lora)
        asked = offered if arguments.specexit_risk is None else self._of_risk(arguments.specexit_risk, offered)
        point = self.in_place_of(asked)
        if rule == "stricter":
            check_rarer(arguments, offered, asked)
        policy = policy_of(arguments, asked.policy, keep_thresholds=rule == "stricter")
        if point != asked and rule != "stricter":  # put there by audits, which make no request an error
            policy = imposed_policy_of(arguments, point.policy)
        elif point != asked:
            policy = point.policy if policy == asked.policy else stricter_of(policy, point.policy)
        mode = self._mode_of(arguments, request, point)
        silent = self._mode_of(RequestArguments(), request, point)
        own = (policy, arguments.specexit_splits, mode) == (point.policy, None, silent)  # as if it said nothing
        like = sampled and not forced and mode != "off"  # as what was calibrated
        chosen = choice == 0 and in_share(request, self.serving.audit_rate)
        audited = self.audits and own and arguments.specexit_mode is None and like and chosen
        return Admitted(
            policy=policy,
            mode="shadow" if audited else mode,
            splits=arguments.specexit_splits,
            point=point.name if own and mode != "off" else None,
            certified=own and like and lora is None and not self._uncertified(point),
            audited=audited,
            caller=caller,
            choice=choice,
            lora=lora,
        )

    def _mode_of(self, arguments: RequestArguments, request: str, point: OperatingPoint) -> Mode:
        if (
            self.mode == "off"
            or arguments.specexit is False
            or not in_share(request, self.serving.share, draw="share:")
        ):
            return "off"
        if self.in_shadow or point.name in self.shadowed:
            return "shadow"  # by audits, which no request goes over
        if self.serving.requests == "stricter":
            if arguments.specexit_splits is not None and point.policy.patience > 1:
                return "shadow"  # audits want boundaries in a row; fewer kinds of them may bring such a row about
            return "shadow" if "shadow" in (self.mode, arguments.specexit_mode) else "exit"
        return arguments.specexit_mode or self.mode

    def _offered(self, arguments: RequestArguments, lora: str | None, caller: str | None) -> OperatingPoint | None:
        """The operator's point for a request that asks for nothing, or for an effort alone; None for no exits."""
        assigned = [self.serving.loras.get(lora or ""), self.serving.tenants.get(caller or "")]
        if "off" in assigned:
            return None
        name = next((name for name in assigned if name is not None), self.name)
        return self.file.point(point_for(arguments.specexit_effort, self.serving.efforts) or name)

    def in_place_of(self, point: OperatingPoint) -> OperatingPoint:
        """What those who ask for a point get: the point, or the one that audits have put in its place."""
        name = self.ceiling
        ceiling = None if name is None else self.file.point(name)
        risked = epsilon_of(point) if self._of_points[point.name] is None else math.inf  # as of one without
        point = ceiling if ceiling is not None and epsilon_of(ceiling) < risked else point
        stepped = self.stepped
        while point.name in stepped:
            point = self.file.point(stepped[point.name])
        return point

    def _of_risk(self, risk: float, offered: OperatingPoint) -> OperatingPoint:
        """The boldest point with at most this risk, of the kind that the point on offer is certified for."""
        certified = [point for point in self._certified() if risk_of(offered) in (None, risk_of(point))]
        fitting = [point for point in certified if epsilon_of(point) <= risk]
        if not fitting:
            known = ", ".join(f"{epsilon_of(point):g}" for point in sorted(certified, key=epsilon_of))
            raise ArgumentError(
                f"extra_args: specexit_risk is {risk}, expected at least the epsilon of an operating point: "
                f"{known or 'there is none whose certificate is of its policy'}",
                "specexit_risk",
            )
        return max(fitting, key=epsilon_of)

    def points(self) -> list[dict[str, Any]]:
        """The operating points as ``GET /v1/specexit`` lists them."""
        return [
            {
                "name": point.name,
                "policy": point.policy.model_dump(mode="json"),
                "certificate": point.certificate.model_dump(mode="json") if point.certificate else None,
                "thinking_cut": point.certificate.thinking_cut if point.certificate else None,
            }
            for point in self.file.points
        ]


def risk_of(point: OperatingPoint) -> Risk | None:
    """What a point's certificate bounds; None without one."""
    return None if point.certificate is None else point.certificate.risk


def epsilon_of(point: OperatingPoint) -> float:
    """The risk that a point is certified for; infinity without a certificate."""
    return math.inf if point.certificate is None else point.certificate.epsilon
