"""Files known by their SHA-256: written by the transport, verified here, renamed into place.

An upload that was cut leaves its first part in ``incoming`` and goes on from there. Two hosts may
write the same part at once: what has one hash has the same bytes at every place.
"""

import contextlib
import errno
import hashlib
import os
import re

CHUNK_BYTES = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# So much of the disk stays free, for results and for the system.
RESERVE_BYTES = 16 << 20


class BlobMissing(Exception):
    """A blob is not on the board."""


class BlobDamaged(Exception):
    """A blob's bytes are not those that its name promises."""


class NoRoom(OSError):
    """A blob does not fit on the board's disk."""


def sha256_of(path):
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def folder_of(cache_dir):
    """Where blobs lie."""
    return os.path.join(cache_dir, "blobs")


def path_of(cache_dir, sha256):
    """Where the blob lies, or would lie; a name that is no hash leads nowhere."""
    if not SHA256.match(sha256):
        raise ValueError("%r is no SHA-256" % sha256[:80])
    return os.path.join(folder_of(cache_dir), sha256)


def require(cache_dir, sha256):
    """Path of a blob that must be there and whole; ``BlobMissing`` or ``BlobDamaged`` if not."""
    path = path_of(cache_dir, sha256)
    if not _is_file(path):
        raise BlobMissing("blob %s is not on the board: upload it first" % sha256)
    found = sha256_of(path)
    if found != sha256:
        with contextlib.suppress(OSError):
            os.remove(path)
        raise BlobDamaged("blob %s had SHA-256 %s on the board's disk" % (sha256, found))
    return path


def _is_file(path):
    """Whether it is a file itself: what a link points to is not the cache's to write or age."""
    return os.path.isfile(path) and not os.path.islink(path)


def has(cache_dir, sha256):
    """Whether the blob is here; being asked for keeps it from the next clean-up."""
    path = path_of(cache_dir, sha256)
    if not _is_file(path):
        return False
    with contextlib.suppress(OSError):
        os.utime(path, None)
    return True


def incoming(cache_dir, sha256):
    """Path of a blob that is still being written."""
    return os.path.join(parts_folder_of(cache_dir), os.path.basename(path_of(cache_dir, sha256)))


def parts_folder_of(cache_dir):
    """Where blobs lie that are still being written."""
    return os.path.join(folder_of(cache_dir), "incoming")


def begin(cache_dir, sha256, size_bytes, limit_bytes, needed):
    """Path for the transport to write to and how many bytes are there already.

    Blobs that nobody has asked for in the longest time make room where the cache would grow past
    ``limit_bytes`` or the disk is short, but for those in ``needed``. ``NoRoom`` if that is not
    enough.
    """
    path = incoming(cache_dir, sha256)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path) and not _is_file(path):
        os.remove(path)
    # Made here, so that the transport need neither create it nor cut it.
    with open(path, "ab") as stream:
        offset = stream.tell()
        if offset > size_bytes:
            stream.truncate(0)
            offset = 0
    make_room(cache_dir, size_bytes - offset, limit_bytes, set(needed) | {sha256})
    free_bytes = free_on_disk(os.path.dirname(path))
    if size_bytes - offset + RESERVE_BYTES > free_bytes:
        raise NoRoom(
            errno.ENOSPC,
            "%d bytes do not fit on the board's disk: %d are free and %d stay so; "
            "make room there, or set cache_dir" % (size_bytes - offset, free_bytes, RESERVE_BYTES),
        )
    return path, offset


def commit(cache_dir, sha256, arrived=None):
    """Size of the blob, which has been verified and is now in place; a corrupt one is removed.

    ``arrived`` is the hash that the receiving end computed on the way; what the disk then makes of
    it is seen by ``require``, before each use.
    """
    path = incoming(cache_dir, sha256)
    try:
        if not _is_file(path):
            raise FileNotFoundError(path)
        found = arrived or sha256_of(path)
        if found != sha256:
            os.remove(path)
            raise BlobDamaged("the bytes that arrived have SHA-256 %s, not %s" % (found, sha256))
        size_bytes = os.path.getsize(path)
        os.replace(path, path_of(cache_dir, sha256))
    except FileNotFoundError:
        # Another host has sent the same bytes and was first.
        if not has(cache_dir, sha256):
            raise BlobMissing("nothing was written to %s" % path)
        size_bytes = os.path.getsize(path_of(cache_dir, sha256))
    return size_bytes


def adopt(cache_dir, path):
    """SHA-256 and path of the blob that a file written on the board itself has become."""
    sha256 = sha256_of(path)
    os.makedirs(folder_of(cache_dir), exist_ok=True)
    os.replace(path, path_of(cache_dir, sha256))
    return sha256, path_of(cache_dir, sha256)


def free_on_disk(folder):
    """Bytes that an ordinary user may still write there."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def listed(cache_dir):
    """``(mtime, size, name)`` of every complete blob, the one longest not asked for first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder_of(cache_dir)):
            with contextlib.suppress(OSError):
                if SHA256.match(entry.name) and entry.is_file(follow_symlinks=False):
                    state = entry.stat(follow_symlinks=False)
                    found.append((state.st_mtime, state.st_size, entry.name))
    return sorted(found)


def make_room(cache_dir, size_bytes, limit_bytes, needed):
    """Bytes freed so that ``size_bytes`` more fit into the limit and on the disk."""
    blobs = listed(cache_dir)
    total_bytes = sum(size for _, size, _ in blobs)
    short_bytes = max(
        total_bytes + size_bytes - limit_bytes,
        size_bytes + RESERVE_BYTES - free_on_disk(folder_of(cache_dir)),
    )
    freed_bytes = 0
    for _, size, name in blobs:
        if freed_bytes >= short_bytes:
            break
        if name not in needed:
            with contextlib.suppress(OSError):
                os.remove(path_of(cache_dir, name))
                freed_bytes += size
    return freed_bytes
