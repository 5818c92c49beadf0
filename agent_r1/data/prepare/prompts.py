"""What the model is told besides the question."""

from __future__ import annotations

from pathlib import Path

from agent_r1.errors import DataError

PLACE = "{question}"
"""Stands for the question in a prompt text; other braces are left alone."""

_RETOOL = r"""Solve the problem at the end. Think in your own words, and let Python do the work \
wherever computing is surer than reasoning.

To run a program, write it like this:
<code>
```python
print(sum(n * n for n in range(1, 11)))
```
</code>
It is executed as soon as you close the tag. What it prints comes back to you between \
<interpreter> and </interpreter>, and you go on from there; an error message comes back the same \
way. @STATE Run as many programs as the problem deserves, or none.

When you are sure, end with the answer and nothing after it:
<answer>
\boxed{the final answer}
</answer>

Problem:
{question}""".replace("\\\n", "")

RETOOL = _RETOOL.replace(
    "@STATE",
    "Each program starts from nothing, so import and define what it needs and print what you "
    "want to see.",
)
RETOOL_SESSION = _RETOOL.replace(
    "@STATE",
    "What a program imports and defines stays there for the next one; print what you want to see.",
)
"""For ``sandbox.session=trajectory``."""

PLAIN = r"""{question}

Reason step by step, and put the final answer in \boxed{}."""

SEARCH_R1 = """Answer the question at the end. You may look things up as often as you need: write

<search>your query</search>

and the passages that fit it best come back to you between <information> and </information>. \
Think in your own words about what you know and what is missing. A question may need several \
searches, one for each thing that you have to find out.

When you know the answer, give it in as few words as possible and nothing after it:

<answer>the answer</answer>

Question: {question}""".replace("\\\n", "")

WIKI = """Answer the question at the end with the help of your search tool. A question may need \
several searches, one for each thing that you have to find out. When you know the answer, give it \
in as few words as possible:

<answer>the answer</answer>

Question: {question}""".replace("\\\n", "")
"""For environments that call tools by name, such as ``nous``."""

STYLES = {
    "retool": RETOOL,
    "retool_session": RETOOL_SESSION,
    "plain": PLAIN,
    "bare": PLACE,
    "search_r1": SEARCH_R1,
    "wiki": WIKI,
}


def prompt_text(style: str) -> str:
    """The text of a style, or of a file that holds ``{question}``.

    Raises:
        DataError: there is no such style or file, or the file has no place for the question.
    """
    if style in STYLES:
        return STYLES[style]
    path = Path(style).expanduser()
    if not path.is_file():
        raise DataError(
            f"no prompt style and no file is called {style!r}; styles: {', '.join(STYLES)}"
        )
    text = path.read_text(encoding="utf-8").rstrip("\n")
    if PLACE not in text:
        raise DataError(f"{path} must contain {PLACE}, where the question goes")
    return text


def fill(text: str, question: str) -> str:
    return text.replace(PLACE, question)
