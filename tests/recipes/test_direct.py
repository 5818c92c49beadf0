import asyncio
import itertools

from agent_r1.recipes import arithmetic
from agent_r1.recipes.direct import answer_directly
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer


def direct(reply, tasks):
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(tokenizer, reply)
    value = asyncio.run(answer_directly(engine, Codec(tokenizer), tasks, Sampling()))
    return value, engine


def tasks(count=6):
    return list(itertools.islice(arithmetic.tasks("val", 0), count))


def test_the_answer_begins_right_after_the_question_and_only_the_right_number_counts():
    problems = tasks()
    right = {t.prompt[0]["content"]: str(t.answer) for t in problems[:3]}

    def reply(call):
        assert call.prompt_text.endswith("Answer: ")
        return next((n for q, n in right.items() if q in call.prompt_text), "12")

    value, engine = direct(reply, problems)
    assert value == 0.5
    assert engine.closed


def test_code_is_no_direct_answer():
    value, engine = direct(["<code>\nprint(1)\n</code>"], tasks())
    assert value == 0.0
    assert len(engine.calls) == 6  # nothing ran, nothing was continued
