"""A toy world for agents that nobody here wrote: look first, then name what was seen.

A task hides one of four symbols. The right behaviour takes two answers of the model: a call of
``look``, whose result holds the symbol, and then that symbol. The model's vocabulary is a few
tokens, each of them a whole move in the language of the agent that uses it; of all other text
its tokenizer sees nothing. So a network of a few thousand parameters learns in seconds what the
agents' machinery makes of its answers.
"""

import json
import random

from agent_r1.testing import word_tokenizer
from agent_r1.types import Task

SYMBOLS = "\u03b1\u03b2\u03b3\u03b4"
PAD, END, SYSTEM, USER, ASSISTANT, TOOL = "\u25a1", "\u25a0", "\u2460", "\u2461", "\u2462", "\u2463"
LOOK_CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
LOOK_CODE = "<code>\nprint(look())\n</code>"
ANSWER_CODE = tuple(f'<code>\nfinal_answer("{symbol}")\n</code>' for symbol in SYMBOLS)
CONTROL = (PAD, END, SYSTEM, USER, ASSISTANT, TOOL)
VOCABULARY = (*CONTROL, *SYMBOLS, LOOK_CALL, LOOK_CODE, *ANSWER_CODE)
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}
TEMPLATE = (
    "{% set marks = " + json.dumps(ROLES, ensure_ascii=False) + " %}"
    "{% for m in messages %}{{ marks[m.role] }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    + LOOK_CALL.replace("{", "{{ '{' }}", 1).replace("{}", "{{ '{}' }}")
    + "{% endfor %}"
    + END
    + "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def tasks(split="train", seed=0, count=64):
    draw = random.Random(seed)
    for i in range(count):
        prompt = ({"role": "user", "content": "Look, then name the symbol that you saw."},)
        yield Task(f"{split}-{i}", prompt, answer=draw.choice(SYMBOLS), data_source="look")


class Hidden:
    """The hidden symbol of one trajectory: shows itself, and scores what was made of it."""

    def __init__(self, call):
        self.symbol = call.task.answer
        self.seen = False

    def look(self):
        """Repeated, so that a small network cannot miss it."""
        self.seen = True
        return self.symbol * 6

    def score(self, named):
        """Half for having looked, half for having named what was seen."""
        right = self.seen and named.strip() == self.symbol
        return {"output": named, "reward": 0.5 * self.seen + 0.5 * right, "accuracy": right}


# --- the agents ----------------------------------------------------------------------------


async def openai_client(call):
    """The plain ``openai`` client in a loop."""
    import openai

    hidden, history = Hidden(call), call.messages
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    async with openai.AsyncOpenAI(base_url=call.base_url, api_key=call.api_key) as client:
        for _ in range(2):
            answer = await client.chat.completions.create(
                model=call.model, messages=history, tools=tools
            )
            message = answer.choices[0].message
            history.append(message)
            if not message.tool_calls:
                return hidden.score(message.content)
            for each in message.tool_calls:
                result = {"role": "tool", "tool_call_id": each.id, "content": hidden.look()}
                history.append(result)
    return hidden.score("")


def smolagents_code(call):
    """A ``CodeAgent`` of smolagents: the model's moves are programs."""
    from smolagents import AgentError, CodeAgent, LogLevel, OpenAIModel, tool

    hidden = Hidden(call)

    @tool
    def look() -> str:
        """Looks at the hidden symbol."""
        return hidden.look()

    model = OpenAIModel(call.model, api_base=call.base_url, api_key=call.api_key)
    agent = CodeAgent(tools=[look], model=model, max_steps=2, verbosity_level=LogLevel.OFF)
    try:
        return hidden.score(str(agent.run(call.text)))
    except AgentError:
        return hidden.score("")


async def openai_agents(call):
    """An ``Agent`` of openai-agents with a function as its tool."""
    import openai
    from agents import (
        Agent,
        AgentsException,
        OpenAIChatCompletionsModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )

    set_tracing_disabled(True)
    hidden = Hidden(call)

    @function_tool
    def look() -> str:
        """Looks at the hidden symbol."""
        return hidden.look()

    async with openai.AsyncOpenAI(base_url=call.base_url, api_key=call.api_key) as client:
        model = OpenAIChatCompletionsModel(call.model, client)
        agent = Agent("looker", instructions="Look first.", tools=[look], model=model)
        try:
            result = await Runner.run(agent, call.text, max_turns=2)
        except AgentsException:
            return hidden.score("")
    return hidden.score(str(result.final_output))


# --- the model -----------------------------------------------------------------------------


def tokenizer():
    """One token per entry of ``VOCABULARY``; other characters are no tokens."""
    return word_tokenizer(VOCABULARY, CONTROL, pad=PAD, end=END, chat_template=TEMPLATE)


def model(seed=0):
    """A random network of the Qwen3 kind."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=VOCABULARY.index(PAD),
        eos_token_id=VOCABULARY.index(END),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).float().eval()
