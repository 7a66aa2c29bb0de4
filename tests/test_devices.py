from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from pad.devices import LEAST_IN_LANE, in_parallel, lanes

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_lanes_are_at_most_one_a_thread_and_none_is_nearly_empty(threads: int) -> None:
    for batch_size in (1, LEAST_IN_LANE, 2 * LEAST_IN_LANE, 64, 1000):
        found = lanes(CPU, batch_size)
        assert 1 <= found <= threads
        assert found == 1 or batch_size // found >= LEAST_IN_LANE
        assert found == threads or batch_size // (found + 1) < LEAST_IN_LANE
        assert lanes(torch.device("cuda"), batch_size) == 1


@pytest.mark.parametrize("n", [0, 1, 2, 20])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_the_threads_are_shared_out(threads: int, workers: int, n: int) -> None:
    seen = []

    def double(item: int) -> int:
        seen.append((torch.get_num_threads(), threading.get_ident()))
        time.sleep(0.003 if item % 2 else 0)  # let the next one overtake
        return 2 * item

    assert list(in_parallel(double, range(n), workers)) == [2 * i for i in range(n)]
    alone = workers == 1 or n < 2
    assert {count for count, _ in seen} == (
        {threads if alone else max(1, threads // workers)} if n else set()
    )
    assert (threading.get_ident() in {thread for _, thread in seen}) == (alone and n > 0)
    assert len({thread for _, thread in seen}) <= workers


def test_the_number_of_threads_stays_as_it_was_also_in_new_threads(threads: int) -> None:
    assert sum(in_parallel(int, range(10), 2)) == 45
    assert torch.get_num_threads() == threads
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [threads]


def test_it_runs_only_a_little_ahead_and_stops_with_its_consumer() -> None:
    begun = []
    results = in_parallel(begun.append, range(100), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4


def test_errors_reach_the_consumer_in_their_place(threads: int) -> None:
    results = in_parallel(lambda item: 1 / (3 - item), range(10), 2)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == threads
