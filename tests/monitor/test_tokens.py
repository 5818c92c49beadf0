"""What updates saw of tokens: kept, found again, cut back."""

import numpy as np
import pytest

from agent_r1.config import Config
from agent_r1.monitor.run import RunFolder
from agent_r1.monitor.tokens import TOKENS_FILE, TokenFile, TokenFinder, TokenRecord


def record(name, *advantages):
    numbers = np.array(advantages, np.float32)
    return TokenRecord(name, numbers, numbers / 2, numbers * 0 + 1)


def listed(found):
    return {name: values.tolist() for name, values in found.items()}


def test_a_row_is_found_by_its_id_and_the_steps_it_may_be_of(tmp_path):
    file = TokenFile(tmp_path)
    for step in (1, 2, 3):
        file.append([(step, record(f"t{step}-{n}", n, -n)) for n in range(150)])
    file.close()
    finder = TokenFinder(tmp_path)
    expected = {"advantages": [140, -140], "differences": [70, -70], "entropies": [1, 1]}
    assert listed(finder.find("t2-140", 2, 2)) == expected
    assert listed(finder.find("t2-140", 1, 3)) == expected
    assert finder.find("t2-140", 3, 3) is None and finder.find("t2-140", 1, 1) is None
    assert TokenFinder(tmp_path / "nowhere").find("t2-140", 2, 2) is None


def test_a_finder_follows_a_file_that_grows_and_is_cut_back(tmp_path):
    file, finder = TokenFile(tmp_path), TokenFinder(tmp_path)
    file.append([(1, record("a", 1.0))])
    assert finder.find("a", 1, 1)["advantages"] == [1.0]
    file.append([(2, record("b", 2.0)), (2, record("c", *[0.5] * 3000))])
    assert finder.find("b", 2, 2)["advantages"] == [2.0]
    file.rewind(1)
    assert finder.find("b", 2, 2) is None
    file.append([(2, record("d", *[1.5] * 4000)), (2, record("b", 3.0))])
    assert finder.find("b", 2, 2)["advantages"] == [3.0]
    assert finder.find("a", 1, 1)["advantages"] == [1.0]
    file.close()


def test_a_resumed_run_keeps_what_is_before_its_checkpoint(tmp_path):
    with RunFolder(tmp_path, Config(), token_file=True) as run:
        for step in (1, 2):
            run.store_tokens([record("same", step)], step=step)
    with RunFolder(tmp_path, Config(), token_file=True) as run:
        run.rewind(1)
        run.store_tokens([record("same", 7.0)], step=2)
        run.store_tokens([], step=3)
    finder = TokenFinder(tmp_path)
    assert [finder.find("same", at, at)["advantages"] for at in (1, 2)] == [[1.0], [7.0]]


@pytest.mark.parametrize("kept", [True, False])
def test_nothing_is_written_where_it_is_not_asked_for(tmp_path, kept):
    with RunFolder(tmp_path, Config(), token_file=kept) as run:
        run.store_tokens([record("a", 1.0)], step=1)
    assert (tmp_path / TOKENS_FILE).exists() == kept
