"""`limbeck check`: what meets the laws passes, and each law is broken once, with the sentence that says where."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_plugins import PLUGINS

from limbeck import METHODS, UserError
from limbeck.cli.main import main
from limbeck.laws import METHOD_LAWS, NETWORK_LAWS, READER_LAWS, SELECTOR_LAWS
from limbeck.laws.check import check, find_kind


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what is imported from it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("plug", None)


def write(text: str = PLUGINS) -> None:
    Path("plug.py").write_text(text)


LAWS: dict[str, tuple[Any, ...]] = {"METHOD": METHOD_LAWS, "Net": NETWORK_LAWS, "select": SELECTOR_LAWS}


@pytest.mark.parametrize("name", LAWS)
def test_what_meets_the_laws_passes(name: str) -> None:
    write()
    outcomes = list(check(f"plug:{name}"))
    assert [outcome.text for outcome in outcomes if outcome.status != "passed"] == []
    assert len(outcomes) == len(LAWS[name])


BROKEN = {
    "no help": ("METHOD", '    """Outer steps."""\n', "", "the option 'iterations' has no text below it"),
    "taken name": ("METHOD", "iterations", "seed", "'seed' is an option of every job"),
    "no default": ("METHOD", "iterations: int = 2", "iterations: int", "the option 'iterations' has no default"),
    "lax options": (
        "METHOD",
        "class Config(MethodConfig):\n",
        'class Config(MethodConfig):\n    model_config = {"extra": "ignore"}\n',
        "an unknown option is accepted",
    ),
    "unstable resolve": ("METHOD", "config.lr_img or 0.1 *", "(config.lr_img or 0) +", "are resolved to others"),
    "unbalanced": ("METHOD", "    mean =", "    synthetic.labels[:] = 0\n    mean =", r"images per class: \[20, 0, 0"),
    "not finite": ("METHOD", "    mean =", "    synthetic.images.data[0] = float('nan')\n    mean =", "not finite"),
    "other learns": ("METHOD", 'plan, resolve, learns=("images",)', "plan, resolve", "the set learns"),
    "not stepped": (
        "METHOD",
        "SGD([synthetic.images]",
        "SGD([synthetic.images.detach().clone()]",
        "0 optimisers step 'images'",
    ),
    "global generator": ("METHOD", 'generator=make_generator(seed, "weights", step)', "", "give .* and|torch's global"),
    "numpy": ("METHOD", "        return (w", "        import numpy; numpy.random.rand()\n        return (w", "NumPy"),
    "python": (
        "METHOD",
        "        return (w",
        "        import random; random.random()\n        return (w",
        "module random",
    ),
    "counter": ("METHOD", "        return (w", "        mean.add_(1)\n        return (w", "two calls at one step give"),
    "changes set": (
        "METHOD",
        "        return (w",
        "        synthetic.log_lr.data += 1\n        return (w",
        "changes 'log_lr' of the set",
    ),
    "changes data": (
        "METHOD",
        "        return (w",
        "        inputs.task.train[0][0] = 0\n        return (w",
        "changes the real images",
    ),
    "not a scalar": ("METHOD", ".square().sum()", ".square()", "has the shape"),
    "no gradient": ("METHOD", ".square().sum()", ".square().sum() * 0", "the gradient of 'images' is 0"),
    "wrong gradient": (
        "METHOD",
        "synthetic.images.mean(0)",
        "(2 * synthetic.images - synthetic.images.detach()).mean(0)",
        "the gradient says .* the objective changes by .*exact_gradient=False",
    ),
    "code of the user": ("METHOD", "mean(0) - mean)", "mean(0) - maen)", "NameError in plug.py, line .*'maen'"),
    "wrong shape": (
        "Net",
        "return self.classifier(self.body(images))",
        "return self.body(images)",
        "has to return logits of shape",
    ),
    "dropout": ("Net", "self.body(images))", "nn.functional.dropout(self.body(images)))", "is random"),
    "constant": ("Net", "self.body(images))", "0 * self.body(images))", "two different images are the same"),
    "detached": (
        "Net",
        "self.body(images))",
        "self.body(images)) - 0.5 * self.classifier(self.body(images)).detach()",
        "they differ by",
    ),
    "too small": ("Net", "channels, 4, 3)", "channels, 4, 30)", "cannot be"),
    "twice": ("select", "return order[:count]", "return order[:1].repeat(count)", "a row twice"),
    "no such row": ("select", "return order[:count]", "return order[:count] + 5", "a row that does not exist"),
    "too many": ("select", "return order[:count]", "return order", "it returns the shape"),
    "a list": ("select", "return order[:count]", "return order[:count].tolist()", "a list"),
    "no seed": ("select", ', generator=make_generator(seed, "own")', "", "torch's global generator|two calls give"),
    "sorts in place": ("select", "return order", "features[0] = 0\n    return order", "it changes the features"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_law_is_said_with_its_place(case: str) -> None:
    name, before, after, sentence = BROKEN[case]
    assert before in PLUGINS
    write(PLUGINS.replace(before, after))
    failures = [outcome.reason for outcome in check(f"plug:{name}") if outcome.status == "failed"]
    assert failures
    for reason in failures:
        assert "\n" not in reason
    assert any(re.search(sentence, reason) for reason in failures), failures


BROKEN_READERS = {
    "any folder": ("return any(", "return True or any(", "it recognises an empty folder"),
    "no folder": ("return any(", "return False and any(", "it does not recognise photos.raw"),
    "no train": ('{"train": images}', '{"test": images}', "there is no split 'train', but test"),
    "fewer labels": ("np.arange(len(images))", "np.arange(len(images) - 1)", "'train' has 90 images and 89 labels"),
    "random": (".reshape(-1, 8, 8)", ".reshape(-1, 8, 8) // next(COUNT)", "images of 'train' differ between two reads"),
    "one class": ("% 3", "% 1", "class"),
}


def write_pixels() -> None:
    Path("photos.raw").write_bytes(bytes(range(1, 181)) * 32)


def test_a_reader_that_meets_the_laws_passes() -> None:
    write()
    write_pixels()
    assert [outcome.text for outcome in check("plug:READER", "photos.raw") if outcome.status != "passed"] == []
    np.savez("ours.npz", train_images=np.zeros((60, 8, 8), np.uint8), train_labels=np.arange(60) % 3)
    outcomes = list(check("limbeck.data.readers.npz:READER", "ours.npz"))
    assert [outcome.status for outcome in outcomes] == ["passed"] * len(READER_LAWS)


@pytest.mark.parametrize("case", BROKEN_READERS)
def test_a_broken_law_of_readers_is_said(case: str) -> None:
    before, after, sentence = BROKEN_READERS[case]
    assert before in PLUGINS
    write("import itertools\nCOUNT = itertools.count(1)\n" + PLUGINS.replace(before, after))
    write_pixels()
    failures = [outcome.reason for outcome in check("plug:READER", "photos.raw") if outcome.status == "failed"]
    assert any(sentence in reason for reason in failures), failures


def test_a_reader_needs_data() -> None:
    write()
    with pytest.raises(UserError, match="a reader is checked on data of yours: limbeck check plug:READER PATH"):
        list(check("plug:READER"))


def test_an_approximate_gradient_is_declared() -> None:
    text = PLUGINS.replace("synthetic.images.mean(0)", "(2 * synthetic.images - synthetic.images.detach()).mean(0)")
    write(text.replace('learns=("images",)', 'learns=("images",), exact_gradient=False'))
    skipped = [outcome.reason for outcome in check("plug:METHOD") if outcome.status != "passed"]
    assert skipped == ["the method says that its gradient is approximate"]
    assert [name for name, method in METHODS.items() if not method.exact_gradient] == ["tesla", "rat-bptt"]


def test_limbecks_own_are_checked_by_name() -> None:
    assert find_kind("mct") == "method"
    assert find_kind("vgg11") == "network"
    assert find_kind("herding") == "method"
    assert find_kind("limbeck.select:herding") == "selector"
    assert find_kind("timm:resnet18") == "network"
    for name in ("dm", "mlp", "limbeck.select:herding"):
        assert all(outcome.status == "passed" for outcome in check(name))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("plug:METHD", "plug has no 'METHD'; did you mean METHOD"),
        ("plg:METHOD", "neither in this folder nor installed"),
        ("plug:NUMBER", "is a int; it has to be a Method, a Reader, a function"),
        ("lenett", "there is nothing called 'lenett'; did you mean lenet"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_sentence(name: str, sentence: str) -> None:
    write()
    with pytest.raises(UserError, match=sentence) as refusal:
        list(check(name))
    assert len(str(refusal.value)) <= 300


def test_the_command_prints_a_line_a_law_and_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    write(PLUGINS.replace("return order[:count]", "return order"))

    def run(*words: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["check", *words])
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    status, out, err = run("plug:select")
    assert status == 2
    assert len(out.splitlines()) == len(SELECTOR_LAWS)
    assert out.startswith("failed  it returns `count` different rows")
    assert "plug:select breaks" in err
    status, out, _ = run("plug:select", "--json")
    assert status == 2
    assert json.loads(out)["outcomes"][0]["status"] == "failed"
    assert run("plug:Net", "digits", "--resize", "12")[0] == 0
    status, out, _ = run("limbeck.select:herding", "--json")
    assert status == 0
    assert {outcome["status"] for outcome in json.loads(out)["outcomes"]} == {"passed"}
