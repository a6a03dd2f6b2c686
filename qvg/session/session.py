"""A run on disk that grows: finished blocks, what caches remember of them, and all that it takes to go on bit for bit.

    with Session.create(folder, "demo world", identity, settings) as session:
        for block in generate(model, cache, blocks, settings):
            session.add(block.latent)
            session.checkpoint([cache])            # or where `session.due`
    ...
    with Session.open(folder) as session:          # after a kill, too
        (cache,) = session.restore()
        generate(model, cache, blocks, settings, first_block=session.blocks)

A checkpoint writes what is new into segments, which never change, forces them to the disk, and then replaces the manifest in one
step: whatever ends the run, the newest manifest's session is whole. docs/sessions.md says more, docs/format.md every byte.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..cache import KVCache
from ..errors import CacheError, ConfigError, SessionError, SessionInUseError
from ..files import force_all_to_disk
from .checked import Getter, MisfitError, as_list, as_object
from .folder import in_one_sentence, link, locked, new_line, require_empty, require_same
from .folder_lock import FolderLock
from .manifest import INDEX, REMEDY, Index, Manifest, append_line, read_index, read_manifest
from .recorder import CacheRecorder
from .restored import usable_device
from .segment import ENDING, NAME, OpenSegment, Segment, write_segment
from .stored_cache import stored_cache

DEFAULT_EVERY = 4
_BLOCKS, _START = "blocks", "start"
_TRIES = 3


class Session:
    """Made by `create`, `open` and `branch`; `close` it, or use it in a `with`: then what waits is written, if it can be.

    `manifest` is what the newest checkpoint says. `every`: blocks from one checkpoint to the next.
    """

    def __init__(self, folder: Path, manifest: Manifest, index: Index, lock: FolderLock | None):
        self.folder, self.manifest, self.index = folder, manifest, index
        self._lock = lock
        self._recorders: list[CacheRecorder] = []
        # The caches that blocks were added with, and how many frames each had committed by then.
        self._caches: tuple[KVCache, ...] = ()
        self._standing: list[int] = []
        self._waiting: list[tuple[Tensor, dict[str, Any]]] = []
        # What the next checkpoint says is to be made; and of this run's checkpoints: bytes of segments, and seconds.
        self.plan: Mapping[str, Any] = manifest.plan
        self.written_bytes, self.spent_seconds = 0, 0.0
        # Files that a run left which was ended.
        self.removed = 0

    # ------------------------------------------------------------------------------------------------------------- begin

    @classmethod
    def create(
        cls,
        folder: Path,
        model: str,
        identity: Mapping[str, Any],
        settings: Mapping[str, Any],
        plan: Mapping[str, Any] | None = None,
        every: int = DEFAULT_EVERY,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Session:
        """A new session in a folder that is made, or is empty. `identity`, `settings`, `plan`: JSON, see `Manifest`; `tensors`:
        what the run began from, kept once. ConfigError for a folder with something in it, OSError from the disk."""
        if type(every) is not int or every < 1:
            raise ConfigError(f"every is {every!r}, but must be a whole number of blocks from 1 on; {DEFAULT_EVERY} works well")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = locked(folder)
        try:
            require_empty(folder)
            said = [json.loads(json.dumps(dict(each or {}))) for each in (identity, settings, plan)]
            manifest = Manifest(secrets.token_hex(8), model, said[0], said[1], said[2], every)
            session = cls(folder, manifest, Index(), lock)
            if tensors:
                started = write_segment(folder, f"{_START}-00000000", tensors, {})
                session.manifest = append_line(folder, manifest, new_line([started], [], {}))
                session.index.apply(new_line([started], [], {}))
            session.manifest.write(folder)
        except BaseException:
            lock.release()
            raise
        return session

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any] | None = None, identity: Mapping[str, Any] | None = None) -> Session:
        """Go on with a session. SessionError: it is damaged, or was made with other settings or another model than these;
        SessionInUseError: another run writes to it."""
        folder = Path(folder)
        read_manifest(folder)  # says what is wrong before a lock is left in somebody's folder
        lock = locked(folder)
        try:
            manifest = read_manifest(folder)
            require_same(folder, manifest, identity, settings)
            session = cls(folder, manifest, read_index(folder, manifest), lock)
            session._remove_leftovers()
        except BaseException:
            lock.release()
            raise
        return session

    @classmethod
    def look(cls, folder: Path) -> Session:
        """To read only, while another run may write."""
        manifest = read_manifest(Path(folder))
        return cls(Path(folder), manifest, read_index(Path(folder), manifest), None)

    @classmethod
    def branch(cls, source: Path, folder: Path) -> Session:
        """A session that goes its own way behind the newest checkpoint of another one, which may be in use. Segments are shared:
        both folders name the same files, as far as the disk can, and either may be deleted."""
        folder = Path(folder)
        for _ in range(_TRIES):
            origin = cls.look(source)
            folder.mkdir(parents=True, exist_ok=True)
            lock = locked(folder)
            try:
                require_empty(folder)
                if origin._share(folder):
                    parent = {"id": origin.manifest.id, "name": Path(source).name, "blocks": origin.manifest.blocks}
                    manifest = replace(origin.manifest, id=secrets.token_hex(8), parent=parent)
                    manifest.write(folder)
                    return cls(folder, manifest, read_index(folder, manifest), lock)
            except BaseException:
                lock.release()
                raise
            lock.release()
        raise SessionInUseError(f"{source} is written to faster than it can be read; branch it off when its run has stopped")

    def _share(self, folder: Path) -> bool:
        """All files of this checkpoint in another folder. -> whether they were still there"""
        for segment in self.index.segments.values():
            try:
                link(segment.path(self.folder), segment.path(folder))
            except FileNotFoundError:
                for path in folder.glob(f"*{ENDING}"):
                    path.unlink()
                return False
        if self.manifest.index_bytes:
            with (self.folder / INDEX).open("rb") as file:
                (folder / INDEX).write_bytes(file.read(self.manifest.index_bytes))
            force_all_to_disk([folder / INDEX])
        return True

    # -------------------------------------------------------------------------------------------------------------- read

    @property
    def blocks(self) -> int:
        """Finished blocks on disk."""
        return self.manifest.blocks

    def finished(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Latents of the finished blocks and what is known of each, one after the other. SessionError."""
        count = 0
        for segment in [each for name, each in self.index.segments.items() if name.startswith(f"{_BLOCKS}-")]:
            with in_one_sentence(self.folder):
                opened = OpenSegment(self.folder, segment)
                facts = as_list(Getter("blocks", opened.about)("facts"), "facts", as_object)
                if set(opened.entries) != {f"block.{number}" for number in range(len(facts))}:
                    raise MisfitError(f"{segment.name} has {len(opened.entries)} latents for {len(facts)} blocks")
            for number, each in enumerate(facts):
                yield opened.read(f"block.{number}"), each
            count += len(facts)
        if count != self.manifest.blocks:
            raise SessionError(f"{self.folder} has {count} blocks, but its manifest says {self.manifest.blocks}; {REMEDY}")

    def start(self) -> dict[str, Tensor]:
        """What the run began from."""
        segment = self.index.segments.get(f"{_START}-00000000")
        opened = None if segment is None else OpenSegment(self.folder, segment)
        return {} if opened is None else {name: opened.read(name) for name in opened.entries}

    def restore(self, device: torch.device | str = "cpu", backend: str | None = None) -> list[KVCache]:
        """The caches as they were at the newest checkpoint, on `device`; the session goes on recording them. SessionError."""
        there = usable_device(device)
        with in_one_sentence(self.folder):
            pairs = [stored_cache(self.folder, said, self.index, there, backend) for said in self.manifest.caches]
        self._recorders = [recorder for _, recorder in pairs]
        self._caches, self._standing = tuple(cache for cache, _ in pairs), []
        return list(self._caches)

    def verify(self) -> None:
        """Read every byte, and make the caches once. SessionError where one is not what was written."""
        for segment in self.index.segments.values():
            with in_one_sentence(self.folder):
                opened = OpenSegment(self.folder, segment)
            for name in opened.entries:
                opened.read(name)
        for _ in self.finished():
            pass
        Session.look(self.folder).restore()

    # -------------------------------------------------------------------------------------------------------------- write

    @property
    def due(self) -> bool:
        """Whether enough blocks wait for a checkpoint."""
        return len(self._waiting) >= self.manifest.every

    def add(self, latent: Tensor, caches: Sequence[KVCache] = (), frames: int | None = None, **facts: Any) -> None:
        """A finished block [B, ...], on any device, kept by reference until it is written, and what is to be known of it, as JSON
        has it. `caches` as they stand behind it: a run that is ended before the next block leaves them so. `frames`: its latent
        frames; None: along axis 1."""
        self._waiting.append((latent, {**facts, "frames": int(latent.shape[1]) if frames is None else frames}))
        self._caches, self._standing = tuple(caches), [cache.frames_committed for cache in caches]

    def checkpoint(self, caches: Sequence[KVCache] = ()) -> None:
        """All blocks so far, and the caches as they stand behind them, are on disk when this returns. OSError: they are not, the
        checkpoint before is, and the next one tries again. CacheError for a cache whose commit was cut off."""
        begun = time.perf_counter()
        for cache in caches:
            cache.check_usable()
        blocks = self.manifest.blocks + len(self._waiting)
        recorders, lives = self._recorders_of(caches)
        gone = [name for old in self._recorders if old not in recorders for name in old.names()]
        added, said = self._written_blocks(), list[dict[str, Any]]()
        origins: dict[str, Any] = {}
        for recorder in recorders:
            change = recorder.checkpoint(self.folder, blocks)
            added += change.added
            gone += change.gone
            origins |= {recorder.prefix: change.origins} if change.origins else {}
            said.append({"prefix": recorder.prefix, "state": change.state})
        manifest = replace(
            self.manifest,
            blocks=blocks,
            frames=self.manifest.frames + sum(facts["frames"] for _, facts in self._waiting),
            lives=lives,
            caches=tuple(said),
            plan=json.loads(json.dumps(dict(self.plan))),
        )
        line = new_line(added, gone, origins)
        manifest = append_line(self.folder, manifest, line)
        manifest.write(self.folder)
        self.manifest, self._recorders = manifest, recorders
        self.index.apply(line)
        self._caches, self._standing = tuple(caches), [cache.frames_committed for cache in caches]
        self._waiting.clear()
        for name in gone:
            with suppress(OSError):
                (self.folder / f"{name}{ENDING}").unlink()
        self.written_bytes += sum(segment.nbytes for segment in added)
        self.spent_seconds += time.perf_counter() - begun

    def close(self) -> None:
        """Let another run write. What waits is lost: `checkpoint` first."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stand = [cache.frames_committed for cache in self._caches] == self._standing
        try:
            if self._waiting and self._lock is not None and stand:
                self.checkpoint(self._caches)
        except (CacheError, OSError):  # a commit was cut off, or the disk is full: the checkpoint before is there
            if error is None:
                raise
        finally:
            self.close()

    def _recorders_of(self, caches: Sequence[KVCache]) -> tuple[list[CacheRecorder], int]:
        """What records each of them, and how many caches there were in all. One that was reset or replaced is written anew."""
        found, lives = [], self.manifest.lives
        for number, cache in enumerate(caches):
            known = self._recorders[number] if number < len(self._recorders) else None
            if known is None or not known.is_of(cache):
                known, lives = CacheRecorder(f"c{number}-{lives}", cache), lives + 1
            found.append(known)
        return found, lives

    def _written_blocks(self) -> list[Segment]:
        if not self._waiting:
            return []
        tensors = {f"block.{number}": latent.detach() for number, (latent, _) in enumerate(self._waiting)}
        facts = [each for _, each in self._waiting]
        return [write_segment(self.folder, f"{_BLOCKS}-{self.manifest.blocks:08}", tensors, {"facts": facts})]

    def _remove_leftovers(self) -> None:
        """Segments of a checkpoint that never was, and those that had gone when the run was ended."""
        for path in self.folder.glob(f"*{ENDING}"):
            if NAME.fullmatch(path.stem) and path.stem not in self.index.segments:
                with suppress(OSError):
                    path.unlink()
                    self.removed += 1
