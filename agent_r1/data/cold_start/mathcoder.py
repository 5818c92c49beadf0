r"""Solutions in MathCoder's format (text, code and execution blocks) as episodes.

Their programs were written in a notebook: a later block uses what an earlier one defined,
and a block ends in a bare expression whose value is shown. Ours run each on its own, so a
block is preceded by the successful ones before it (without what they showed), and a final
expression is printed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agent_r1.data.cold_start.play import Draft, Rejected
from agent_r1.data.sources_files import Row
from agent_r1.reward.answers import boxed

SOURCE = "mathcoder"


def drafts(rows: Iterable[Row]) -> Iterator[Draft | Rejected]:
    """A draft for every row that has blocks, at least one of them code."""
    for row in rows:
        try:
            yield _draft(row)
        except ValueError as error:
            yield Rejected(row.number, str(error), row.error)


def _draft(row: Row) -> Draft:
    values = row.values or {}
    blocks = values.get("debug_result")
    if not isinstance(blocks, list) or not all(_is_block(block) for block in blocks):
        raise ValueError("no list of {role, content} in 'debug_result'")
    question = next((b["content"] for b in blocks if b["role"] == "user"), "")
    answer = _answer(values)
    if not question or not answer:
        raise ValueError("no question or no answer")
    turns = _turns([b for b in blocks if b["role"] in ("text", "code", "execution")])
    return Draft(
        row.number, question.strip(), answer, (*turns[:-1], _end(turns[-1], answer)), SOURCE
    )


def _is_block(block: Any) -> bool:
    return isinstance(block, Mapping) and all(
        isinstance(block.get(key), str) for key in ("role", "content")
    )


def _answer(values: Mapping[str, Any]) -> str:
    truth = values.get("ground_truth")
    answer = truth.get("answer") if isinstance(truth, Mapping) else truth
    return str(answer).strip() if answer is not None else ""


def _turns(blocks: list[Mapping[str, str]]) -> list[str]:
    """What the model writes, split after every program."""
    turns, text, earlier = [], "", ""
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block["role"] == "text":
            text += ("\n\n" if text else "") + block["content"].strip()
        elif block["role"] == "code":
            shown, silent = printing(block["content"])
            turns.append(f"{text}\n<code>\n{earlier}{shown}\n</code>".lstrip("\n"))
            text = ""
            if following is not None and not _looks_failed(following):
                earlier += f"{silent}\n" if silent else ""
    if not turns:
        raise ValueError("no code block")
    return [*turns, text]


def _looks_failed(block: Mapping[str, str]) -> bool:
    return block["role"] != "execution" or "Error" in block["content"]


def printing(code: str) -> tuple[str, str]:
    """A notebook cell as a program that prints what the cell would have shown, and the cell
    without anything that shows or prints, for use before later ones.

    Raises:
        ValueError: it is no Python.
    """
    code = code.strip()
    try:
        body = ast.parse(code).body
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"a code block is no Python: {error}") from error
    if not body:
        raise ValueError("an empty code block")
    last, shown = body[-1], code
    if isinstance(last, ast.Expr) and not _prints(last):
        lines = code.splitlines()
        before = "\n".join(lines[: last.lineno - 1])
        shown = f"{before}\nprint({ast.unparse(last.value)})".lstrip("\n")
    kept = [ast.get_source_segment(code, node) for node in body if not isinstance(node, ast.Expr)]
    return shown, "\n".join(part for part in kept if part)


def _prints(node: ast.Expr) -> bool:
    call = node.value
    return isinstance(call, ast.Call) and getattr(call.func, "id", None) == "print"


def _end(text: str, answer: str) -> str:
    """The last turn, with the answer in a box if it has none and its bare repetition cut off."""
    parts = text.split("\n\n")
    if len(parts) > 1 and parts[-1].strip() == answer:
        text = "\n\n".join(parts[:-1])
    if not boxed(text):
        text = f"{text}\n\n" if text else ""
        text += f"The answer is \\boxed{{{answer}}}."
    return text
