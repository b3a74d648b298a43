"""Descriptions of classes by a language model: every answer is kept, so that no question is paid for twice.

An answer lies in `CACHE/PROMPT-vVERSION/MODEL/CLASS-HASH.json`; the hash covers the prompt's words, the model, the
parameters, the class and the form that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import LLM
from pipeline.errors import UserError
from pipeline.experiment import digest, slug
from pipeline.files import write_text
from pipeline.text.corpus import Corpus
from pipeline.text.llm import BadBody, Chat, NoAnswer, Usage
from pipeline.text.prompts import Prompt, Question, leaked, questions, read_answer, tell

GIVE_UP = 5  # failed questions without a good one between them: the rest is not asked
SHOWN = 5  # failures that an error names
Say = Callable[[str], None]


@dataclass(frozen=True)
class Estimate:
    """What asking would take."""

    questions: int
    kept: int
    usage: Usage

    def line(self, settings: LLM) -> str:
        """For people."""
        return (
            f"{self.questions} questions, {self.kept} answered before, {self.usage.calls} to ask {settings.model}: "
            f"about {_tokens(self.usage, settings)}"
        )


def describe_with(
    asked: Mapping[str, Any], names: Iterable[str], cache: str | Path, joints: Sequence[str] = (), say: Say = tell
) -> Corpus:
    """`describe` with the settings that `prompts.resolve` made, of the classes `names`."""
    prompts = {name: Prompt.model_validate(prompt) for name, prompt in asked["prompts"].items()}
    settings = LLM.model_validate({**asked, "prompts": list(prompts)})
    return describe(prompts, labels_of(names), settings, cache, joints, say)


def labels_of(names: Iterable[str]) -> dict[str, str]:
    """{class: its name as words}."""
    from pipeline.datasets.splits import display_label

    return {name: display_label(name) for name in sorted(set(names))}


class Answers:
    """The answers that are kept in a folder."""

    def __init__(self, folder: str | Path, settings: LLM) -> None:
        self.folder, self.model, self.parameters = Path(folder), settings.model, settings.parameters

    def path(self, question: Question) -> Path:
        """Where the answer to a question lies."""
        key = [self.model, self.parameters, question.name, question.messages, question.schema, question.spec.version]
        folder = self.folder / f"{question.prompt}-v{question.spec.version}" / (slug(self.model) or "model")
        return folder / f"{slug(question.name)[:60]}-{digest(key, 16)}.json"

    def read(self, question: Question) -> Any:
        """The texts, or None where the question has not been answered."""
        try:
            content = json.loads(self.path(question).read_text(encoding="utf-8"))["texts"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a broken file is asked for again
        return content

    def write(self, question: Question, texts: Any, usage: Usage) -> None:
        """Keep the texts that answer a question."""
        content = {
            "class": question.name, "prompt": question.prompt, "version": question.spec.version,
            "count": question.count, "model": self.model, "parameters": self.parameters, "texts": texts,
            "usage": asdict(usage),
        }  # fmt: skip
        write_text(self.path(question), json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def estimate(asked: Sequence[Question], answers: Answers) -> Estimate:
    """What it would take to answer the questions that have no kept answer; no call is made."""
    left = [question for question in asked if answers.read(question) is None]
    tokens = [question.expected_tokens for question in left]
    usage = Usage(sum(n for n, _ in tokens), sum(n for _, n in tokens), len(left))
    return Estimate(len(asked), len(asked) - len(left), usage)


def describe(
    prompts: Mapping[str, Prompt],
    labels: Mapping[str, str],
    settings: LLM,
    cache: str | Path,
    joints: Sequence[str] = (),
    say: Say = tell,
) -> Corpus:
    """Texts of the classes `labels` ({class: its words}) by the language model of `settings`.

    prompts: what is asked, by name. joints: names of a skeleton's joints. cache: folder of the answers; what is there
    is not asked again. say: gets lines for people, with token counts and cost before and after. Raises UserError when
    a question gets no answer of the right form; the answers to the others are kept.
    """
    asked, answers = questions(prompts, labels, joints), Answers(cache, settings)
    say(estimate(asked, answers).line(settings))
    left = [question for question in asked if answers.read(question) is None]
    if left:
        ask_all(left, answers, Chat(settings), labels, say)
    return assemble(asked, answers, labels, prompts)


def assemble(
    asked: Iterable[Question], answers: Answers, labels: Mapping[str, str], prompts: Mapping[str, Prompt]
) -> Corpus:
    """The corpus of kept answers; raises UserError where one is missing."""
    classes: dict[str, dict[str, Any]] = {name: {"label": label} for name, label in labels.items()}
    for question in asked:
        texts = answers.read(question)
        if texts is None:
            raise UserError(f"{question.title} has no answer in {answers.folder}; ask again")
        if question.spec.field == "atomic":
            classes[question.name].setdefault("atomic", {})[str(question.count)] = texts
        else:
            classes[question.name][question.spec.field] = texts
    provenance = {
        "source": "language model", "model": answers.model, "parameters": answers.parameters,
        "prompts": {name: prompt.version for name, prompt in prompts.items()},
    }  # fmt: skip
    return Corpus(classes, provenance)


# --------------------------------------------------------------------------------------------------- asking
def ask_all(left: Sequence[Question], answers: Answers, chat: Chat, labels: Mapping[str, str], say: Say) -> None:
    """Ask all questions, several at a time, and keep each answer as soon as it is there.

    Raises UserError at the end when some have none; at once when none can be had.
    """
    used, failed, in_a_row, done = Usage(), [], 0, 0
    try:
        for question, outcome, usage, note in _results(left, chat, labels, answers):
            used, done = used + usage, done + 1
            if isinstance(outcome, NoAnswer | _Unusable):
                failed.append(f"{question.title}: {outcome}")
                in_a_row += 1
                say(f"[{done}/{len(left)}] {question.title}: failed")
                if in_a_row >= GIVE_UP:
                    break
                continue
            in_a_row = 0
            say(f"[{done}/{len(left)}] {question.title}{note}")
    finally:
        say(f"{used.calls} calls: {_tokens(used, chat.settings)}")
    if failed:
        more = f" and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        stopped = f"; stopped after {GIVE_UP} failures in a row" if in_a_row >= GIVE_UP else ""
        raise UserError(
            f"{len(failed)} of {len(left)} questions have no answer: {'; '.join(failed[:SHOWN])}{more}{stopped}. "
            f"The other answers are kept in {answers.folder}; run again"
        )


class _Unusable(Exception):
    """The model's last answer to a question, after all repairs, has the wrong form."""


