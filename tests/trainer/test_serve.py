"""``agent-r1 serve``: a policy that any OpenAI client can ask, if it has the key."""

import os
import re
import signal
import subprocess
import sys

import pytest

from agent_r1.config.load import load_config
from agent_r1.errors import ConfigError
from agent_r1.testing import byte_tokenizer, tiny_model
from agent_r1.trainer.serve import serve

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def address(folder):
    """The address of a server of its own process, with the key ``secret``."""
    command = [sys.executable, "-m", "agent_r1", "serve", "--checkpoint", str(folder)]
    command += ["--port", "0", "--max-concurrency", "4", "data.max_response_length=24"]
    command += ["trainer.device=cpu"]
    environment = {**os.environ, "AGENT_R1_SERVE_TOKEN": "secret", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"serving (\S+)", line):
                yield found[1]
                break
        else:
            raise AssertionError("it never served")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.slow
def test_a_policy_is_served_with_a_key_and_a_limit_of_tokens(address):
    messages = [{"role": "user", "content": "hello"}]
    with openai.OpenAI(base_url=address, api_key="secret", max_retries=0) as client:
        name = client.models.list().data[0].id

        def ask(**options):
            return client.chat.completions.create(model=name, messages=messages, **options)

        greedy = [ask(temperature=0).choices[0].message.content for _ in range(2)]
        assert greedy[0] == greedy[1]
        assert ask(temperature=0, max_tokens=5).usage.completion_tokens <= 5
        assert ask(temperature=0, max_tokens=5000).usage.completion_tokens <= 24
        pieces = ask(temperature=0, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        assert streamed == greedy[0]
    for key in ("guess", "secret2"):
        with (
            openai.OpenAI(base_url=address, api_key=key, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.chat.completions.create(model=name, messages=messages)


def test_other_machines_are_let_in_with_a_token_only(folder):
    config = load_config(None, [f"actor_rollout_ref.model.path={folder}"], environ={})
    with pytest.raises(ConfigError, match="AGENT_R1_SERVE_TOKEN"):
        serve(config, host="0.0.0.0")
    served = ["actor_rollout_ref.rollout.name=openai"]
    served += ["actor_rollout_ref.rollout.server.url=http://127.0.0.1:1"]
    with pytest.raises(ConfigError, match="is served already"):
        serve(load_config(None, served, environ={}))
