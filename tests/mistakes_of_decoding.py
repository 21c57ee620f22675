"""What users get wrong of decoding, capture and engines: the mistake, and what is told of it."""

from __future__ import annotations

from tests.mistakes import STAGE, STAGES, Edits

# name: (edits to the manifest, what the line begins with, words it holds)
DECODINGS: dict[str, tuple[Edits, str, list[str]]] = {
    "zero beam": (
        {"generate": {"decoding": "beam", "beam_width": 0}},
        "manifest.yaml generate.beam_width: 0:",
        ["greater than or equal to 1"],
    ),
    "unknown decoding": (
        {"generate.decoding": "gready"},
        "manifest.yaml generate.decoding: 'gready':",
        ["'greedy'"],
    ),
    "decoding that the engine lacks": (
        {"teacher.engine": "ctranslate2", "generate.decoding": "sample"},
        "generate.decoding: 'sample':",
        ["engine ctranslate2 offers greedy, beam"],
    ),
    "more hypotheses than the beam is wide": (
        {"generate": {"decoding": "beam", "beam_width": 4, "num_return": 5}},
        "manifest.yaml generate:",
        ["num_return 5 is more than beam_width 4", "returns no more hypotheses than it is wide"],
    ),
    "more hypotheses than the default beam is wide": (
        {"generate": {"decoding": "beam", "num_return": 5}},
        "manifest.yaml generate:",
        ["num_return 5 is more than beam_width 4"],
    ),
    "several hypotheses of a greedy search": (
        {"generate.num_return": 2},
        "manifest.yaml generate:",
        ["decoding 'greedy' ignores num_return", "set decoding to beam or sample"],
    ),
    "no hypothesis": (
        {"generate": {"decoding": "sample", "num_return": 0}},
        "manifest.yaml generate.num_return: 0:",
        ["greater than or equal to 1"],
    ),
    "an early stopping of neither kind": (
        {"generate": {"decoding": "beam", "early_stopping": "sometimes"}},
        "manifest.yaml generate.early_stopping: 'sometimes':",
        ["input should be true, false or never"],
    ),
    "an early stopping that is a number": (
        {"generate": {"decoding": "beam", "early_stopping": 3}},
        "manifest.yaml generate.early_stopping: 3:",
        ["input should be true, false or never"],
    ),
    "early stopping without a beam": (
        {"generate.early_stopping": True},
        "manifest.yaml generate:",
        ["decoding 'greedy' ignores early_stopping: remove it, or set decoding to beam"],
    ),
    "a length penalty of samples": (
        {"generate": {"decoding": "sample", "length_penalty": 0.6}},
        "manifest.yaml generate:",
        ["decoding 'sample' ignores length_penalty: remove it, or set decoding to beam"],
    ),
    "a width of samples": (
        {"generate": {"decoding": "sample", "beam_width": 4}},
        "manifest.yaml generate:",
        ["decoding 'sample' ignores beam_width: remove it, or set decoding to beam"],
    ),
    **{
        f"{key} in a beam": (
            {"generate": {"decoding": "beam", key: value}},
            "manifest.yaml generate:",
            [f"decoding 'beam' ignores {key}: remove it, or set decoding to sample"],
        )
        for key, value in {
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "epsilon": 0.01,
        }.items()
    },
    "a temperature of zero": (
        {"generate": {"decoding": "sample", "temperature": 0}},
        "manifest.yaml generate.temperature: 0:",
        ["greater than 0"],
    ),
    "a top_p over one": (
        {"generate": {"decoding": "sample", "top_p": 90}},
        "manifest.yaml generate.top_p: 90:",
        ["less than or equal to 1"],
    ),
    "a negative top_k": (
        {"generate": {"decoding": "sample", "top_k": -1}},
        "manifest.yaml generate.top_k: -1:",
        ["greater than or equal to 0"],
    ),
    "epsilon in vLLM": (
        {"teacher.engine": "vllm", "generate": {"decoding": "sample", "epsilon": 0.01}},
        "generate.epsilon: 0.01:",
        ["engine vllm has none in sample decoding: remove it, or try transformers"],
    ),
    "blocked n-grams in vLLM": (
        {"teacher.engine": "vllm", "generate.no_repeat_ngram_size": 3},
        "generate.no_repeat_ngram_size: 3:",
        ["engine vllm has none in greedy decoding: remove it, or try transformers"],
    ),
    "a first token in vLLM": (
        {"teacher.engine": "vllm", "generate.first_token": "fra_Latn"},
        "generate.first_token: 'fra_Latn':",
        ["engine vllm has none in greedy decoding: remove it, or try transformers"],
    ),
    "a stop string in a beam of vLLM": (
        {"teacher.engine": "vllm", "generate": {"decoding": "beam", "stop": ["."]}},
        "generate.stop: ['.']:",
        ["engine vllm has none in beam decoding: remove it, or try transformers"],
    ),
    "a stop string in CTranslate2": (
        {"teacher.engine": "ctranslate2", "generate.stop": ["."]},
        "generate.stop: ['.']:",
        ["engine ctranslate2 has none in greedy decoding: remove it", "vllm or transformers"],
    ),
    "a first token of a decoder in CTranslate2": (
        {"teacher.engine": "ctranslate2", "generate.first_token": "fra_Latn"},
        "generate.first_token: 'fra_Latn':",
        ["engine ctranslate2 has none in greedy decoding: remove it, or try transformers"],
    ),
    "a repetition penalty of a decoder in CTranslate2": (
        {"teacher.engine": "ctranslate2", "generate.repetition_penalty": 1.2},
        "generate.repetition_penalty: 1.2:",
        ["engine ctranslate2 has none", "try vllm or transformers"],
    ),
    "a first token that is none": (
        {"teacher.engine": "transformers", "generate.first_token": "fra_Latn"},
        "generate.first_token: 'fra_Latn':",
        ["is no token of the teacher's"],
    ),
    "a stop that is no list": (
        {"generate.stop": "."},
        "manifest.yaml generate.stop: '.':",
        ["input should be a valid list"],
    ),
    "a beam over half the vocabulary": (
        {"generate": {"decoding": "beam", "beam_width": 201}},
        "generate.beam_width: 201:",
        ["needs twice as many tokens; the vocabulary has 400: lower it"],
    ),
    "a least length over the most": (
        {"generate": {"max_new_tokens": 8, "min_new_tokens": 9}},
        "manifest.yaml generate:",
        ["min_new_tokens 9 is more than max_new_tokens 8: lower it"],
    ),
    "a least length over the cap": (
        {"generate": {"max_new_tokens": {"ratio": 2.0, "cap": 8}, "min_new_tokens": 9}},
        "manifest.yaml generate:",
        ["min_new_tokens 9 is more than max_new_tokens 8: lower it"],
    ),
    "no replica": (
        {"teacher.replicas": 0},
        "manifest.yaml teacher.replicas: 0:",
        ["greater than or equal to 1"],
    ),
    "a negative check": (
        {"generate.check": -1},
        "manifest.yaml generate.check: -1:",
        ["greater than or equal to 0"],
    ),
    "reasoning now and then": (
        {"generate.reasoning": "sometimes"},
        "manifest.yaml generate.reasoning: 'sometimes':",
        ["'keep' or 'remove'"],
    ),
    "targets to score, and nothing kept of them": (
        {"score": {"targets": ["gold"]}, "logits": {"capture": "none"}, STAGES: [STAGE]},
        "score.targets: ['gold']:",
        ["logits.capture keeps none: set it to top_k"],
    ),
    "key that the decoding ignores": (
        {"generate.temperature": 0.7},
        "manifest.yaml generate:",
        ["decoding 'greedy' ignores temperature: remove it", "set decoding to sample"],
    ),
    "no token allowed": (
        {"generate.max_new_tokens": {"cap": 9}},
        "manifest.yaml generate.max_new_tokens:",
        ["allows no token: set ratio or plus above 0"],
    ),
    "an encoder-decoder for vLLM": (
        {"teacher": {"model": "{t5}", "engine": "vllm"}},
        "teacher.engine: 'vllm':",
        ["t5 is an encoder–decoder: set engine to transformers or ctranslate2"],
    ),
    "heads too narrow for vLLM on a CPU": (
        {"teacher": {"model": "./narrow-heads", "engine": "vllm"}},
        "teacher.engine: 'vllm':",
        ["no attention head narrower than 32 on a CPU", "have 16: set engine to transformers"],
    ),
    "draws from an engine that sees the top alone": (
        {"teacher.engine": "vllm", "logits": {"capture": "sampled"}},
        "logits.capture: 'sampled':",
        [
            "engine vllm tells the most probable tokens alone",
            "draws from those would be biased",
            "set teacher.engine to transformers or ctranslate2, or capture to top_k",
        ],
    ),
    "no draws": (
        {"logits": {"capture": "sampled", "draws": 0}},
        "manifest.yaml logits.draws: 0:",
        ["greater than or equal to 1"],
    ),
    "k of draws": (
        {"logits": {"capture": "sampled", "k": 16}},
        "manifest.yaml logits:",
        ["capture 'sampled' ignores k: remove it, or set capture to top_k or top_p"],
    ),
    "a mass of the top k": (
        {"logits": {"capture": "top_k", "p": 0.9}},
        "manifest.yaml logits:",
        ["capture 'top_k' ignores p: remove it, or set capture to top_p"],
    ),
    "draws of a nucleus": (
        {"logits": {"capture": "top_p", "draws": 50}},
        "manifest.yaml logits:",
        ["capture 'top_p' ignores draws: remove it, or set capture to sampled"],
    ),
    "a nucleus of everything": (
        {"logits": {"capture": "top_p", "p": 1.0}},
        "manifest.yaml logits.p: 1.0:",
        ["less than 1"],
    ),
    "a nucleus wider than the vocabulary": (
        {"logits": {"capture": "top_p", "k": 5000}},
        "logits.k: 5000:",
        ["is more than the teacher's vocabulary of 400: lower it"],
    ),
    "a capture that there is not": (
        {"logits.capture": "top_n"},
        "manifest.yaml logits.capture: 'top_n':",
        ["'none', 'top_k', 'top_p' or 'sampled'"],
    ),
}
