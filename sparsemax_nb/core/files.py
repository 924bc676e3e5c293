"""Atomic writing: a file is written completely or not at all.

The data goes to a temporary file in the same folder, is flushed to disk, and the file is renamed. So a reader finds
the old file or the new one, also after a crash or a full disk, and when several processes write at once.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import sys

#: Most symbolic links to follow; the limit of the Linux kernel.
MAX_LINKS = 40
#: Bytes of a file's name that its temporary name repeats: most file systems allow 255 in total.
MAX_STEM = 200


@contextlib.contextmanager
def writing(path):
    """A binary file, open for writing and reading, that replaces `path` when the block ends without an error.

    Symbolic links are followed. A new file gets the permissions that ``open`` would give it; a replaced file keeps its
    own. An existing `path` that is not a regular file (a device, a pipe, /dev/stdout) is written to directly.

    Raises
    ------
    OSError
        The folder does not exist, `path` is a folder, the file or folder is read-only, or the disk is full. The message
        names `path` and ``errno`` is set. The old file is unchanged and the temporary file is removed.
    """
    try:
        target = _target(path)
        if isinstance(target, int):
            if sys.stdout is not None:
                sys.stdout.flush()  # keep the order with text printed earlier
            with os.fdopen(os.dup(target), "wb") as file:
                yield file
            return
        before = _status(target)
        if before is not None and not stat.S_ISREG(before.st_mode):
            with open(target, "wb") as file:
                yield file
            return
        handle, temporary = _create(target)
        with os.fdopen(handle, "w+b") as file:
            try:
                if before is not None:
                    with contextlib.suppress(OSError):  # without the permission, the new file belongs to this user
                        os.fchown(handle, before.st_uid, before.st_gid)
                    with contextlib.suppress(OSError):  # some file systems have no permissions
                        os.fchmod(handle, before.st_mode & 0o777)
                yield file
                file.flush()
                os.fsync(handle)
                os.replace(temporary, target)  # while open, hence locked: see `_remove_stale`
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(temporary)
                with contextlib.suppress(OSError):  # the buffer cannot be flushed
                    file.close()
                raise
        _flush_folder(os.path.dirname(target))
    except BrokenPipeError:  # the reader has closed the pipe
        raise
    except OSError as error:
        raise _explained(path, error) from None


def check_writable(path, nbytes=0):
    """OSError, as from `writing`, if a file of `nbytes` bytes cannot be written at `path`; call it before long work."""
    try:
        target = _target(path)
        if isinstance(target, int):
            os.fstat(target)
            return
        before = _status(target)
        if before is not None and not stat.S_ISREG(before.st_mode):
            return
        handle, temporary = _create(target)
        os.remove(temporary)  # while it is locked: see `_remove_stale`
        os.close(handle)
        disk = os.statvfs(os.path.dirname(target))
    except OSError as error:
        raise _explained(path, error) from None
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < nbytes:  # some network file systems report 0
        error = OSError(
            f"{path} cannot be written: the disk has {free / 2**20:,.1f} MiB free, "
            f"the file needs {nbytes / 2**20:,.1f} MiB"
        )
        error.errno = errno.ENOSPC
        raise error


def same_file(path, other):
    """Whether both paths lead to the same regular file, existing or not."""
    target = _resolve(path)
    if isinstance(target, int) or target != _resolve(other):
        return False
    status = _status(target)
    return status is None or stat.S_ISREG(status.st_mode)


def reserve(file, nbytes):
    """Extend the file to `nbytes` and reserve that space on disk; OSError if there is not enough.

    Without reserved space, a write to a memory-mapped page of the file could crash the process.
    """
    if nbytes:
        os.posix_fallocate(file.fileno(), 0, nbytes)


def _explained(path, error):
    """The system's error with a message that names `path` and the reason; our own errors are returned unchanged."""
    if error.errno is None:
        return error
    explained = type(error)(f"{path} cannot be written: {error.strerror}")
    explained.errno = error.errno
    return explained


def _target(path):
    """The path behind all symbolic links, or the number of a file descriptor; OSError if it cannot be written."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} cannot be written: it is a folder; name a file in it")
    target = _resolve(path)
    if isinstance(target, int):
        return target
    folder, name = os.path.split(target)
    if not name or not os.path.isdir(folder):
        raise FileNotFoundError(f"{path} cannot be written: there is no such folder")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise PermissionError(f"{path} cannot be written: the file is read-only")
    return target


def _resolve(path):
    """The path behind all symbolic links; for /dev/stdout, /dev/fd/3 and the like, the number of the file descriptor.

    Descriptors are used directly: opening such a path again would start at the beginning of a redirected file.
    """
    descriptor_folders, path = {f"/proc/{os.getpid()}/fd", "/dev/fd"}, os.path.join(os.getcwd(), os.fsdecode(path))
    for _ in range(MAX_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if folder in descriptor_folders and name.isdecimal():
            return int(name)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return path
        path = os.path.join(folder, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _status(path):
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _create(target):
    """(descriptor, path) of a new temporary file next to `target`, locked by this process; removes stale ones."""
    folder, name = os.path.split(target)
    stem = "." + os.fsdecode(os.fsencode(name)[:MAX_STEM])
    _remove_stale(folder, stem)
    while True:
        temporary = os.path.join(folder, f"{stem}.{os.getpid()}-{secrets.token_hex(4)}.part")
        with contextlib.suppress(FileExistsError):
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process takes it for stale and removes it
                os.close(handle)
                continue
            except OSError:  # no locks on this file system, so nothing is removed there
                return handle, temporary
            if os.fstat(handle).st_nlink:
                return handle, temporary
            os.close(handle)


def _remove_stale(folder, stem):
    """Remove temporary files of killed writers: their locks ended with their processes."""
    pattern = re.compile(re.escape(stem) + r"\.[0-9]+-[0-9a-f]{8}\.part")
    with contextlib.suppress(OSError):  # a folder that may not be listed
        for name in filter(pattern.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):  # in use, owned by another user, or already removed
                path = os.path.join(folder, name)
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.remove(path)
                finally:
                    os.close(handle)


def _flush_folder(folder):
    """Flush the folder, so that the new name reaches the disk, on file systems that support it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
