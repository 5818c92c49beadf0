"""Arithmetic that a tiny model cannot do by itself and can do with a Python tool.

Six families of problems whose answers are whole numbers of up to six digits, so that
a guess is right about once in thousands of tries. Every family knows the call that solves
it, a plausible call that does not, and both results, so that traces for a cold start can
be written without running anything (a test runs them and compares).

Training and held-out problems are disjoint by construction: a problem belongs to the
held-out split when a hash of its question says so, whatever the seed.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from agent_r1.data.sources import endless
from agent_r1.data.traces import Segment, Trace, model, tool
from agent_r1.reward.base import register_reward
from agent_r1.types import Reward, Task, Trajectory

HELD_OUT_SHARE = 10
"""One question in this many is held out."""

ANSWER_PREFIX = "Answer: "
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Call:
    """A Python expression, what ``print`` writes for it, and an import that it needs."""

    expression: str
    output: str
    preamble: str = ""

    def code(self, printed: bool = True) -> str:
        body = f"print({self.expression})" if printed else self.expression
        return f"{self.preamble}{body}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the call that answers it and one that looks right and is not."""

    family: str
    question: str
    right: Call
    wrong: Call

    @property
    def answer(self) -> int:
        return int(self.right.output)


def _product(rng: random.Random) -> Problem:
    a, b = rng.randint(10, 99), rng.randint(100, 999)
    right, wrong = Call(f"{a}*{b}", str(a * b)), Call(f"{a}+{b}", str(a + b))
    return Problem("product", f"What is {a} times {b}?", right, wrong)


def _gcd(rng: random.Random) -> Problem:
    divisor = rng.randint(200, 999)
    a, b = rng.choice([(p, q) for p in range(5, 10) for q in range(5, 10) if math.gcd(p, q) == 1])
    a, b = a * divisor, b * divisor
    right = Call(f"math.gcd({a},{b})", str(divisor), "import math\n")
    wrong = Call(f"math.lcm({a},{b})", str(math.lcm(a, b)), "import math\n")
    return Problem("gcd", f"What is the gcd of {a} and {b}?", right, wrong)


def _modular_power(rng: random.Random) -> Problem:
    base, exponent, modulus = rng.randint(11, 99), rng.randint(11, 99), rng.randint(1000, 9999)
    right = Call(f"pow({base},{exponent},{modulus})", str(pow(base, exponent, modulus)))
    wrong = Call(f"{base}*{exponent}%{modulus}", str(base * exponent % modulus))
    return Problem("modular power", f"What is {base}^{exponent} mod {modulus}?", right, wrong)


def _octal(rng: random.Random) -> Problem:
    number = rng.randint(1000, 9999)
    right = Call(f"oct({number})[2:]", oct(number)[2:])
    wrong = Call(f"hex({number})[2:]", hex(number)[2:])
    return Problem("octal", f"Write {number} in octal.", right, wrong)


def _squares(rng: random.Random) -> Problem:
    a, b = rng.randint(100, 315), rng.randint(100, 315)
    right = Call(f"{a}**2+{b}**2", str(a**2 + b**2))
    wrong = Call(f"{a}*2+{b}*2", str(a * 2 + b * 2))
    return Problem("squares", f"Add the squares of {a} and {b}.", right, wrong)


