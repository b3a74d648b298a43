"""What a language model is asked for each class, and whether its answer will do.

A prompt is a file `config/prompts/NAME.yaml`. Its version and its words are part of the key under which answers are
kept, so a changed prompt is asked anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import ANSWERED_BY, LLM, Config, merge, parse, read_yaml
from pipeline.errors import UserError, unknown
from pipeline.experiment import Frozen, digest
from pipeline.text.corpus import STAGES

Messages = list[dict[str, str]]
TOKENS_OF = {"atomic": 28, "stages": 24, "global": 90, "joints": 26}  # of one sentence (global: of all), about
MAX_WORDS = 400  # of one text: more is no description of an action


def tell(line: str) -> None:
    """Print a line now, also where the output is a file."""
    print(line, flush=True)


class Prompt(Frozen):
    """One prompt; `{label}`, `{count}` and `{joints}` in its words are replaced."""

    version: int = Field(ge=1)
    field: Literal["atomic", "stages", "global", "joints"]
    system: str
    user: str
    counts: tuple[int, ...] = ()
    """Numbers of atomic actions that are asked for, each in a question of its own."""


def read_prompts(folder: str | Path, names: Sequence[str]) -> dict[str, Prompt]:
    """The prompts `names` of a folder; raises UserError for an unknown name or a file of another form."""
    files = {path.stem: path for path in sorted(Path(folder).glob("*.yaml"))}
    made = {}
    for name in names:
        if name not in files:
            raise unknown("prompt", name, files, str(folder))
        made[name] = parse(Prompt, read_yaml(files[name]), str(files[name]))
        if (made[name].field == "atomic") != bool(made[name].counts) or min(made[name].counts, default=1) < 1:
            raise UserError(f"{files[name]}: counts belongs to prompts with field: atomic, and holds numbers from 1")
    return made


def resolve(config: Config, given: Any, prompts: Sequence[str], where: str) -> dict[str, Any]:
    """The key `describe` of a data set as a job needs it: all settings, and the words of its prompts.

    given: settings laid over `llm` of the configuration, or `true`. prompts: names of those that are asked where the
    settings name none. Raises UserError for a wrong key or prompt.
    """
    given = {} if given is True else given
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected `true` or settings such as {{ model: NAME }}, found {given!r}")
    settings = parse(LLM, merge(config.settings.llm.model_dump(), given), where)
    made = read_prompts(config.folder / "prompts", settings.prompts or prompts)
    return settings.model_dump() | {"prompts": {name: prompt.model_dump() for name, prompt in made.items()}}


def identity(asked: Mapping[str, Any]) -> str:
    """Short hash of what decides the answers: model, parameters and prompts."""
    return digest({key: asked[key] for key in ANSWERED_BY})


@dataclass(frozen=True)
class Question:
    """One prompt asked for one class: one call, and one file among the kept answers."""

    prompt: str
    name: str
    """The class, as the data set calls it."""
    label: str
    """The class as words."""
    spec: Prompt
    count: int = 0
    """Sentences that the answer needs; 0 for one text or a text for each joint."""
    joints: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.name} ({self.prompt}{f', {self.count} steps' if self.spec.field == 'atomic' else ''})"

    @property
    def messages(self) -> Messages:
        """The question as chat messages."""
        words = {"{label}": self.label, "{count}": str(self.count), "{joints}": ", ".join(self.joints)}
        return [{"role": role, "content": _fill(getattr(self.spec, role), words)} for role in ("system", "user")]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        text = {"type": "string"}
        if self.count:
            steps = {"type": "array", "items": text, "minItems": self.count, "maxItems": self.count}
            properties: dict[str, Any] = {"steps": steps}
        else:
            properties = dict.fromkeys(self.joints if self.spec.field == "joints" else ("text",), text)
        return {
            "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
        }  # fmt: skip

    @property
    def expected_tokens(self) -> tuple[int, int]:
        """About how many tokens question and answer have, at four letters a token."""
        letters = sum(len(message["content"]) for message in self.messages) + len(json.dumps(self.schema))
        texts = self.count or len(self.joints) or 1
        return letters // 4, texts * TOKENS_OF[self.spec.field] + 10


def questions(prompts: Mapping[str, Prompt], labels: Mapping[str, str], joints: Sequence[str] = ()) -> list[Question]:
    """All questions for the classes `labels` ({class: its words}); raises UserError when joints are asked of none."""
    made = []
    for prompt, spec in prompts.items():
        if spec.field == "joints" and not joints:
            raise UserError(f"the prompt {prompt} needs the joints of a skeleton; name a graph, or leave it out")
        counts = spec.counts or (STAGES if spec.field == "stages" else 0,)
        own = tuple(joints) if spec.field == "joints" else ()
        made += [Question(prompt, name, labels[name], spec, count, own) for name in sorted(labels) for count in counts]
    return made


def read_answer(question: Question, text: str) -> tuple[Any, list[str]]:
    """The texts in a model's answer, and what is wrong with its form (empty where nothing is).

    Texts are a list of `count` sentences, one text, or {joint: text}; None where the answer cannot be read.
    """
    text = re.sub(r"\A\s*```(?:json)?\s*|\s*```\s*\Z", "", text)  # some servers put code fences around it
    try:
        content = json.loads(text)
    except ValueError:
        return None, ["it is not valid JSON, or it was cut off"]
    if not isinstance(content, dict):
        return None, ["it is not a JSON object"]
    wanted = question.schema["required"]
    problems = [f"the key {key!r} is missing" for key in wanted if key not in content]
    problems += [f"the key {key!r} was not asked for" for key in content if key not in wanted]
    if problems:
        return None, problems
    texts = content["steps"] if question.count else content if question.joints else content["text"]
    if question.count and not isinstance(texts, list):
        return None, ["'steps' is not a list"]
    if question.count and len(texts) != question.count:
        problems.append(f"'steps' has {len(texts)} entries in place of {question.count}")
    for text in sentences(texts):
        if not isinstance(text, str) or not re.search(r"\w", text):
            problems.append("a text is empty or no text")
        elif len(text.split()) > MAX_WORDS:
            problems.append(f"a text has more than {MAX_WORDS} words")
    steps = [str(text).strip().lower() for text in sentences(texts)] if question.count else []
    if len(set(steps)) < len(steps):
        problems.append("two steps are the same")
    return _stripped(texts), list(dict.fromkeys(problems))


def leaked(texts: Any, label: str, others: Iterable[str]) -> list[str]:
    """Labels of other classes that stand in the texts of the class `label`, as whole words.

    A label that is part of the own one ("jump" of "jump rope") may be said.
    """
    said, own = _words(" . ".join(sentences(texts))), _words(label)
    return [other for other in others if (words := _words(other)) != own and words in said and words not in own]


def sentences(texts: Any) -> list[Any]:
    """The single texts of an answer."""
    return list(texts.values()) if isinstance(texts, Mapping) else texts if isinstance(texts, list) else [texts]


def _stripped(texts: Any) -> Any:
    def strip(text: Any) -> Any:
        return " ".join(text.split()) if isinstance(text, str) else text

    if isinstance(texts, Mapping):
        return {key: strip(text) for key, text in texts.items()}
    return [strip(text) for text in texts] if isinstance(texts, list) else strip(texts)


def _words(text: str) -> str:
    """Lower-case words between single blanks, a blank at either end."""
    return " ".join(["", *re.findall(r"[^\W_]+|[.]", text.lower()), ""])


def _fill(words: str, values: Mapping[str, str]) -> str:
    """`words` with the keys of `values` replaced, in one pass: what a value holds is not replaced again."""
    pattern = "|".join(map(re.escape, values))
    return re.sub(pattern, lambda match: values[match.group()], words).strip()
