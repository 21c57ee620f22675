"""The shape of the code: imports run one way, heavy libraries have one door, parts stay small."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A module imports only what stands above it in its list.
FACTORY = [
    "factory", "errors", "files", "schemas", "sections", "decoding", "capture", "beam",
    "judgement", "launch", "training", "evaluation", "manifest", "reading", "records", "shards",
    "progress", "prompting",
    "prompting.turns", "sources", "exchange", "exchange.candidates", "models",
    "prompting.encoding", "prompting.tokenizing", "prompting.tokens", "prompting.template",
    "architecture", "matching",
    "prompting.chat", "prompting.prompts", "distributions", "distributions.logits",
    "distributions.toplists", "query", "query.catalog", "query.fence", "staging", "query.looks",
    "query.tables", "looking", "looking.panels", "overlap", "metrics", "programs", "cards",
    "cards.markdown",
    "engines.base", "engines.conversion", "engines.ctranslate2", "engines.steering",
    "engines.decoder", "engines.drawing", "engines.scoring", "engines.transformers",
    "engines.rollouts", "engines.arrays", "engines.vllm", "engines", "engines.choice",
    "judging",
    "judging.expressions",
    "judging.templates", "judging.quantiles", "judging.rules", "judging.selection",
    "judging.verdicts", "samples", "workers", "generation", "generation.placement",
    "generation.queue", "generation.replicas", "generation.sitting", "generation.flight",
    "generation.responses", "generation.hypotheses", "distributions.precision",
    "generation.recheck", "generation.generate", "generation.score", "judging.families",
    "judging.pool", "judging.texts", "judging.ngrams", "judging.minhash", "judging.language",
    "judging.similarity", "judging.agreement", "judging.near", "judging.protected",
    "judging.reverse", "judging.signals", "judging.judge", "judging.whatif", "inheritance",
    "steps", "exchange.importing", "looking.training", "looking.status", "looking.viewing",
    "looking.sample", "looking.diff", "verify", "looking.comparing", "looking.sheets",
    "cards.figures",
    "cards.blocks", "cards.mismatches", "cards.start", "cards.card", "cards.model",
    "reporting", "reporting.figures",
    "reporting.charts", "reporting.sections", "reporting.page", "exchange.exporting",
    "delivery", "doctor",
    "starting", "looking.console", "checking", "pilot", "pipeline", "commands", "commands.answers",
    "commands.options", "commands.starting", "commands.making", "commands.looking",
    "commands.exchanging", "commands.showing", "cli",
]  # fmt: skip

STUDENT = [
    "student",
    "entry", "schedule", "settings", "engine", "logprobs", "divergences", "objectives", "scores",
    "states", "checkpoints", "log", "board", "watch",
    "copying", "initialise", "tokenizers", "rows", "dataset", "difficulty",
    "batches", "packing", "chunks", "portions", "course", "feed", "plan", "prepare", "lesson",
    "held_out", "validation", "alarm", "trainer", "train",
    "systems", "decode", "evaluate", "generation", "writers", "likeness", "evidence", "delivery",
]  # fmt: skip

# What the student may know of the factory: its plumbing, and what both sides must agree on.
SHARED = {
    "errors", "files", "schemas", "decoding", "models", "manifest", "launch", "training",
    "architecture", "matching", "records", "shards",
    "progress", "prompting.tokenizing", "prompting.prompts", "query.catalog", "query.fence",
    "staging", "engines", "engines.base", "engines.choice", "engines.conversion",
    "engines.ctranslate2", "engines.decoder", "generation.responses", "metrics", "evaluation",
    "programs",
}  # fmt: skip

ONE_DOOR = {"vllm", "ctranslate2", "deepspeed"}
FILE_LINES = 400
FUNCTION_LINES = 40
MEDIAN_LINES = 10
PRINTERS = {"factory/looking/console.py"}
PROCESS = 'if __name__ == "__main__":'

FILES = sorted([*ROOT.glob("factory/**/*.py"), *ROOT.glob("student/**/*.py")])
OURS = sorted([*FILES, *ROOT.glob("manifests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])


def relative(path):
    return path.relative_to(ROOT).as_posix()


def module_name(path):
    """`factory/engines/base.py` is `factory.engines.base`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path, known):
    """Every module a file imports, anywhere in it; `from package import module` is the module."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
    return found


def functions():
    for path in OURS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def lines_of_code(function):
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def order(package, names):
    return [package if name == package else f"{package}.{name}" for name in names]


LAYERS = {"factory": order("factory", FACTORY), "student": order("student", STUDENT)}
KNOWN = {module_name(path) for path in FILES}


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_has_its_layer(package):
    present = {name for name in KNOWN if name.split(".")[0] == package}
    assert sorted(LAYERS[package]) == sorted(present)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_run_one_way(path):
    name = module_name(path)
    layers = LAYERS[name.split(".")[0]]
    allowed = set(layers[: layers.index(name)])
    if name.startswith("student"):
        allowed |= {f"factory.{module}" for module in SHARED}
    inner = {m for m in imported(path, KNOWN) if m.split(".")[0] in LAYERS}
    assert inner <= allowed, f"{name} imports {sorted(inner - allowed)}"


def test_heavy_engines_have_one_door():
    doors = defaultdict(set)
    for path in FILES:
        for module in imported(path, KNOWN):
            doors[module.split(".")[0]].add(relative(path))
    crowded = {name: doors[name] for name in ONE_DOOR if len(doors[name]) > 1}
    assert not crowded
    assert doors["vllm"] == {"factory/engines/vllm.py"}
    assert doors["ctranslate2"] == {"factory/engines/ctranslate2.py"}
    assert doors["deepspeed"] == {"student/engine.py"}


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


def test_files_of_tests_have_names_of_their_own():
    """pytest collects the first of two alike, and fails on the second."""
    names = [path.name for path in ROOT.glob("tests/**/test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_functions_are_short():
    lengths = [(lines_of_code(node), relative(path), node.name) for path, node in functions()]
    assert [entry for entry in lengths if entry[0] > FUNCTION_LINES] == []
    assert sorted(lengths)[len(lengths) // 2][0] <= MEDIAN_LINES


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_no_broad_except(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert not re.search(r"\b(everything|Exception|BaseException)\b", caught), (
                f"{relative(path)}:{node.lineno}: catches {caught}"
            )


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_the_library_does_not_print(path):
    prints = relative(path) in PRINTERS or "/commands/" in relative(path)
    if prints or PROCESS in path.read_text(encoding="utf-8"):
        return
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    printing = [call.lineno for call in calls if ast.unparse(call.func) in ("print", "typer.echo")]
    assert printing == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(tree(path))


def test_the_rules_can_fail(tmp_path):
    """The checks themselves: an import hidden in a function and a broad except are seen."""
    sample = tmp_path / "sample.py"
    sample.write_text("def f():\n    from factory import cli\n    import vllm.version\n")
    assert imported(sample, KNOWN) == {"factory.cli", "vllm.version"}
    function = ast.parse('def f():\n    """Doc."""\n    a = 1\n\n    return a\n').body[0]
    assert lines_of_code(function) == 3
