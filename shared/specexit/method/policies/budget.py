"""A fixed thinking budget: exit at the first boundary at or after so many tokens, whatever the signals say."""

from specexit.method.decision import Policy
from specexit.method.policies.method import Method, play_policies


def budget_policy(tokens: int) -> Policy:
    """The policy that ends the thinking at the first boundary with so many tokens."""
    return Policy(thresholds={}, min_thinking_tokens=tokens)


def _budgets(longest: int) -> list[Policy]:
    return [budget_policy(tokens) for tokens in range(0, longest + 1, max(1, longest // 200))]


METHOD = Method(
    "budget",
    "a fixed thinking budget",
    lambda replay, config: play_policies(
        replay,
        _budgets(replay.largest.n_think),
        lambda policy: f"{policy.min_thinking_tokens} tokens",
    ),
)
