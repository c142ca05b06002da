"""Worker processes: results with their tasks, errors passed on, one that dies is said."""

import os

import pytest

from lgjax.data.workers import results

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


def by_zero(number: int) -> float:
    return 1 / number


def die(number: int) -> int:
    os._exit(number)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_result_comes_with_its_task(workers):
    offset = {"of": 10}  # held by the function, not sent
    with results(lambda number: number + offset["of"], range(20), workers) as found:
        assert sorted(found) == [(number, number + 10) for number in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_function_are_passed_on(workers):
    with pytest.raises(ZeroDivisionError), results(by_zero, [1, 0], workers) as found:
        list(found)


def test_a_worker_that_dies_is_said():
    with pytest.raises(RuntimeError, match="a worker process was killed"), results(die, [7, 8], 2) as found:
        list(found)
