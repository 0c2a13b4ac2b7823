"""What may be removed from the cache: never what a living job needs or nobody has fetched yet."""

import contextlib
import os
import shutil
import time

from . import blobs, files, jobs

KEEP_S = 14 * 86400.0
# So many of the latest jobs stay for their hosts to ask again; more would slow the agent's start.
KEEP_JOBS = 200
# Another host's boardfit may be running one that it started lately, and start workers from it.
KEEP_AGENTS_S = 86400.0
# An upload that was cut is taken up again within a campaign, not a week later.
KEEP_PARTS_S = 2 * 86400.0
KINDS = ("jobs", "blobs", "parts", "engines", "agents", "leftovers")
# What is known of engines, and timing caches: see trt_build.
ENGINES = "engines"


def _entries(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _age_s(path):
    """Seconds since the last change; where a clock was set back it is 0, and the file stays."""
    try:
        return max(0.0, time.time() - os.lstat(path).st_mtime)
    except OSError:
        return 0.0


def _size_bytes(path):
    if not _is_folder(path):
        return os.lstat(path).st_size
    total_bytes = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a job has just removed it
                total_bytes += os.lstat(os.path.join(folder, name)).st_size
    return total_bytes


def _is_folder(path):
    """Whether it is a folder itself, and no link to one, behind which nothing is ours."""
    return os.path.isdir(path) and not os.path.islink(path)


class Removed:
    """Removes files and folders, and counts them by kind."""

    def __init__(self):
        self.counts = dict.fromkeys(KINDS, 0)
        self.freed_bytes = 0

    def take(self, kind, path):
        """Remove ``path``; what cannot be removed stays."""
        with contextlib.suppress(OSError):
            size_bytes = _size_bytes(path)
            if _is_folder(path):
                shutil.rmtree(path)
            else:
                os.remove(path)
            self.counts[kind] += 1
            self.freed_bytes += size_bytes


def sweep(cache_dir, own_agent, keep_s=KEEP_S, unfetched=False):
    """What was removed because nobody has touched it for ``keep_s``, and what the dead left.

    Blobs and jobs of living jobs stay, this agent stays, and so do results that no host has
    fetched, unless ``unfetched``.
    """
    removed = Removed()
    folders = [jobs.folder_of(cache_dir, name) for name in _entries(jobs.folder_of(cache_dir, ""))]
    for number, folder in enumerate(sorted(folders, key=_age_s)):
        _sweep_job(removed, folder, keep_s if number < KEEP_JOBS else 0.0, unfetched)
    needed = jobs.needed_blobs(cache_dir)
    for folder, kind, limit_s in (
        (blobs.folder_of(cache_dir), "blobs", keep_s),
        (blobs.parts_folder_of(cache_dir), "parts", min(keep_s, KEEP_PARTS_S)),
        (os.path.join(cache_dir, ENGINES), "engines", keep_s),
    ):
        for name in _entries(folder):
            path = os.path.join(folder, name)
            unused = name not in needed and _age_s(path) >= limit_s
            if os.path.isfile(path) and unused:
                removed.take(kind, path)
    for name in _entries(os.path.join(cache_dir, "agents")):
        path = os.path.join(cache_dir, "agents", name)
        if files.is_leftover(name):
            removed.take("leftovers", path)
        elif name != own_agent and _age_s(path) >= max(keep_s, KEEP_AGENTS_S):
            removed.take("agents", path)
    return removed


def _sweep_job(removed, folder, keep_s, unfetched):
    if os.path.islink(folder):
        return
    if os.path.basename(folder).startswith("."):
        if files.is_leftover(folder):
            removed.take("leftovers", folder)
        return
    for name in _entries(folder):
        if files.is_leftover(name):
            removed.take("leftovers", os.path.join(folder, name))
    if _age_s(folder) < keep_s or jobs.alive(folder):
        return
    fetched = os.path.exists(os.path.join(folder, jobs.FETCHED))
    if fetched or unfetched or jobs.is_without_result(folder):
        removed.take("jobs", folder)


def usage(cache_dir):
    """Bytes in the cache and free on its disk."""
    return {
        "cache_bytes": _size_bytes(cache_dir),
        "blob_bytes": sum(size for _, size, _ in blobs.listed(cache_dir)),
        "jobs": len(_entries(os.path.join(cache_dir, "jobs"))),
        "free_bytes": blobs.free_on_disk(cache_dir),
    }
