import pytest

from core.errors import StageError
from core.train.ranks import read_ranks


def test_the_place_comes_from_torchruns_environment() -> None:
    ranks = read_ranks("cpu", 4, {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4"})
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (2, 4, False)
    assert read_ranks("cpu", 1, {}).is_main


@pytest.mark.parametrize(("planned", "environment"), [(2, {}), (1, {"WORLD_SIZE": "2"}), (8, {"WORLD_SIZE": "4"})])
def test_another_number_of_processes_than_planned_is_refused(planned: int, environment: dict[str, str]) -> None:
    found = environment.get("WORLD_SIZE", "1")
    with pytest.raises(StageError, match=rf"{found} training process\(es\) are running, the plan says {planned}"):
        read_ranks("cpu", planned, environment)


def test_alone_every_question_is_answered_at_once() -> None:
    ranks = read_ranks("cpu", 1, {})
    assert ranks.any(True, False) == (True, False)
    assert ranks.decided_by_main(lambda: "x") == "x"
    ranks.barrier()
    ranks.close()
