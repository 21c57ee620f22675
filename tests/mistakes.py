"""What users get wrong, as literal tables: the mistake, and what the one line must say of it."""

from __future__ import annotations

import gzip
from typing import Any

REMOVED = ...
STAGE = {"name": "gold", "data": "gold"}
STAGES = "student.stages"

Edits = dict[str, Any]

# name: (edits to the manifest, what the line begins with, words it holds)
MANIFESTS: dict[str, tuple[Edits, str, list[str]]] = {
    "unknown section": (
        {"generat": {}},
        "manifest.yaml generat:",
        ["unknown key", "did you mean 'generate'?"],
    ),
    "unknown key in a section": (
        {"generate.beam_widht": 4},
        "manifest.yaml generate.beam_widht:",
        ["unknown key", "did you mean 'beam_width'?"],
    ),
    "unknown key in a split": (
        {"data.train.sauce": "x"},
        "manifest.yaml data.train.sauce:",
        ["unknown key", "did you mean 'source'?"],
    ),
    "unknown key in a stage": (
        {"student.stages": [STAGE | {"lr": 1e-3}]},
        "manifest.yaml student.stages.0.lr:",
        ["unknown key"],
    ),
    "unknown objective": (
        {"student.stages": [STAGE | {"objective": {"backward_kl": 1.0}}]},
        "manifest.yaml student.stages.0.objective.backward_kl:",
        ["unknown key", "did you mean 'forward_kl'?"],
    ),
    "unknown key in lengths": (
        {"generate.max_new_tokens": {"ratoi": 2.0, "cap": 9}},
        "manifest.yaml generate.max_new_tokens.ratoi:",
        ["unknown key", "did you mean 'ratio'?"],
    ),
    "lengths without a cap": (
        {"generate.max_new_tokens": {"ratio": 2.0}},
        "manifest.yaml generate.max_new_tokens.cap:",
        ["is missing: add it"],
    ),
    "lengths of words": (
        {"generate.max_new_tokens": {"ratio": 2.0, "cap": "many"}},
        "manifest.yaml generate.max_new_tokens.cap: 'many':",
        ["valid integer"],
    ),
    "a limit of words": (
        {"generate.max_new_tokens": "many"},
        "manifest.yaml generate.max_new_tokens: 'many':",
        ["valid integer"],
    ),
    "text for a number": (
        {"seed": "seventeen"},
        "manifest.yaml seed: 'seventeen':",
        ["valid integer"],
    ),
    "a number for text": ({"name": 7}, "manifest.yaml name: 7:", ["valid string"]),
    "a list for a section": (
        {"teacher": ["x"]},
        "manifest.yaml teacher: ['x']:",
        ["valid dictionary"],
    ),
    "a name that is a path": ({"name": "a/b"}, "manifest.yaml name: 'a/b':", ["pattern"]),
    "data missing": ({"data": REMOVED}, "manifest.yaml data:", ["is missing: add it"]),
    "nothing to learn from": (
        {"data.train": REMOVED},
        "manifest.yaml data:",
        ["needs train or unlabeled"],
    ),
    "model missing": (
        {"teacher": {"engine": "vllm"}},
        "manifest.yaml teacher.model:",
        ["is missing: add it"],
    ),
    "neither teacher nor student": (
        {"teacher": REMOVED, "student": REMOVED},
        "manifest.yaml:",
        ["needs teacher, student, or both"],
    ),
    "unknown engine": (
        {"teacher.engine": "vlm"},
        "manifest.yaml teacher.engine: 'vlm':",
        ["'vllm', 'transformers' or 'ctranslate2'"],
    ),
    "k over the vocabulary": (
        {"logits.k": 5000},
        "logits.k: 5000:",
        ["is more than the teacher's vocabulary of 400: lower it"],
    ),
    "k without capture": (
        {"logits": {"capture": "none", "k": 4}, STAGES: [STAGE]},
        "manifest.yaml logits:",
        ["capture 'none' ignores k: remove it, or set capture to top_k or top_p"],
    ),
    "forward_kl without distributions": (
        {"logits": {"capture": "none"}},
        "manifest.yaml:",
        ["student.stages.pseudolabel", "forward_kl", "set logits.capture to top_k"],
    ),
    "objective without weight": (
        {STAGES: [STAGE | {"objective": {"ce": 0}}]},
        "manifest.yaml student.stages.0.objective:",
        ["needs a weight above 0"],
    ),
    "pseudolabels without a teacher": (
        {
            "teacher": REMOVED,
            "student.init": {"model": "m"},
            STAGES: [STAGE | {"data": "pseudolabels"}],
        },
        "manifest.yaml:",
        ["student.stages.gold: pseudolabels need a teacher"],
    ),
    "from_teacher without a teacher": (
        {"teacher": REMOVED, STAGES: [STAGE]},
        "manifest.yaml:",
        ["student.init.from_teacher needs a teacher"],
    ),
    "two ways to begin": (
        {"student.init": {"from_teacher": {"layers": 1}, "model": "m"}},
        "manifest.yaml student.init:",
        ["needs exactly one of from_teacher, model, config"],
    ),
    "a configuration of no type": (
        {"student.init": {"config": {"hidden_size": 8}}},
        "manifest.yaml student.init:",
        ["config needs model_type, such as llama"],
    ),
    "a stage twice": (
        {STAGES: [STAGE, STAGE]},
        "manifest.yaml student:",
        ["stage names must differ: gold stands twice"],
    ),
    "no stage": ({STAGES: []}, "manifest.yaml student.stages:", ["at least 1 item"]),
    "a zero learning rate": (
        {STAGES: [STAGE | {"learning_rate": 0}]},
        "manifest.yaml student.stages.0.learning_rate: 0:",
        ["greater than 0"],
    ),
    "unknown rule": (
        {"judge": {"rules": ["truncatd"]}},
        "judge.rules: 'truncatd':",
        ["is no rule: did you mean 'truncated'?"],
    ),
    "unknown parameter of a rule": (
        {"judge": {"rules": [{"length_ratio": {"mn": 0.5}}]}},
        "judge.rules.length_ratio.mn: 0.5:",
        ["is no parameter: did you mean 'min'?"],
    ),
    "a rule twice": (
        {"judge": {"rules": ["copy", "copy"]}},
        "judge.rules: 'copy':",
        ["stands twice: keep one"],
    ),
    "no reverse model": (
        {"judge": {"reverse": {"model": "./nowhere"}}},
        "judge.reverse.model:",
        ["holds no config.json"],
    ),
    "a reverse model without a tokenizer": (
        {"judge": {"reverse": {"model": "no-tokenizer"}}},
        "tokenizer:",
        ["no-tokenizer"],
    ),
    "a reverse template without a source": (
        {"judge": {"reverse": {"model": "{t5}", "template": "{text}"}}},
        "judge.reverse.template: '{text}':",
        ["{source}, and no other field"],
    ),
    "no glossary": (
        {"judge": {"glossary": "terms.tsv"}},
        "judge.glossary: '{cwd}/terms.tsv':",
        ["cannot be read: No such file"],
    ),
    "a glossary of other lines": (
        {"judge": {"glossary": "manifest.yaml"}},
        "{cwd}/manifest.yaml:1:",
        ["a source term, a tab, a target term"],
    ),
    "a pattern that is none": (
        {"judge": {"protect": ["x", "a("]}},
        "judge.protect.1: 'a(':",
        ["is no RE2 expression: missing )"],
    ),
    "gold fraction over one": (
        {"data.train.gold_fraction": 1.5},
        "manifest.yaml data.train.gold_fraction: 1.5:",
        ["less than or equal to 1"],
    ),
    "an id without a column file": (
        {"data.train.id": "key"},
        "manifest.yaml data.train:",
        ["id names a column: it needs path"],
    ),
    "template and chat": (
        {"prompt.chat": [{"role": "user", "content": "{source}"}]},
        "manifest.yaml prompt:",
        ["needs exactly one of template, chat, messages"],
    ),
    "prompt without the source": (
        {"prompt.template": "<s>Translate:<sep>"},
        "prompt:",
        ["does not use {source}: add it"],
    ),
    "prompt with an unknown field": (
        {"prompt.template": "<s>{sorce} {source}<sep>"},
        "{cwd}/corpus/train.en:1:",
        ["{sorce} is no field", "did you mean 'source'?"],
    ),
    "chat without a chat template": (
        {"prompt": {"chat": [{"role": "user", "content": "{source}"}]}},
        "prompt.chat:",
        ["the tokenizer has no chat template"],
    ),
    "teacher's folder missing": (
        {"teacher.model": "./no-model"},
        "teacher.model: '{cwd}/no-model':",
        ["holds no config.json: check the path of the model"],
    ),
    "teacher without a tokenizer": (
        {"teacher.model": "./no-tokenizer"},
        "tokenizer: '{cwd}/no-tokenizer':",
        ["cannot be loaded"],
    ),
    "teacher that is no text model": (
        {"teacher.model": "./no-vocabulary"},
        "teacher.model: '{cwd}/no-vocabulary':",
        ["names no vocab_size: not a text model"],
    ),
    "teacher's configuration is no JSON": (
        {"teacher.model": "./no-json"},
        "teacher.model: '{cwd}/no-json':",
        ["its config.json is not a JSON object: mend it"],
    ),
    "variable not set": (
        {"teacher.model": "${NO_SUCH_VARIABLE}/m"},
        "manifest.yaml teacher.model: '${NO_SUCH_VARIABLE}':",
        ["set the environment variable NO_SUCH_VARIABLE"],
    ),
    "candidates of no run": (
        {"candidates_from": "./nowhere"},
        "{cwd}/nowhere:",
        ["is not a run directory"],
    ),
}

