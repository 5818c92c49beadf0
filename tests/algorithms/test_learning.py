"""Every estimator and every loss learns a behaviour that takes two tool calls.

The world: the model writes one token per turn; after CALL a tool answers at length
(``SEP X SEP X … SEP``) and the model acts again; whatever else it writes ends the episode.
Only CALL, CALL, ANSWER is rewarded. The policy is a table over (previous token, number of
answers seen), so that it predicts the tool's X from the very context in which it acts
itself: whoever trains on tool tokens teaches the model to babble like the tool.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent_r1.algorithms.aggregate import aggregate, loss_weights
from agent_r1.algorithms.episodes import AdvantageInputs
from agent_r1.algorithms.losses import PolicyLossInputs, value_loss
from agent_r1.algorithms.registry import ADVANTAGES, resolve_advantage, resolve_policy_loss

CALL, ANSWER, X, SEP = range(4)
TURNS, REPEATS = 3, 6
PERIOD = 2 + 2 * REPEATS  # an action and the tool's answer to it
WIDTH = 2 + (TURNS - 1) * PERIOD
ACTION = torch.tensor([t % PERIOD == 1 for t in range(WIDTH)])
SEEN = torch.tensor([max(0, t - 1) // PERIOD for t in range(WIDTH)])
"""[T] tool answers that are complete before token t."""
GROUPS, SIBLINGS, STEPS, EPOCHS = 8, 16, 60, 2


def contexts(tokens: Tensor) -> Tensor:
    """[B, T] row of the policy table that predicts token t."""
    previous = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
    return previous * TURNS + SEEN


def roll_out(table: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``(tokens[B, T], alive[B, T], reward[B])`` sampled from the policy."""
    rows = GROUPS * SIBLINGS
    tokens = torch.full((rows, WIDTH), SEP)
    alive = torch.zeros(rows, WIDTH, dtype=torch.bool)
    going, solved = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
    for turn in range(TURNS):
        at = 1 + PERIOD * turn
        probabilities = torch.softmax(table[SEP * TURNS + turn], 0).expand(rows, 4)
        action = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        tokens[:, at] = action
        alive[:, at] = going
        solved = going & (turn == TURNS - 1) & (action == ANSWER)
        going = going & (action == CALL)
        if turn < TURNS - 1:
            tokens[:, at + 2 : at + PERIOD : 2] = X
            alive[:, at + 1 : at + PERIOD] = going[:, None]
    return tokens, alive, solved.double()


def train(
    estimator: str,
    loss: str = "ppo",
    *,
    broken_mask: bool = False,
    steps: int = STEPS,
    teacher: Tensor | None = None,
    start: float = 0.0,
    **options: object,
) -> tuple[float, float]:
    """Mean reward before and after training."""
    generator = torch.Generator().manual_seed(0)
    table = torch.zeros(4 * TURNS, 4)
    table[:, CALL] = start
    table.requires_grad_()
    critic = torch.zeros(4 * TURNS, requires_grad=True)
    optimizer = torch.optim.Adam([table, critic], lr=0.1)
    curve: list[float] = []
    for _ in range(steps):
        tokens, alive, reward = roll_out(table.detach(), generator)
        curve.append(reward.mean().item())
        mask = alive if broken_mask else alive & ACTION
        inputs = observe(tokens, mask, reward, critic.detach())
        old = logprobs(table, tokens).detach()
        if teacher is not None:
            inputs = replace(inputs, teacher_gap=logprobs(teacher, tokens) - old)
        result = resolve_advantage(estimator)(inputs, **options)
        weights = loss_weights(mask)
        for _ in range(EPOCHS):
            given = PolicyLossInputs(logprobs(table, tokens), old, result.advantages, mask)
            total = aggregate(resolve_policy_loss(loss)(given).loss, mask, weights)
            if result.returns is not None and inputs.values is not None:
                value = critic[contexts(tokens)]
                terms = value_loss(value, inputs.values, result.returns, mask)
                total = total + aggregate(terms.loss, mask, weights)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return sum(curve[:3]) / 3, sum(curve[-3:]) / 3


def logprobs(table: Tensor, tokens: Tensor) -> Tensor:
    chosen = torch.log_softmax(table, 1)[contexts(tokens)]
    return chosen.gather(2, tokens[:, :, None])[:, :, 0]


def observe(tokens: Tensor, mask: Tensor, reward: Tensor, critic: Tensor) -> AdvantageInputs:
    rows = len(tokens)
    return AdvantageInputs(
        loss_mask=mask,
        reward=reward.float(),
        group_id=torch.arange(rows) // SIBLINGS,
        trajectory_id=torch.arange(rows),
        segment=torch.zeros(rows, dtype=torch.int64),
        turn_index=torch.where(mask, SEEN, -1),
        values=critic[contexts(tokens)],
        greedy_reward=torch.zeros(rows),
    )


@pytest.mark.parametrize("estimator", sorted({*ADVANTAGES.names()} - {"opd"}))
def test_every_estimator_learns_to_call_the_tool_twice(estimator):
    before, after = train(estimator)
    assert before < 0.3 and after > 0.9


@pytest.mark.parametrize("loss", ["gspo", "cispo", "reinforce"])
def test_every_loss_learns_to_call_the_tool_twice(loss):
    before, after = train("grpo", loss)
    assert before < 0.3 and after > 0.9


@pytest.mark.parametrize("estimator", sorted({*ADVANTAGES.names()} - {"gae", "turn_gae", "opd"}))
def test_with_tool_tokens_in_the_mask_nobody_learns(estimator):
    """Only a critic would save them: it finds out that tool tokens change nothing."""
    before, after = train(estimator, broken_mask=True)
    assert before < 0.3 and after < 0.5


def expert() -> Tensor:
    """[row, token] logits of a policy that solves the task nineteen times in twenty."""
    table = torch.zeros(4 * TURNS, 4)
    for seen, action in enumerate((CALL, CALL, ANSWER)):
        table[SEP * TURNS + seen, action] = 5.0
    return table


def test_a_student_reaches_its_teacher_faster_than_by_reward_alone():
    """From a policy that seldom calls, no episode is rewarded; the teacher grades each token."""
    before, by_reward = train("grpo", steps=30, start=-3.0)
    _, by_teacher = train("opd", steps=30, start=-3.0, teacher=expert())
    assert before < 0.01 and by_reward < 0.1
    assert by_teacher > 0.8
