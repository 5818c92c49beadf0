"""The collections that are known: where each is published and how its rows are read.

Addresses name a revision, so that the same command gives the same rows tomorrow. Where the
bytes of a file have been seen, their SHA-256 is stated and checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from agent_r1.data.prepare.clean import rounded_by_a_float
from agent_r1.data.prepare.reading import Layout, after_hashes, last_box
from agent_r1.errors import DataError
from agent_r1.registry import nearest


@dataclass(frozen=True, slots=True)
class Address:
    """One place a file can be had from."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A published collection of problems.

    ``train`` and ``test`` are addresses of the same rows, tried in order. ``layouts`` are
    tried in order on the first row of a file. ``unwrap`` takes instructions off a question
    that has some, ``repair`` mends its text; ``mangled`` recognises answers that cannot be meant.
    """

    name: str
    title: str
    home: str
    licence: str
    layouts: tuple[Layout, ...]
    train: tuple[Address, ...] = ()
    test: tuple[Address, ...] = ()
    aliases: tuple[str, ...] = ()
    unwrap: Callable[[str], str] = str.strip
    repair: Callable[[str], str] = str.strip
    mangled: Callable[[str], bool] | None = None

    def split(self, name: str) -> tuple[Address, ...]:
        return {"train": self.train, "test": self.test}.get(name, ())

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(name for name in ("train", "test") if self.split(name))


def _hub(dataset: str, revision: str, path: str, sha256: str | None = None) -> Address:
    url = f"https://huggingface.co/datasets/{dataset}/resolve/{revision}/{path}"
    return Address(url, sha256)


def _git(repository: str, commit: str, path: str, sha256: str | None = None) -> Address:
    return Address(f"https://raw.githubusercontent.com/{repository}/{commit}/{path}", sha256)


_DAPO_INSTRUCTIONS = re.compile(
    r"\A\s*Solve the following math problem step by step\. The last line of your response should "
    r"be of the form Answer: \$Answer \(without quotes\) where \$Answer is the answer to the "
    r"problem\.\s*|\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*\Z"
    r"|\s*让我们一步一步地思考。请以“Answer: \\boxed\{<final_answer>\}”的格式输出最终答案。[^\n]*\Z"
)
_LOST_BACKSLASHES = (
    (re.compile(r"\x0c(?=rac\b|rac\{)"), r"\\f"),
    (re.compile(r"\t(?=ext\{|riangle|imes\b|heta\b|frac)"), r"\\t"),
    (re.compile(r"\x08(?=eta\b|inom\b|ar\{)"), r"\\b"),
    (re.compile(r"\n(?=abla\b)"), r"\\n"),
)


def without_instructions(text: str) -> str:
    """The problem alone, without what DAPO tells the model around it."""
    return _DAPO_INSTRUCTIONS.sub("", text)


def with_backslashes(text: str) -> str:
    r"""A text with the LaTeX commands back that string escapes have eaten.

    About one question in thirty says ``rac{m}{n}`` after a form feed where ``\frac{m}{n}``
    was meant.
    """
    for eaten, command in _LOST_BACKSLASHES:
        text = eaten.sub(command, text)
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+", " ", text).strip()


_QA = Layout("question", "answer")
_VERL = Layout("prompt", "reward_model.ground_truth")
_MATH_EXTRA = ("level", "type", "subject", "unique_id")
_RETOOL_EVALUATION = ("ReTool-RL/ReTool", "8407e1394dd92c1c3e61f23d6c5015c023ed7407")
_AIME = (
    Layout("problem", "answer"),
    Layout("input", "output"),
    Layout("Problem", "Answer"),
    Layout("problem", "solution", last_box),
    _VERL,
    _QA,
)

_DAPO = Source(
    name="retool",
    aliases=("dapo", "dapo-math-17k"),
    title="DAPO-Math-17k, the problems that ReTool is trained on",
    home="https://huggingface.co/datasets/BytedTsinghua-SIA/DAPO-Math-17k",
    licence="Apache-2.0",
    layouts=(_VERL, Layout("prompt", "solution"), Layout("question", "answer")),
    train=(
        _hub(
            "BytedTsinghua-SIA/DAPO-Math-17k",
            "65877096c24ffa7abc4e4fa5edb95cf3413a5674",
            "data/dapo-math-17k.parquet",
        ),
        _git(
            "MasterVito/SvS",
            "9fd8f35375b31b8632b52e715296c264a3ad4176",
            "data/dapo_math_17k.parquet",
            "246ae23df97c9eae8126cb4da780e9a0a31d10110e16eed144bcecbf2132d535",
        ),
    ),
    unwrap=without_instructions,
    repair=with_backslashes,
    mangled=rounded_by_a_float,
)

_GSM8K = Source(
    name="gsm8k",
    title="GSM8K, grade-school word problems",
    home="https://github.com/openai/grade-school-math",
    licence="MIT",
    layouts=(Layout("question", "answer", after_hashes), _VERL),
    train=(
        _git(
            "openai/grade-school-math",
            "3101c7d5072418e28b9008a6636bde82a006892c",
            "grade_school_math/data/train.jsonl",
            "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        ),
    ),
    test=(
        _git(
            "openai/grade-school-math",
            "3101c7d5072418e28b9008a6636bde82a006892c",
            "grade_school_math/data/test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        ),
    ),
)

_MATH = Source(
    name="math",
    title="MATH, competition problems with LaTeX answers",
    home="https://huggingface.co/datasets/DigitalLearningGmbH/MATH-lighteval",
    licence="MIT",
    layouts=(
        Layout("problem", "solution", last_box, _MATH_EXTRA),
        Layout(
            "reward_model.ground_truth.question",
            "reward_model.ground_truth.solution",
            last_box,
            _MATH_EXTRA,
        ),
        _VERL,
    ),
    train=(
        _hub(
            "DigitalLearningGmbH/MATH-lighteval",
            "0530c78699ea5e8eb5530600900e1f328b48acad",
            "data/train-00000-of-00001.parquet",
        ),
    ),
    test=(
        _hub(
            "DigitalLearningGmbH/MATH-lighteval",
            "0530c78699ea5e8eb5530600900e1f328b48acad",
            "data/test-00000-of-00001.parquet",
        ),
    ),
)

_MATH500 = Source(
    name="math500",
    aliases=("math-500",),
    title="MATH-500, the 500 test problems of MATH that are usually reported",
    home="https://huggingface.co/datasets/HuggingFaceH4/MATH-500",
    licence="MIT",
    layouts=(Layout("problem", "answer", extra=_MATH_EXTRA), _VERL),
    test=(
        _hub(
            "HuggingFaceH4/MATH-500",
            "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            "test.jsonl",
            "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        ),
    ),
)

_AIME24 = Source(
    name="aime24",
    aliases=("aime2024", "aime-2024"),
    title="AIME 2024, 30 problems",
    home="https://github.com/ReTool-RL/ReTool",
    licence="Apache-2.0",
    layouts=_AIME,
    test=(
        _git(
            *_RETOOL_EVALUATION,
            "evaluation/dataset/AIME24.jsonl",
            "b952a4fd99a81353662b549deb43207a31997b554aea616f3b071e2fecaa8285",
        ),
        _hub(
            "HuggingFaceH4/aime_2024",
            "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
            "data/train-00000-of-00001.parquet",
        ),
    ),
)

_AIME25 = Source(
    name="aime25",
    aliases=("aime2025", "aime-2025"),
    title="AIME 2025, 30 problems",
    home="https://github.com/ReTool-RL/ReTool",
    licence="Apache-2.0",
    layouts=_AIME,
    test=(
        _git(
            *_RETOOL_EVALUATION,
            "evaluation/dataset/AIME25.jsonl",
            "633607e7e2584d6d52f3fdd741d5fc6e66384a1924ab3e1da3ad46eec76af2f8",
        ),
        _hub(
            "math-ai/aime25",
            "563bb8404243c5f09de6ec262f2db674fe5bce9b",
            "test.jsonl",
        ),
    ),
)

SOURCES = {s.name: s for s in (_DAPO, _GSM8K, _MATH, _MATH500, _AIME24, _AIME25)}
"""By name, in the order in which they are listed."""

EVALUATION = tuple(name for name, source in SOURCES.items() if source.test)
"""Sets whose test problems no training file may hold."""


def source_named(name: str) -> Source:
    """The collection of this name or alias.

    Raises:
        DataError: there is none.
    """
    wanted = name.casefold().replace("_", "-")
    for source in SOURCES.values():
        if wanted == source.name or wanted in source.aliases:
            return source
    raise DataError(
        f"no collection is called {name!r}{nearest(name, list(SOURCES))}; known: "
        f"{', '.join(SOURCES)}. 'agent-r1 data convert FILE' reads a table of your own"
    )