# name: (what is set, what the line begins with, words it holds)
SETTINGS: dict[str, tuple[str, str, list[str]]] = {
    "--set without a value": (
        "generate.decoding",
        "--set: 'generate.decoding':",
        ["write it as section.key=value"],
    ),
    "--set into a missing entry": (
        f"{STAGES}.7.epochs=2",
        f"--set {STAGES}.7.epochs: '7':",
        ["the list has 2 entries, from 0"],
    ),
    "--set into a value": ("seed.x=2", "manifest.yaml seed:", ["valid integer"]),
    "--set of an unknown key": (
        "generate.beam_widht=2",
        "manifest.yaml generate.beam_widht:",
        ["did you mean 'beam_width'?"],
    ),
    "--set of bad YAML": ("logits.k=[1", "--set logits.k: '[1':", ["quote it"]),
    "--set of an empty part": (
        "generate..k=1",
        "--set: 'generate..k=1':",
        ["write it as section.key=value"],
    ),
}

# name: (files of the corpus, edits to the manifest, what the line begins with, words it holds)
SOURCES: dict[str, tuple[dict[str, bytes], Edits, str, list[str]]] = {
    "missing file": (
        {},
        {"data.train.source": "corpus/tarin.en"},
        "{cwd}/corpus/tarin.en:",
        ["is missing: check the path and data.root"],
    ),
    "a folder for a file": ({}, {"data.train.source": "corpus"}, "{cwd}/corpus:", ["directory"]),
    "empty data": (
        {"train.en": b"", "train.fr": b""},
        {},
        "data.train:",
        ["no usable row", "check the file"],
    ),
    "an empty test split": (
        {"test.en": b"", "test.fr": b""},
        {},
        "data.test:",
        ["no usable row", "check the file"],
    ),
    "lines out of step": (
        {"train.en": b"a\nb\nc\n", "train.fr": b"x\ny\n"},
        {},
        "{cwd}/corpus/train.en:3:",
        ["has no counterpart", "train.fr is shorter", "set data.bad_rows to set_aside"],
    ),
    "an empty line": (
        {"train.en": b"a\n\nc\n", "train.fr": b"x\ny\nz\n"},
        {},
        "{cwd}/corpus/train.en:2:",
        ["source is empty: mend it, or set data.bad_rows to set_aside"],
    ),
    "bad UTF-8": (
        {"train.en": b"a\nb\nc\n", "train.fr": b"x\ny\n\xff\n"},
        {},
        "{cwd}/corpus/train.en:3:",
        ["target is not valid UTF-8: mend it"],
    ),
    "test sources in train": (
        {"train.en": b"a\nb\n", "train.fr": b"x\ny\n", "test.en": b"b\n", "test.fr": b"y\n"},
        {},
        "data.overlap:",
        ["1 training source", "train.en:2", "set data.overlap to drop or keep"],
    ),
    "a field missing": (
        {"a.jsonl": b'{"en": "a", "fr": "b"}\n{"en": "c"}\n'},
        {"data.train": {"path": "corpus/a.jsonl", "source": "en", "target": "fr"}},
        "{cwd}/corpus/a.jsonl:2:",
        ["has no field 'fr'", "mend it"],
    ),
    "a column missing": (
        {"a.tsv": b"en\tfr\na\tb\n"},
        {"data.train": {"path": "corpus/a.tsv", "source": "en", "target": "fra"}},
        "{cwd}/corpus/a.tsv:2:",
        ["has no field 'fra': did you mean 'fr'?"],
    ),
    "a column twice": (
        {"a.tsv": b"en\ten\na\tb\n"},
        {"data.train": {"path": "corpus/a.tsv", "source": "en"}},
        "{cwd}/corpus/a.tsv: 'en':",
        ["two columns have this name: rename one"],
    ),
    "a CSV row too wide": (
        {"a.csv": b"en,fr\na,b\nc,d,e\n"},
        {"data.train": {"path": "corpus/a.csv", "source": "en", "target": "fr"}},
        "{cwd}/corpus/a.csv:3:",
        ["has 3 fields where the header has 2", "mend it"],
    ),
    "a quote left open": (
        {"a.csv": b'en,fr\n"a,b\n'},
        {"data.train": {"path": "corpus/a.csv", "source": "en", "target": "fr"}},
        "{cwd}/corpus/a.csv:2:",
        ["mend the CSV"],
    ),
    "no JSON": (
        {"a.jsonl": b'{"en": "a"}\n{"en": \n'},
        {"data.train": {"path": "corpus/a.jsonl", "source": "en"}},
        "{cwd}/corpus/a.jsonl:2:",
        ["is not JSON"],
    ),
    "gzip cut short": (
        {"a.txt.gz": gzip.compress(b"a\n" * 9999)[:-8]},
        {"data.train": {"source": "corpus/a.txt.gz"}},
        "{cwd}/corpus/a.txt.gz:",
        ["is damaged or cut short"],
    ),
    "no Parquet": (
        {"a.parquet": b"en,fr\n"},
        {"data.train": {"path": "corpus/a.parquet", "source": "en"}},
        "{cwd}/corpus/a.parquet:",
        ["is damaged or cut short"],
    ),
    "unknown file ending": (
        {"a.xlsx": b"PK"},
        {"data.train": {"path": "corpus/a.xlsx", "source": "en"}},
        "{cwd}/corpus/a.xlsx:",
        ["ending not known", ".jsonl"],
    ),
}

