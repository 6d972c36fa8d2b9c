"""Answers that are kept on disk by what they answer, so that nothing is asked and paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interpreto_mlops.errors import InputError
from interpreto_mlops.llm.base import Answer, Prompt
from interpreto_mlops.llm.nesting import check_nesting


class AnswerCache:
    """A folder of answers, one file each, under the hash of model and question.

    Any number of threads and processes may share it. A file is there whole or not at all, and one that was damaged is
    as if it were not there. It holds answers and hashes: no question, and nothing of a key.

    Arguments:
        folder: where answers are kept; it is made with the first.

    Raises:
        InputError: there is something else of that name.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"answers are kept in a folder, but {str(folder)!r} is a file; give another name")

    def __repr__(self) -> str:
        return f"AnswerCache({str(self.folder)!r})"

    @staticmethod
    def key(identity: Mapping[str, Any], prompt: Prompt) -> str:
        """Return the hash of a back end's identity and a question."""
        return _sha256([identity, prompt.sha256])

    def get(self, key: str) -> Answer | None:
        """Return the answer of that key, or None."""
        try:
            text = self._path(key).read_text(encoding="utf-8")
            check_nesting(text)
            content = json.loads(text)
            answer = Answer(**content["answer"])
            whole = content["key"] == key and content["sha256"] == _sha256(asdict(answer))
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return answer if whole else None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; when this returns it survives the process.

        Raises:
            InputError: the folder cannot be written to.
        """
        path, plain = self._path(key), asdict(answer)
        text = json.dumps({"key": key, "answer": plain, "sha256": _sha256(plain)}, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise InputError(f"cannot keep answers in {str(self.folder)!r}: {error.strerror or error}") from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whoever reads or writes it meanwhile.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