def _results(
    left: Sequence[Question], chat: Chat, labels: Mapping[str, str], answers: Answers
) -> Iterator[tuple[Question, Exception | None, Usage, str]]:
    """(question, failure or None, tokens, remark) as they come in; at most `concurrency` questions are under way.

    An error that every question would meet ends it, after the answers under way are kept.
    """
    others = sorted(set(labels.values()))
    todo, running = iter(left), dict[Future, Question]()
    with ThreadPoolExecutor(chat.settings.concurrency, thread_name_prefix="llm") as pool:
        while True:
            for question in todo:
                running[pool.submit(_ask_one, question, chat, others, answers)] = question
                if len(running) >= chat.settings.concurrency:
                    break
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), *future.result()


def _ask_one(
    question: Question, chat: Chat, others: Sequence[str], answers: Answers
) -> tuple[Exception | None, Usage, str]:
    """Ask one question, with turns in which the model repairs its answer; keep the answer."""
    messages, used, problems = question.messages, Usage(), ["no answer"]
    for turn in range(chat.settings.repairs + 1):
        try:
            text, cut, usage = chat.ask(messages, question.schema, question.prompt)
        except BadBody:
            problems = ["the server's reply is not a chat completion"]
            continue  # the same question again
        except NoAnswer as error:
            return error, used, ""
        used = used + usage
        texts, problems = read_answer(question, text)
        said = [] if problems else leaked(texts, question.label, others)
        # "sit" or "walk" may be needed to describe another action: the model is asked to do without, once.
        hard = [label for label in said if len(label.split()) > 1]
        if not problems and not hard and (not said or turn == chat.settings.repairs or turn > 0):
            answers.write(question, texts, used)
            return None, used, f" (says {', '.join(said)}, another class)" if said else ""
        problems = [*problems, *(f"it says {label!r}, which is another action: use other words" for label in said)]
        if cut:
            problems.insert(0, "it reached the token limit: be shorter")
        messages = [*question.messages, *_repair(text, problems)]
    return _Unusable(f"the model's answer will not do ({'; '.join(problems)})"), used, ""


def _repair(text: str, problems: Sequence[str]) -> list[dict[str, str]]:
    """The turns that follow a wrong answer."""
    wish = f"This answer cannot be used: {'; '.join(problems)}. Write the whole JSON object again, without that."
    return [{"role": "assistant", "content": text or "{}"}, {"role": "user", "content": wish}]


def _tokens(usage: Usage, settings: LLM) -> str:
    cost = usage.cost(dict(settings.price))
    price = "cost unknown: llm.price is not set" if cost is None else f"cost {cost:.4f}"
    return f"{usage.input} tokens in, {usage.output} tokens out, {price}"
