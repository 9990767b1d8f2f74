"""The discover stage: compares folders with what is stored, and queues what is new or changed."""

from __future__ import annotations

import structlog

from pipeline.core.changes import Moves
from pipeline.ingest.stages.beside import is_known_folder, may_look, stay_while_others_work
from pipeline.ingest.stages.deletion import delete
from pipeline.ingest.stages.look import look_at
from pipeline.ingest.stages.reading import read_busy, read_settled, settle
from pipeline.ingest.work import Work, utc_now
from pipeline.store import hosts, library, overview, queue, retry

log = structlog.get_logger(__name__)


async def discover(work: Work) -> None:
    """Queue what is to be done: documents of another recipe, then what the folders hold.

    All folders are looked at before anything is queued, and all is queued before anything is deleted,
    so that a file that moved from one to another is known again.
    """
    touched = 0
    before = await work.store.read(queue.backlog, work.scopes, work.target)
    while changed := await work.store.write(library.retarget, work.scopes, work.target, utc_now()):
        touched += changed
    # Not `touched`: that counts also what an earlier run made already, which is there again at once.
    aimed = await work.store.read(queue.backlog, work.scopes, work.target)
    work.progress.changes.remade = aimed.contents - before.contents
    if work.passwords_tried is not None:
        await work.store.write(retry.retry_encrypted, work.scopes, work.target, work.passwords_tried)
    waiting = await work.store.read(queue.backlog, work.scopes, work.target)
    progress = work.progress
    progress.documents_total += waiting.contents
    progress.documents_read += waiting.extracted
    progress.chunks_total += waiting.chunks
    progress.resumed = (await work.store.read(overview.count_chunks, work.scopes))["embedded"] > 0
    if waiting.contents:
        work.wake_readers()
    known = [place for place in work.places if is_known_folder(work, place)]
    places = [place for place in known if await may_look(work, place)]
    looks = [look for place in places if (look := await look_at(work, place)) is not None]
    moves = Moves([document for look in looks for document in look.changes.missing])
    for look in looks:
        touched += await read_settled(work, look, moves)
    # What was moved by copying is younger than this run: it is read before what it was copied from is deleted.
    touched += await settle(work, looks, moves, 2 * work.looking.settle)
    await read_busy(work, looks, moves)
    await delete(work, looks, moves, touched=bool(touched))
    # Counted anew: what was replaced or forgotten on the way is no longer waited for.
    waiting = await work.store.read(queue.backlog, work.scopes, work.target)
    progress.documents_total = progress.documents_done + progress.documents_failed + waiting.contents
    progress.phase = "working"
    late = await settle(work, looks, moves, work.looking.patience, while_at_work=True)
    await read_busy(work, looks, moves)
    if late:
        await work.store.write(library.drop_leftovers)
    for look in looks:
        for path in sorted(look.unsettled):
            log.warning("a file is still being written to; a later run reads it", source=look.place.root, file=path)
            progress.unsettled.append(f"{look.place.root.rstrip('/')}/{path}")
    await work.store.write(hosts.end_looks, work.run_id)
    await stay_while_others_work(work, [place for place in known if place not in places])
    work.to_extract.close()
