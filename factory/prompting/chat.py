"""Chat prompts: a row's turns through the tokenizer's own chat template, the row's text told apart.

A template may trim, split or drop what a turn says, so the turns are rendered as they are, and that
is the prompt's text. To know which of its characters came from the row, they are rendered once
more with tags around the row's text; without its tags, that rendering must be the same prompt.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from factory.errors import PromptError
from factory.manifest import Prompt
from factory.prompting.encoding import any_of
from factory.prompting.template import Parts, fill, pattern_of, value_of
from factory.prompting.turns import Turn, read_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Words that a template compares rather than prints.
IDENTIFIERS = frozenset({"role", "type", "name", "id", "tool_call_id"})
HANDLED = frozenset({"add_generation_prompt", "continue_final_message", "chat_template"})
TEMPLATE_FAULTS = (TemplateError, ValueError, TypeError, LookupError, AttributeError)
Tag = Callable[[str], str]


class Chat:
    """Renders rows with a chat template: turns of the manifest, or turns of the row."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, controls: Iterable[str]
    ) -> None:
        """Look at the template and its options.

        Raises:
            PromptError: there is no chat template, it knows no such option, or refuses the turns.
        """
        self.tokenizer, self.prompt = tokenizer, prompt
        self.place = "prompt.chat" if prompt.chat else "prompt.messages"
        self.options = _options(prompt)
        self.template = _template(tokenizer, self.options, self.place)
        self.controls = any_of(controls)
        nonce = f"{secrets.randbelow(10**30):030d}"
        self.open, self.close = f"{nonce}1", f"{nonce}2"
        self.tags = re.compile(f"({self.open}|{self.close})")
        system = [pattern_of(prompt.system)] if prompt.system is not None else []
        self.contents = [pattern_of(m.content) for m in prompt.chat or ()] or system
        names = (name for pattern in self.contents for name in pattern[1::2])
        self.fields = tuple(dict.fromkeys(names))
        if prompt.chat:
            self._rendered(self._turns(dict.fromkeys(self.fields, "text"), str))

    def parts(self, row: dict[str, Any]) -> Parts:
        """The prompt in pieces: the template's and the row's by turns, the template's first.

        Raises:
            PromptError: the row's turns are none, or the template refuses or rewrites them.
        """
        texts: list[str] = []

        def noted(text: str) -> str:
            texts.append(text)
            return text

        self._check_end(turns := self._turns(row, noted))
        rendered = self._rendered(turns)
        parts = self._split(self._rendered(self._turns(row, self._tagged)))
        if "".join(parts) == rendered:
            return parts
        # A template may look for control tokens in answers, to take out the thoughts they enclose.
        parts = self._split(self._rendered(self._turns(row, self._tagged, self._bare)))
        if "".join(parts) == rendered and self._own(parts) == self._own(self._meant(row)):
            return parts
        if not any(self.controls.search(text) for text in texts):
            return [rendered]
        spelled = next(found[0] for text in texts if (found := self.controls.search(text)))
        remedy = f"the chat template rewrites a turn that spells {spelled}: take it out"
        raise PromptError(self.place, None, remedy)

    def _turns(self, row: dict[str, Any], tag: Tag, answer: Tag | None = None) -> list[Turn]:
        """The turns of a row, every text of the row's own through `tag`, or `answer`."""
        if self.prompt.chat:
            filled = ("".join(fill(pattern, row, tag)) for pattern in self.contents)
            pairs = zip(self.prompt.chat, filled, strict=True)
            return [{"role": message.role, "content": content} for message, content in pairs]
        name = str(self.prompt.messages)
        turns = read_turns(value_of(row, name))
        if isinstance(turns, str):
            raise PromptError("prompt", None, f"{name} {turns}")
        tagged = [
            self._through(turn, answer if answer and turn["role"] == "assistant" else tag)
            for turn in turns
        ]
        if self.contents and not any(turn["role"] == "system" for turn in turns):
            text = "".join(fill(self.contents[0], row, tag))
            tagged.insert(0, {"role": "system", "content": text})
        return tagged

    def _through(self, value: Any, tag: Tag, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: self._through(v, tag, k) for k, v in value.items()}
        if isinstance(value, list):
            return [self._through(v, tag) for v in value]
        compared = key in IDENTIFIERS and not self.controls.search(str(value))
        return tag(value) if isinstance(value, str) and not compared else value

    def _check_end(self, turns: list[Turn]) -> None:
        if turns[-1]["role"] == "assistant" and self.options["add_generation_prompt"]:
            remedy = "cut it off, or set prompt.chat_options.continue_final_message"
            raise PromptError(self.place, None, f"the last turn is the assistant's: {remedy}")

    def _rendered(self, turns: list[Turn]) -> str:
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, **self.options)
        except TEMPLATE_FAULTS as error:
            reason = " ".join(str(error).split())[:200]
            remedy = f"the chat template refuses it: {reason}"
            raise PromptError(self.place, None, remedy) from None
        return str(text)

    def _tagged(self, text: str) -> str:
        """Tags around every stretch of a row's text; outer blanks stay outside, to be trimmed."""
        return "".join(map(self._enclosed, _stretches(self.controls, text)))

    def _bare(self, text: str) -> str:
        """The same, but control tokens bare, for a template that looks for them."""
        return "".join(
            part if self.controls.fullmatch(part) else self._enclosed(part)
            for part in _stretches(self.controls, text)
        )

    def _enclosed(self, text: str) -> str:
        core = text.strip()
        return text.replace(core, f"{self.open}{core}{self.close}", 1) if core else text

    def _meant(self, row: dict[str, Any]) -> Parts:
        """The prompt if no answer spelled a control token."""
        turns = self._turns(row, self._tagged, lambda text: self._tagged(self._without(text)))
        return self._split(self._rendered(turns))

    def _without(self, text: str) -> str:
        return self.controls.sub("", text)

    def _own(self, parts: Parts) -> list[str]:
        """The control tokens outside the row's text."""
        return [token for text in parts[::2] for token in self.controls.findall(text)]

    def _split(self, tagged: str) -> Parts:
        """A tagged rendering in pieces; a tag that lost its partner says nothing, and goes."""
        pieces = self.tags.split(tagged)
        after = [*pieces[1::2], ""]
        before = ["", *pieces[1::2]]
        told = zip(pieces[::2], before, after, strict=True)
        whose = [(text, (b, a) == (self.open, self.close)) for text, b, a in told]
        parts = [""]
        for rows_own, group in itertools.groupby(whose, key=lambda piece: piece[1]):
            joined = "".join(text for text, _ in group)
            if rows_own == (len(parts) % 2 == 1):
                parts.append(joined)
            else:
                parts[-1] += joined
        return parts


def _stretches(controls: re.Pattern[str], text: str) -> list[str]:
    """A text cut before and after every control token that it spells."""
    places = [place for found in controls.finditer(text) for place in found.span()]
    return [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]


def _options(prompt: Prompt) -> dict[str, Any]:
    continued = bool(prompt.chat_options.get("continue_final_message"))
    return {"add_generation_prompt": not continued} | prompt.chat_options


def _template(tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], place: str) -> str:
    if not (tokenizer.chat_template or options.get("chat_template")):
        raise PromptError(place, None, "the tokenizer has no chat template: use prompt.template")
    try:
        template: str = tokenizer.get_chat_template(
            options.get("chat_template"), options.get("tools")
        )
    except ValueError as error:
        raise PromptError(place, None, " ".join(str(error).split())[:200]) from None
    for name in sorted(set(options) - HANDLED):
        # Jinja takes any variable in silence: a misspelled enable_thinking would change nothing.
        if not re.search(rf"\b{re.escape(name)}\b", template):
            remedy = "the chat template has no such variable: remove it"
            raise PromptError(f"prompt.chat_options.{name}", options[name], remedy)
    return template
