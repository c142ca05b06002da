"""Many clients at once: no answer is wrong, lost or somebody else's, and memory stays where it is."""

import pytest

from tests.serve.load import run


@pytest.mark.slow
def test_under_load_every_answer_is_right():
    found = run(clients=50, minutes=5)
    print(found)
    assert (found["wrong"], found["mixed"], found["lost"]) == (0, 0, 0), found["faults"]
    assert found["unfinished"] == found["still_waiting"] == 0
    assert min(found["counts"][kind] for kind in ("good", "stream", "bad", "left", "busy", "burst")) > 10
    early, late = found["memory_mib"]
    assert late < 1.2 * early + 100
