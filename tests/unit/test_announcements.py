"""A job begins by saying what was done to the data; long lists stay readable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import MINIMAL, distill_minimal

import limbeck
from limbeck.data import ImageData, Split, load_data
from limbeck.task import Task, announce_task

SMALL: dict[str, Any] = {"model": MINIMAL["model"], "expert": MINIMAL["expert"], "num_experts": 1}


def note_texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in events if event["event"] == "note"]


def test_a_job_begins_with_the_notes_of_its_data(tmp_path: Path) -> None:
    expected = [f"digits: {note}" for note in load_data("digits").notes]
    assert len(expected) == 2
    events: list[dict[str, Any]] = []
    distill_minimal(tmp_path / "run", listen=events.append)
    assert [text for text in note_texts(events) if text in expected] == expected, "once"
    assert note_texts(events[:2]) == expected
    events.clear()
    limbeck.train_experts("digits", out=tmp_path / "store", listen=events.append, **SMALL)
    assert note_texts(events[:2]) == expected
    events.clear()
    limbeck.evaluate(tmp_path / "run", num_networks=1, epochs=1, listen=events.append)
    assert [text for text in note_texts(events) if text in expected] == expected, "once for both sets"
    assert note_texts(events[:2]) == expected


def test_a_long_list_of_notes_is_cut(task: Task) -> None:
    notes = ("x" * 5000, *(f"note {number}" for number in range(29)))
    events: list[dict[str, Any]] = []
    announce_task(replace(task, data=replace(task.data, notes=notes)), events.append)
    texts = note_texts(events)[:11]
    assert texts[0] == f"digits: {'x' * 300}..."
    assert texts[1:10] == [f"digits: note {number}" for number in range(9)]
    assert texts[10] == "digits: 20 more notes, which 'limbeck info' on it shows"
    assert not any("note 9" in text for text in note_texts(events))
    events.clear()
    announce_task(replace(task, data=replace(task.data, notes=())), events.append)
    assert not any("digits" in text for text in note_texts(events))


@pytest.mark.parametrize(("fill", "ipc"), [("repeat", 40), ("none", 1), ("repeat", 1)])
def test_classes_that_are_filled_up_are_named(digits: ImageData, fill: Any, ipc: int, tmp_path: Path) -> None:
    keep = digits.train.labels != 3
    keep[(~keep).nonzero()[:2, 0]] = True
    scarce = replace(digits, train=Split(digits.train.images[keep], digits.train.labels[keep]))
    events: list[dict[str, Any]] = []
    quick = {"eval": MINIMAL["eval"], "model": MINIMAL["model"], "validate_epochs": 1, "validate_networks": 1}
    limbeck.distill(scarce, method="random", ipc=ipc, fill=fill, out=tmp_path / "run", listen=events.append, **quick)
    texts = [text for text in note_texts(events) if "filled up" in text]
    if ipc == 1:
        assert texts == []
    else:
        (text,) = texts
        assert text.startswith("classes with fewer than 40 training images are filled up (--fill repeat): ")
        assert "3 (2)" in text
