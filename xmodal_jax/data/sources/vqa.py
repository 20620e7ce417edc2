"""Questions on pictures with the answers of ten people, in the JSON files of VQA v2 (Goyal et al. 2017).

A record is a question: its picture, the question as its caption, and as labels those of its answers that are among the
most frequent of the training questions, each with its accuracy (`vqa_answers`) as the score. The types of the question
and of its answers are captions of two more "languages", such as "en-question-type".
"""

import os
import pathlib
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xmodal_jax.data.captions import TYPE, says_something
from xmodal_jax.data.formats import refuse_archive, wrong_format
from xmodal_jax.data.source import TERMS, Captions, Item, Skip, Source, digest_of_all, existing, file_item, plain_text
from xmodal_jax.data.sources.vqa_answers import answer_scores, normal_answer
from xmodal_jax.data.textfile import read_json
from xmodal_jax.errors import UserError

TEMPLATE = "COCO_{subtype}_{id:012d}.jpg"
ROW = {
    "questions": "'question_id', 'image_id' and 'question'",
    "annotations": "'question_id', 'answers' and 'multiple_choice_answer'",
}


@dataclass(frozen=True)
class Answers:
    """The answers of one question in their normal form with their accuracies, the chosen one, and the two types."""

    scores: dict[str, float]
    chosen: str
    types: dict[str, str]


@dataclass(frozen=True)
class Part:
    """The two files of one split: rows of questions, and the answers, or what is wrong with them, by question."""

    split: str
    files: tuple[pathlib.Path, pathlib.Path]
    subtype: str
    questions: list[Any]
    answers: dict[str, Answers | Skip]


def vqa_source(
    questions: os.PathLike | str,
    annotations: os.PathLike | str,
    images: os.PathLike | str,
    val_questions: os.PathLike | str = "",
    val_annotations: os.PathLike | str = "",
    template: str = TEMPLATE,
    answers: int = 3129,
    language: str = "en",
    licence: str = "",
) -> Source:
    """Read VQA v2: `questions` and `annotations` of the training split, and those of the split "val" if given.

    A record is a question, and its labels are those of its answers that are among the `answers` most frequent ones,
    by the "multiple_choice_answer" of the training questions. A label's score is the official accuracy of the answer;
    an annotation with fewer than four "answers" has its "multiple_choice_answer" for certain. Answers are compared in
    the normal form of the official evaluation, which is made for English. The picture of a question is the file
    `template` in the folder `images`, where {id} is its "image_id" and {subtype} the file's "data_subtype". Questions
    are in `language`; one may be {language: text} too. Raises `UserError` for files that are missing or of another
    format, and for a template that names no picture.
    """
    if bool(val_questions) != bool(val_annotations):
        raise UserError("val_questions and val_annotations are the files of one split; write both, or neither")
    given = [("train", questions, annotations), ("val", val_questions, val_annotations)][: 2 if val_questions else 1]
    parts = [_part(*files) for files in given]
    root = existing(images, "image folder", folder=True)
    for part in parts:
        _refuse_bad_template(template, part)
    if answers < 1:
        raise UserError(f"answers is {answers}; write how many of the most frequent answers are labels, such as 3129")
    known = most_frequent(parts[0], answers)

    def items() -> Iterator[Item | Skip]:
        for part in parts:
            yield from _items(part, known, root, template, language)

    files = [file for part in parts for file in part.files]
    arguments = {"files": [str(file.resolve()) for file in files], "images": str(root.resolve())}
    arguments |= {"template": template, "answers": answers, "language": language, "content": digest_of_all(files)}
    total = sum(len(part.questions) for part in parts)
    return Source("vqa", parts[0].files[0].name, licence or TERMS, items, arguments, total)


def most_frequent(part: Part, count: int) -> frozenset[str]:
    """Return the `count` answers that are the chosen ones of most questions; of two as frequent the first by name."""
    told = Counter(own.chosen for own in part.answers.values() if isinstance(own, Answers) and own.chosen)
    return frozenset(sorted(told, key=lambda answer: (-told[answer], answer))[:count])


