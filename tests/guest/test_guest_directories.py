# SPDX-License-Identifier: Apache-2.0
"""Large directories, read while entries come and go."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from probe import Step
from shares import Place

pytestmark = pytest.mark.guest

ENTRIES = 5000


@pytest.fixture
def large(place: Place) -> Place:
    """A place with many files that stay, and as many again that a test may take away."""
    for number in range(ENTRIES):
        os.close(os.open(place.host / f"stays-{number:05}", os.O_CREAT | os.O_WRONLY, 0o644))
    for number in range(0, ENTRIES, 2):
        os.close(os.open(place.host / f"goes-{number:05}", os.O_CREAT | os.O_WRONLY, 0o644))
    return place


def listed(names: object) -> Counter[str]:
    assert isinstance(names, list)
    return Counter(os.fsdecode(name) for name in names)


def test_every_entry_is_listed_once(large: Place) -> None:
    names = listed(large.do(("walk", ".", 4096)))
    assert names == Counter([".", "..", *os.listdir(large.host)])
    assert large.output("ls | wc -l; ls -l | wc -l").split() == [
        str(ENTRIES * 3 // 2),
        str(ENTRIES * 3 // 2 + 1),
    ]


@pytest.mark.parametrize(("size", "turnover"), [(1024, 20), (32768, 120)])
def test_what_stays_is_listed_once_while_the_host_adds_and_removes(
    large: Place, size: int, turnover: int
) -> None:
    """`size`: of one system call of the listing; after each, so many entries come, and as many go."""
    added: list[str] = []
    removed: list[str] = []
    gone = iter(sorted(name for name in os.listdir(large.host) if name.startswith("goes")))

    def churn() -> None:
        for _ in range(turnover):
            added.append(f"comes-{len(added):06}")
            os.close(os.open(large.host / added[-1], os.O_CREAT | os.O_WRONLY, 0o644))
            for name in gone:
                (large.host / name).unlink()
                removed.append(name)
                break

    names = listed(large.do(("walk", ".", size, "churn"), answers={"churn": churn}))
    check(names, added, removed)


def test_what_stays_is_listed_once_while_the_guest_adds_and_removes(large: Place) -> None:
    added = [f"comes-{number:05}" for number in range(1500)]
    removed = [f"goes-{number:05}" for number in range(0, ENTRIES, 2)]
    steps: list[Step] = [("open", "d", ".", "r,directory")]
    for number in range(1000):  # more than it takes to the end
        steps.append(("next", "d", 2048))
        for name in added[number * 5 :][:5]:
            steps.append(("symlink", "x", name))
        for name in removed[number * 5 :][:5]:
            steps.append(("unlink", name))
    values = large.steps(*steps)
    chunks = [value for step, value in zip(steps, values, strict=True) if step[0] == "next"]
    assert [value for step, value in zip(steps, values, strict=True) if step[0] != "next" and value] == []
    assert chunks[-1] == []
    rounds = chunks.index([])
    names = listed([name for chunk in chunks[:rounds] if isinstance(chunk, list) for name in chunk])
    assert not set(os.listdir(large.host)) & set(removed)
    check(names, added[: rounds * 5], removed[: rounds * 5])


def check(names: Counter[str], added: list[str], removed: list[str]) -> None:
    """Each entry that was there all the time is listed exactly once, any other at most once, and nothing else."""
    assert len(added) > ENTRIES // 10
    assert len(removed) > ENTRIES // 10
    stays = {".", ".."} | {f"stays-{number:05}" for number in range(ENTRIES)}
    stays |= {f"goes-{number:05}" for number in range(0, ENTRIES, 2)} - set(removed)
    assert {name for name in stays if names[name] != 1} == set()
    assert {name for name, times in names.items() if times > 1} == set()
    assert set(names) - stays <= set(added) | set(removed)


def test_a_directory_that_is_emptied_while_it_is_listed_ends(large: Place) -> None:
    names = listed(
        large.do(
            ("walk", ".", 1024, "empty"),
            answers={"empty": lambda: [os.unlink(entry) for entry in os.scandir(large.host)]},
        )
    )
    assert max(names.values()) == 1
    assert os.listdir(large.host) == []
    assert large.output("ls -a") == ".\n.."


def test_removing_a_tree_leaves_nothing(place: Place) -> None:
    for number in range(500):
        (place.host / "sub" / str(number % 20) / "sub" / str(number)).mkdir(parents=True)
        (place.host / "sub" / f"file-{number}").write_text("x")
    place.output("rm -rf sub")
    assert os.listdir(place.host) == []
