"""Nothing that a file holds is run, nothing is unpacked into folders, and pages load nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "limbeck"
FORBIDDEN = {
    *("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"),
    *("yaml.load", "yaml.unsafe_load", "joblib.load", "os.system", "os.popen", "shutil.unpack_archive"),
}
METHODS = {"extractall", "extract"}
"""Of archives: they write where names inside the archive say."""

REQUIRED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
"""What a call has to say; numpy's default is what it has to."""

MODULES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_that_a_file_holds_is_run(module: Path) -> None:
    for call in (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        assert name not in FORBIDDEN, f"line {call.lineno}"
        assert name.split(".")[-1] not in METHODS, f"line {call.lineno}"
        if name in REQUIRED:
            keyword, value = REQUIRED[name]
            values = [ast.literal_eval(word.value) for word in call.keywords if word.arg == keyword]
            assert values == [value] or (name == "np.load" and not values), f"line {call.lineno}"


def test_pages_load_nothing() -> None:
    """The policy of a page forbids it, and no template has an address of anything."""
    templates = SOURCE / "report" / "templates"
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{{ digest }}'"
    assert f'content="{policy}"' in (templates / "base.html").read_text()
    for template in templates.iterdir():
        text = template.read_text()
        assert "//" not in re.sub(r"(^|\s)// .*$", "", text, flags=re.MULTILINE), template  # but for comments
        assert text.count("<script") == (template.name == "base.html"), "one script, which the policy knows"
        assert "@import" not in text
