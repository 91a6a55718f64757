"""Optuna's journal, a file that the workers of a search share: opened, and mended where a kill has torn it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kd.runtime.files import refuse_links_of_others, remove_left, write_atomically

RECORD_BEGINS = '{"op_code":'  # in Optuna's journal, a line each
OPERATIONS = 11  # of Optuna's journal: op_code counts from 0


def open_journal(journal: Path, say: Callable[[str], Any]) -> Any:
    """Return Optuna's storage in this file, which is made, or mended, where it has to be.

    One that Optuna cannot make sense of is put aside: what trials have found is in their folders.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal.parent.mkdir(parents=True, exist_ok=True)
    mend(journal, say)
    try:
        return JournalStorage(JournalFileBackend(str(journal), file_lock(journal)))
    except (LookupError, TypeError, ValueError):
        aside = journal.rename(journal.with_name(f"{journal.name}.damaged-{time.time_ns()}"))
        say(f"{journal}: Optuna cannot read it; a new one is begun, as it was: {aside.name}")
        return JournalStorage(JournalFileBackend(str(journal), file_lock(journal)))


def mend(journal: Path, say: Callable[[str], Any]) -> None:
    """Leave only whole records in a journal: one torn by a kill or a full disk fails all readers that come after it.

    The file as it was stays next to it. Appending processes hold the same lock, so that nobody's record is lost. Raises
    ConfigError for a link of another user's, which may lead to what only this one may read.
    """
    refuse_links_of_others([journal])
    lock = file_lock(journal)
    lock.acquire()
    try:
        found = journal.read_bytes().decode("latin-1") if journal.exists() else ""  # any byte is a character
        records = list(_records(found))
        mended = "".join(f"{record}\n" for record in records)
        if mended != found:
            aside = journal.with_name(f"{journal.name}.damaged-{time.time_ns()}")
            write_atomically(aside, lambda file: file.write(found.encode("latin-1")))
            write_atomically(journal, lambda file: file.write(mended.encode("latin-1")))
            whole = set(records)
            torn = sum(line.strip() != "" and line not in whole for line in found.split("\n"))
            say(f"{journal}: {torn} torn lines left out, {len(records)} records kept; as it was: {aside.name}")
    finally:
        lock.release()


def file_lock(file: Path) -> Any:
    """Return the lock of all that read or write a file; one that a killed process left is taken over after 30 s.

    Optuna's default, a link to the journal, would be waited for without end where that path leads nowhere.
    """
    from optuna.storages.journal import JournalFileOpenLock

    left = file.with_name(f"{file.name}.lock")
    if left.is_symlink():  # of an older kd, or of Optuna used otherwise
        left.unlink(missing_ok=True)
    remove_left(left, ".rename", time.time())  # of workers that were killed while they released it
    return JournalFileOpenLock(str(file))


def _records(text: str) -> Iterator[str]:
    """Yield the whole records in a journal, also those that were appended to a torn one."""
    decoder, start = json.JSONDecoder(), text.find(RECORD_BEGINS)
    while start >= 0:
        try:
            record, end = decoder.raw_decode(text, start)
            if record["op_code"] in range(OPERATIONS) and "worker_id" in record:  # others fail every reader
                yield text[start:end]
        except (ValueError, KeyError, TypeError):
            end = start + 1
        start = text.find(RECORD_BEGINS, end)
