"""Small worlds in which a network of 60,000 parameters learns within minutes on a laptop.

Every token of the vocabulary is a whole word of these worlds, and a turn is one token, so that a
run shows what the environment, the context and the credit do, and not how language is learned.

    python examples/environments/world.py model     # writes the model
    agent-r1 train --config examples/environments/guess.yaml
"""

import json
import random
import sys
from collections import deque

from agent_r1.testing import word_tokenizer
from agent_r1.tool import Environment, Start, Step
from agent_r1.types import Reward, Task

PAD, END, USER, ASSISTANT = "□", "■", "①", "②"
CONTROL = (PAD, END, USER, ASSISTANT)
NUMBERS = tuple("123")
CELLS = tuple("PSFHG")
SYMBOLS = tuple("αβγδ")
WORDS = ("guess", "higher", "lower", "lake", "read", "page", "recall", "summary", "next", "\n")
VOCABULARY = (*CONTROL, *NUMBERS, *CELLS, *SYMBOLS, *WORDS)
TEMPLATE = (
    "{% set marks = " + json.dumps({"user": USER, "assistant": ASSISTANT}) + " %}"
    "{% for m in messages %}{{ marks[m.role] }}{{ m.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


# --- guess the number: a simulated user ---------------------------------------------------


class Guess(Environment):
    """A user thinks of a number from 1 to 3 and says of each guess whether it is more or less.

    Two guesses always suffice, for whoever begins in the middle and listens.
    """

    def __init__(self, guesses: int = 2) -> None:
        self.left = guesses

    def reset(self, task):
        self.number = int(task.answer)
        return Start()

    def step(self, action):
        self.left -= 1
        guess = action.strip()
        if guess == str(self.number):
            return Step(reward=1.0, terminated=True)
        if self.left == 0:
            return Step(reward=0.0, terminated=True)
        if guess not in NUMBERS:
            return said("guess")
        return said("higher" if int(guess) < self.number else "lower")


def numbers(split, seed, count=192):
    for i in range(count):
        number = NUMBERS[i % len(NUMBERS)]
        yield Task(f"{split}-{i}", message("guess"), answer=number, data_source="guess")


# --- FrozenLake: maps for the Gymnasium adapter -------------------------------------------


def lakes(split, seed, count=8, size=3):
    """Maps that can be crossed; those for validation are others than those for training."""
    draw = random.Random(f"{split} {seed}")
    made = 0
    while made < count:
        cells = [draw.choice("FFFH") for _ in range(size * size)]
        cells[0], cells[-1] = "S", "G"
        desc = ["".join(cells[i : i + size]) for i in range(0, size * size, size)]
        if (sum(map(ord, "".join(desc))) % 4 == 0) != (split == "val") or not crossed(desc):
            continue
        yield Task(
            f"{split}-{made}",
            message("lake"),
            data_source="lake",
            extra={"options": {"desc": desc}, "seed": 0},
        )
        made += 1


def moved(text, env):
    """Every word is one of the four moves, so that chance crosses a lake now and then."""
    word = text.strip()
    return VOCABULARY.index(word) % 4 if word in VOCABULARY else None


def crossed(desc):
    """Whether a way leads from start to goal."""
    size, seen, front = len(desc), {(0, 0)}, deque([(0, 0)])
    while front:
        row, column = front.popleft()
        for r, c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= r < size and 0 <= c < size
            if inside and (r, c) not in seen and desc[r][c] != "H":
                seen.add((r, c))
                front.append((r, c))
    return (size - 1, size - 1) in seen


# --- a story that is longer than the window -----------------------------------------------


class Story(Environment):
    """A symbol on the first page, then pages without one, then the question which it was.

    The window does not hold all pages: what is not in a summary is gone.
    """

    def __init__(self, pages: int = 3, length: int = 6) -> None:
        self.pages, self.length, self.read = pages, length, 0

    def reset(self, task):
        self.symbol = task.answer
        return Start()

    def step(self, action):
        self.read += 1
        if self.read == 1:
            return said("read" + self.symbol * self.length)
        if self.read < self.pages:
            return said("read" + "page" * self.length)
        if self.read == self.pages:
            return said("recall")
        return Step(reward=float(action.strip() == self.symbol), terminated=True)


def remembered(trajectory):
    """Half for a summary that holds the symbol, half for the right answer."""
    symbol = trajectory.task.answer
    noted = any(turn.text.strip() == symbol for turn in trajectory.turns[1:-1])
    right = trajectory.final_text.strip() == symbol and trajectory.outcome.value == "finished"
    return Reward(0.5 * (noted and not right) + right, {"accuracy": float(right)})


def stories(split, seed, count=200):
    for i in range(count):
        yield Task(f"{split}-{i}", message("read"), answer=SYMBOLS[i % 4], data_source="story")


# --- the model ----------------------------------------------------------------------------


def message(text):
    return ({"role": "user", "content": text},)


def said(text):
    return Step(message(text))


def tokenizer():
    """One token per entry of ``VOCABULARY``; other characters are no tokens."""
    return word_tokenizer(VOCABULARY, CONTROL, pad=PAD, end=END, chat_template=TEMPLATE)


def model(seed=0, window=256):
    """A random network of the Qwen3 kind."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=16,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=False,
        pad_token_id=VOCABULARY.index(PAD),
        eos_token_id=VOCABULARY.index(END),
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config).float().eval()


if __name__ == "__main__":
    model().save_pretrained(sys.argv[1])
    tokenizer().save_pretrained(sys.argv[1])
    print(f"{sys.argv[1]}: {sum(p.numel() for p in model().parameters()):,} parameters")