def _part(split: str, questions: os.PathLike | str, annotations: os.PathLike | str) -> Part:
    """Read the two files of a split. Raises `UserError` if their ids have nothing in common."""
    files = {"questions": pathlib.Path(questions), "annotations": pathlib.Path(annotations)}
    found = {name: _content(existing(path, f"file of {name}"), name) for name, path in files.items()}
    answers = dict(_answers(row, number) for number, row in enumerate(found["annotations"]["annotations"]))
    rows = found["questions"]["questions"]
    if not any(_id(row) in answers for row in rows):
        raise UserError(
            f"no question of {files['questions']} has an annotation in {files['annotations']}; give the two files of "
            "one split."
        )
    subtype = next((own["data_subtype"] for own in found.values() if "data_subtype" in own), "")
    return Part(split, (files["questions"], files["annotations"]), str(subtype), rows, answers)


def _content(path: pathlib.Path, name: str) -> dict[str, Any]:
    """Read a file with a list called `name`."""
    wanted = f"VQA's {name} (JSON with a list '{name}' whose rows have {ROW[name]})"
    refuse_archive(path, wanted)
    content = read_json(path)
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not any(isinstance(row, dict) and "question_id" in row for row in rows):
        raise wrong_format(path, wanted)
    return content


def _id(row: Any) -> str:
    """Return the id of the question that a row is of; "" if it has none."""
    try:
        return plain_text(row["question_id"])
    except (KeyError, TypeError, ValueError):
        return ""


def _answers(row: Any, number: int) -> tuple[str, Answers | Skip]:
    """Return the id of an annotation's question, or its place, and the answers, or why there are none."""
    key = _id(row) or f"annotations[{number}]"
    try:
        given = [normal_answer(plain_text(own["answer"])) for own in row.get("answers") or ()]
        chosen = normal_answer(plain_text(row["multiple_choice_answer"]))
        types = {name: plain_text(row.get(name.replace("-", "_"))) for name in (f"question{TYPE}", f"answer{TYPE}")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return key, Skip("broken annotation", f"annotations[{number}]: {error!r}")
    return key, Answers(answer_scores(given, chosen), chosen, types)


def _refuse_bad_template(template: str, part: Part) -> None:
    """Raise `UserError` for a template that is no file name with an id, or names a subtype that no file tells."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError:
        names = set()
    if "id" not in names or not names <= {"id", "subtype"}:
        raise UserError(f"template is '{template}'; write the name of a picture with {{id}} in it, as {TEMPLATE}")
    if "subtype" in names and not part.subtype:
        raise UserError(
            f"{part.files[0]} has no 'data_subtype', which template '{template}' names; write the name in its place"
        )


def _items(
    part: Part, known: frozenset[str], root: pathlib.Path, template: str, language: str
) -> Iterator[Item | Skip]:
    """Yield the item of each question of a split, or the reason why there is none, and annotations of no question."""
    asked = set()
    for number, row in enumerate(part.questions):
        where, key = f"questions[{number}]", _id(row)
        asked.add(key)
        found = part.answers.get(key, Skip("question without an annotation", f"{where}: {key}"))
        if isinstance(found, Skip):
            yield found
            continue
        try:
            picture, captions = _picture(row, part, root, template), _captions(row["question"], language)
        except (KeyError, TypeError, ValueError) as error:
            yield Skip("broken question", f"{where}: {error!r}")
            continue
        captions |= {f"{language}-{kind}": [text] for kind, text in found.types.items() if text}
        scores = {answer: score for answer, score in found.scores.items() if answer in known}
        labels = {"labels": tuple(scores), "scores": tuple(scores.values())}
        group = plain_text(row["image_id"])
        yield from file_item(key, {"image": picture}, captions, **labels, group=group, split=part.split)
    yield from (Skip("annotation without a question", key) for key in part.answers if key not in asked)


def _picture(row: Any, part: Part, root: pathlib.Path, template: str) -> str:
    """Return the file of a question's picture. Raises `KeyError`, `TypeError` or `ValueError` if its id is none."""
    image = row["image_id"]
    plain_text(image)  # a text or a number
    return os.path.join(root, template.format(id=image, subtype=part.subtype))


def _captions(question: Any, language: str) -> Captions:
    """Return a question as captions: a text in `language`, or {language: text}.

    Raises `TypeError` for another, `ValueError` for an empty one.
    """
    own = question if isinstance(question, dict) else {language: question}
    if not all(isinstance(text, str) for text in own.values()):
        raise TypeError("a question is a text or {language: text}")
    if not any(map(says_something, own.values())):
        raise ValueError("the question is empty")
    return {code: [text] for code, text in own.items()}
