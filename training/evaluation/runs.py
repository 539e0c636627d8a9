"""TREC run files: `query_id Q0 document_id rank score tag`, so that any evaluation program can judge a run again."""

from pathlib import Path

from training.evaluation.metrics import Run, ranking


def write_run(run: Run, path: Path, *, tag: str) -> None:
    """Writes a run, best first, equal scores by document id; scores keep all their digits.

    Raises:
        ValueError: an id or the tag is empty or holds white space, which the format cannot carry.
    """
    with open(path, "w", encoding="utf-8") as file:
        for query_id, scores in run.items():
            for rank, document_id in enumerate(ranking(scores), start=1):
                fields = [_field(query_id), "Q0", _field(document_id), str(rank), repr(float(scores[document_id]))]
                file.write(" ".join([*fields, _field(tag)]) + "\n")


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """Reads a run; ranks are ignored, scores decide.

    Raises:
        ValueError: a malformed line, with its number.
    """
    run: dict[str, dict[str, float]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                query_id, _, document_id, _, score, _ = line.split()
                run.setdefault(query_id, {})[document_id] = float(score)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not `query_id Q0 document_id rank score tag`") from error
    return run


def _field(text: str) -> str:
    if not text or len(text.split()) != 1 or text != text.strip():
        raise ValueError(f"{text!r} is empty or holds white space; TREC run files cannot carry it")
    return text
