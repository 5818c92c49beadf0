"""What updates saw of tokens: kept, found again, cut back."""

import numpy as np
import pytest

from agent_r1.config import Config
from agent_r1.monitor.run import RunFolder
from agent_r1.monitor.tokens import TOKENS_FILE, TokenFile, TokenFinder, TokenRecords


def records(**advantages):
    numbers = np.array([one for some in advantages.values() for one in some], np.float32)
    counts = [len(some) for some in advantages.values()]
    return TokenRecords(list(advantages), counts, numbers, numbers / 2, numbers * 0 + 1)


def listed(found):
    return {name: values.tolist() for name, values in found.items()}


def test_a_row_is_found_by_its_id_and_the_steps_it_may_be_of(tmp_path):
    file = TokenFile(tmp_path)
    for step in (1, 2, 3):
        file.append([(step, records(**{f"t{step}-{n}": [n, -n] for n in range(400)}))])
    file.close()
    finder = TokenFinder(tmp_path)
    expected = {"advantages": [340, -340], "differences": [170, -170], "entropies": [1, 1]}
    assert listed(finder.find("t2-340", 2, 2)) == expected
    assert listed(finder.find("t2-340", 1, 3)) == expected
    assert finder.find("t2-340", 3, 3) is None and finder.find("t2-340", 1, 1) is None
    assert TokenFinder(tmp_path / "nowhere").find("t2-340", 2, 2) is None


def test_an_id_that_is_no_text_is_found(tmp_path):
    file = TokenFile(tmp_path)
    file.append([(1, records(**{"half of a pair \ud800": [1.0]}))])
    file.close()
    assert TokenFinder(tmp_path).find("half of a pair \ud800", 1, 1)["advantages"] == [1.0]


def test_a_finder_follows_a_file_that_grows_and_is_cut_back(tmp_path):
    file, finder = TokenFile(tmp_path), TokenFinder(tmp_path)
    file.append([(1, records(a=[1.0]))])
    assert finder.find("a", 1, 1)["advantages"] == [1.0]
    file.append([(2, records(b=[2.0], c=[0.5] * 3000))])
    assert finder.find("b", 2, 2)["advantages"] == [2.0]
    file.rewind(1)
    assert finder.find("b", 2, 2) is None
    file.append([(2, records(d=[1.5] * 4000, b=[3.0]))])
    assert finder.find("b", 2, 2)["advantages"] == [3.0]
    assert finder.find("a", 1, 1)["advantages"] == [1.0]
    file.close()


def test_a_resumed_run_keeps_what_is_before_its_checkpoint(tmp_path):
    with RunFolder(tmp_path, Config(), token_file=True) as run:
        for step in (1, 2):
            run.store_tokens(records(same=[step]), step=step)
    with RunFolder(tmp_path, Config(), token_file=True) as run:
        run.rewind(1)
        run.store_tokens(records(same=[7.0]), step=2)
        run.store_tokens(records(), step=3)
    finder = TokenFinder(tmp_path)
    assert [finder.find("same", at, at)["advantages"] for at in (1, 2)] == [[1.0], [7.0]]


@pytest.mark.parametrize("kept", [True, False])
def test_nothing_is_written_where_it_is_not_asked_for(tmp_path, kept):
    with RunFolder(tmp_path, Config(), token_file=kept) as run:
        run.store_tokens(records(a=[1.0]), step=1)
    assert (tmp_path / TOKENS_FILE).exists() == kept