def _remainder(rng: random.Random) -> Problem:
    a, b = rng.randint(10000, 99999), rng.randint(1000, 9999)
    right, wrong = Call(f"{a}%{b}", str(a % b)), Call(f"{a}//{b}", str(a // b))
    return Problem("remainder", f"What is {a} modulo {b}?", right, wrong)


FAMILIES: tuple[Callable[[random.Random], Problem], ...] = (
    _product,
    _gcd,
    _modular_power,
    _octal,
    _squares,
    _remainder,
)


def is_held_out(question: str) -> bool:
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless, deterministic stream of problems, all families in turn."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    rng = random.Random(f"arithmetic/{split}/{seed}")
    while True:
        for family in FAMILIES:
            yield _draw(family, rng, held_out=split != "train")


def _draw(
    family: Callable[[random.Random], Problem], rng: random.Random, held_out: bool
) -> Problem:
    while True:
        problem = family(rng)
        if is_held_out(problem.question) is held_out and _is_sound(problem):
            return problem


def _is_sound(problem: Problem) -> bool:
    """The question does not contain its answer, and the wrong call does not give it."""
    right = problem.right.output
    return right not in problem.question and right != problem.wrong.output


@endless
def tasks(split: str = "train", seed: int = 0) -> Iterator[Task]:
    """An endless stream of tasks for rollouts (``generator:arithmetic`` in a config)."""
    for number, problem in enumerate(problems(split, seed)):
        yield Task(
            id=f"arithmetic/{split}/{seed}/{number}",
            prompt=_prompt(problem.question),
            answer=problem.answer,
            data_source="arithmetic",
            extra={"family": problem.family},
        )


def _prompt(question: str) -> tuple[Mapping[str, str], ...]:
    return ({"role": "user", "content": question},)


# --- traces for the cold start ---------------------------------------------------------

MIXTURE: Mapping[str, float] = {
    "good": 0.40,
    "direct guess": 0.30,
    "wrong call": 0.15,
    "forgotten print": 0.15,
}
"""Shares of the cold start. Six in ten traces are wrong on purpose."""


def traces(seed: int = 0, mixture: Mapping[str, float] = MIXTURE) -> Iterator[Trace]:
    """An endless, deterministic stream of traces over the training split."""
    rng = random.Random(f"arithmetic/traces/{seed}")
    kinds, shares = list(mixture), list(mixture.values())
    for problem in problems("train", seed):
        kind = rng.choices(kinds, shares)[0]
        segments = TRACE_KINDS[kind](problem, rng)
        yield Trace(_prompt(problem.question), segments, f"arithmetic/{kind}")


def _good(problem: Problem, rng: random.Random) -> tuple[Segment, ...]:
    return _called(problem.right.code(), problem.right.output, problem.right.output)


def _direct_guess(problem: Problem, rng: random.Random) -> tuple[Segment, ...]:
    return (model(f"{ANSWER_PREFIX}{_guess(problem, rng)}"),)


def _wrong_call(problem: Problem, rng: random.Random) -> tuple[Segment, ...]:
    return _called(problem.wrong.code(), problem.wrong.output, problem.wrong.output)


def _forgotten_print(problem: Problem, rng: random.Random) -> tuple[Segment, ...]:
    return _called(problem.right.code(printed=False), "", str(_guess(problem, rng)))


TRACE_KINDS: Mapping[str, Callable[[Problem, random.Random], tuple[Segment, ...]]] = {
    "good": _good,
    "direct guess": _direct_guess,
    "wrong call": _wrong_call,
    "forgotten print": _forgotten_print,
}


def _called(code: str, output: str, answer: str) -> tuple[Segment, ...]:
    return (
        model(f"<code>\n{code}\n</code>"),
        tool(f"\n<interpreter>\n{output}\n</interpreter>\n"),
        model(f"{ANSWER_PREFIX}{answer}"),
    )


def _guess(problem: Problem, rng: random.Random) -> int:
    """A wrong number of the right size."""
    digits = len(str(problem.answer))
    while True:
        guess = rng.randint(10 ** (digits - 1), 10**digits - 1)
        if guess != problem.answer:
            return guess


# --- the grader ------------------------------------------------------------------------

_ANSWER = re.compile(ANSWER_PREFIX + r"(-?[0-9]{1,18})\s*\Z")


@register_reward("arithmetic", inline=True)
def arithmetic_reward(trajectory: Trajectory) -> Reward:
    """1 when the last turn ends in ``Answer: N`` with exactly the right number, else 0.

    Only the model's last turn counts: a number in the tool's output is no answer.
    """
    stated = _ANSWER.search(trajectory.final_text)
    correct = stated is not None and int(stated[1]) == trajectory.task.answer
    return Reward(float(correct), {"accuracy": float(correct)})