# name: (the manifest's bytes, what the line begins with, words it holds)
TEXTS: dict[str, tuple[bytes, str, list[str]]] = {
    "bad YAML": (b"name: a\ndata: [\n", "manifest.yaml:3:", ["mend the YAML"]),
    "a tab": (b"name: a\ndata:\n\ttrain: x\n", "manifest.yaml:3:", ["mend the YAML"]),
    "a key twice": (b"name: a\nname: b\n", "manifest.yaml:2:", ["duplicate key", "mend the YAML"]),
    "a tag": (b"name: !!python/object:os.system x\n", "manifest.yaml:1:", ["mend the YAML"]),
    "a number for a key": (b"1: x\n", "manifest.yaml: 1:", ["keys are words: quote it"]),
    "a list for a key": (b"? [a]\n: x\n", "manifest.yaml", ["keys are words"]),
    "an alias to nothing": (b"name: *a\n", "manifest.yaml:1:", ["mend the YAML"]),
    "two documents": (b"name: a\n---\nname: b\n", "manifest.yaml:2:", ["mend the YAML"]),
    "a control character": (b"name: a\x00\n", "manifest.yaml", ["mend the YAML"]),
    "bad UTF-8": (b"name: \xff\n", "manifest.yaml:", ["save it as UTF-8"]),
    "empty": (b"", "manifest.yaml", ["a manifest is a mapping of sections"]),
    "a list": (b"- a\n", "manifest.yaml: ['a']:", ["a manifest is a mapping of sections"]),
    "an endless alias": (b"data: &a [*a]\n", "manifest.yaml:", ["an alias stands inside itself"]),
}
