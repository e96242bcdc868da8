# SPDX-License-Identifier: Apache-2.0
"""The walls around a worker, in the order they go up.

    supervisor   `leave`: gives up what none of its workers needs
    forked       `enter`: ends with its parent; limits; namespaces, where a second fork makes the first process of
                 a new process id namespace; the shared directory becomes the root; no new privileges; the
                 capabilities the share needs and no others
                 (the share is opened, its records are made)
                 `seal`: no more Python modules; Landlock; seccomp
    serving      a guest's first byte

The process in the middle of the two forks only waits, and ends as the worker ended.  docs/security.md says what
each wall leaves open.
"""

from __future__ import annotations

import copy
import errno
import os
import sys
from collections.abc import Callable, Sequence

from virtiofs.sandbox import capabilities, landlock, namespaces, process, seccomp
from virtiofs.sandbox.idmaps import IdMaps, IdRange

MODES = ("namespace", "chroot", "none")
SECCOMP = (*seccomp.ACTIONS, "none")

# What a share served as root needs: owners and modes of files, users to create as, whiteouts, file capabilities.
SHARE = capabilities.mask("chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap")
HANDLES = capabilities.mask("dac_read_search")  # open_by_handle_at
IDS = capabilities.mask("setuid", "setgid")
# Of modules that are in the interpreter itself.
INNER_FINDERS = ("BuiltinImporter", "FrozenImporter")
# What it takes to put the walls up.
BUILDING = capabilities.mask("sys_admin", "sys_chroot", "setpcap", "sys_resource", "setgid")


class Place:
    """Where the worker finds its share: `directory`, and `proc`, a descriptor of its own /proc/self/fd."""

    def __init__(self, directory: str, proc: int):
        self.directory = directory
        self.proc = proc


class Walls:
    """The walls around workers that share `directory`, which is resolved once, now: see `enter_directory`.

    None: they share no directory of the host, have an empty one as their root, and no privilege.

    `mode`: one of `MODES`.  `filter`: what happens to a system call that is not on the list, one of `SECCOMP`.
    `changes`: capabilities to add and to take, "+NAME:-NAME...".  `file_handles`: come back to files by handle.
    `users`, `groups`: the ids of a user namespace, which is made in any case if there are some.  `dax`: the worker has
    a window.  `descriptors`: how many the worker may have (0: as many as is useful, None: as many as we may).
    `watcher`: processes that watch the host are forked later on, and need the file handles that workers may not have.
    `features`: what else of the seccomp table the workers need, "python" or "network" (which leaves them that).
    `files`: instead of an empty root the host's, to read with what the user may, and without any privilege.
    `warn` is given what a user should know.  Raises `ValueError` for what makes no sense, `OSError` for what
    can not be done here.
    """

    def __init__(
        self,
        directory: str | None,
        mode: str = "namespace",
        filter: str = "kill",
        changes: str = "",
        read_only: bool = False,
        file_handles: bool = True,
        descriptors: int | None = 0,
        dax: bool = False,
        warn: Callable[[str], None] = lambda text: None,
        users: Sequence[IdRange] = (),
        groups: Sequence[IdRange] = (),
        features: Sequence[str] = (),
        watcher: bool = False,
        files: bool = False,
    ):
        permitted = capabilities.permitted()
        self._directory = None if directory is None else os.path.realpath(directory)
        self._mode = mode
        self._read_only = read_only
        self._descriptors = descriptors
        self._warn = warn
        self._features = tuple(features)
        self._watching = HANDLES if watcher else 0
        self._files = files and directory is None
        if self._files:
            self._directory, self._read_only = "/", True
        self._capabilities = 0 if directory is None else SHARE | (HANDLES if file_handles else 0)
        if changes:
            self._capabilities = capabilities.change(self._capabilities, changes)
        missing = capabilities.names(self._capabilities & ~(SHARE | HANDLES) & ~permitted)
        if missing:
            raise ValueError(f"--modcaps can not add what we do not have: {', '.join(missing)}")
        self._maps: IdMaps | None = None
        if users or groups:
            if mode != "namespace":
                raise ValueError(f"ids are mapped in a user namespace, which --sandbox {mode} does not make")
            self._maps = IdMaps(users, groups, permitted & IDS == IDS)
        privileged = permitted & capabilities.mask("sys_admin")
        self._new_user = mode == "namespace" and (self._maps is not None or not privileged)
        if self._new_user and self._maps is None and os.geteuid() == 0:
            raise OSError(
                "--sandbox namespace needs the capability sys_admin; grant it, or use --sandbox chroot or none"
            )
        if mode == "chroot" and not permitted & capabilities.mask("sys_chroot"):
            raise OSError("--sandbox chroot needs the capability sys_chroot; use --sandbox namespace or none")
        if mode == "none":
            warn("--sandbox none: the worker can name every file of the host that its user may touch")
        if self._new_user:
            # No file handles there, and if the namespace has one user, nobody to switch to.
            self._capabilities &= ~(HANDLES if self._maps is not None else IDS | HANDLES)
            held = self._capabilities
        else:
            held = self._capabilities & permitted
        self._handles = bool(held & HANDLES)
        self._filter: bytes | None = None
        if filter == "none":
            warn("--seccomp none: the worker may make every system call")
        else:
            allowed = ["core"]
            if held & IDS == IDS:
                allowed.append("ids")
            if self._handles:
                allowed.append("handles")
            if dax:
                allowed.append("dax")
            self._filter = seccomp.program((*allowed, *self._features), filter)

    def around(self, directory: str, read_only: bool) -> Walls:
        """The same walls around another directory."""
        walls = copy.copy(self)
        walls._directory = os.path.realpath(directory)
        walls._read_only = read_only
        return walls

    def leave(self) -> None:
        """Give up what no worker needs; for the supervisor, once, when its socket listens."""
        if self._maps is None or not self._maps.programs:  # these are set-user-ID
            process.no_new_privileges()
        capabilities.keep(self._capabilities | BUILDING | self._watching)

    def enter(self, parent: int, *keep: int) -> Place:
        """Put up the walls around this process, which was just forked by the process of pidfd `parent`.

        Of its descriptors only 0 to 2 and `keep` are left.  The process that returns may be a child of the
        one that called; the latter never returns, but ends as the former does.  Raises `OSError`.
        """
        close_all_but(parent, *keep)
        if self._descriptors is not None:
            process.set_descriptor_limit(self._descriptors)
        process.settle_allocator()
        if self._mode == "namespace":
            parent = self._fork(parent)
        process.die_with_parent(parent)
        os.close(parent)
        place = self._confine()
        process.shed_privilege()
        if self._new_user:
            process.limit_threads()
        capabilities.keep(self._capabilities)
        process.forbid_core()
        return place

    def _fork(self, parent: int) -> int:
        """Go on as the first process of a new process id namespace: a pidfd of the process that stays outside."""
        if self._maps is not None:
            namespaces.new_mapped_user(self._maps)
        elif self._new_user:
            namespaces.new_user()
        namespaces.new_processes()
        process.die_with_parent(parent)
        outside = os.pidfd_open(os.getpid())
        child = os.fork()
        if child:
            close_all_but()
            process.no_new_privileges()
            capabilities.keep(0)
            process.forbid_core()
            process.stand_in(child)
        os.close(parent)
        return outside

    def _confine(self) -> Place:
        """Make the directory the root, as far as the mode goes."""
        if self._directory is not None:
            return self._confine_to(self._directory)
        import tempfile  # which few workers need, and takes 10 ms

        # Removed when it is the root: nothing can be made in it, by anyone.
        path = tempfile.mkdtemp(prefix="virtiofs-root-")
        above = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._confine_to(os.path.realpath(path))
        finally:
            os.rmdir(os.path.basename(path), dir_fd=above)
            os.close(above)

    def _confine_to(self, directory: str) -> Place:
        if self._mode == "namespace":
            namespaces.new_rest("network" in self._features)
            enter_directory(directory)
            tree = namespaces.clone_tree(self._read_only)
            try:
                proc = namespaces.own_descriptors(mount_proc=True)
                namespaces.move_into(tree)
            finally:
                os.close(tree)
            return Place("/", proc)
        enter_directory(directory)
        try:
            proc = namespaces.own_descriptors(mount_proc=False)
        except OSError:  # it takes CAP_SYS_ADMIN
            proc = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._mode == "none":
            return Place(".", proc)
        os.chroot(".")
        os.chdir("/")
        return Place("/", proc)

    def seal(self, place: Place) -> None:
        """The last walls; nothing but serving may come after them.  Raises `OSError`."""
        inner = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") in INNER_FINDERS]
        if not self._files:  # there nothing is a guest's to write, and libraries import as they go
            forget_modules()
            if "python" in self._features:
                sys.meta_path[:] = [*inner, NoImporter()]
        landlock.restrict(
            "" if self._handles else place.directory, self._read_only, "network" in self._features
        )
        if self._filter is not None:
            process.load_filter(self._filter)


def close_all_but(*fds: int) -> None:
    """Close every descriptor that is not given; standard input and output lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in fds:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that listed them


def enter_directory(path: str) -> None:
    """Make `path` the working directory; it is absolute and was resolved before.

    A symbolic link in it is refused: each worker comes here anew, and a guest that may write to a directory above,
    because that is shared, too, could put one there.  Raises `OSError`.
    """
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in filter(None, path.split("/")):
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        os.fchdir(here)
    except NotADirectoryError:
        raise NotADirectoryError(
            errno.ENOTDIR,
            "no directory any more, or behind a symbolic link that was not there when the share was made; if that is"
            " meant, start the daemon again",
            path,
        ) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(here)


def forget_modules() -> None:
    """Import nothing from here on: the paths where Python looks are now the guest's to write."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.meta_path.clear()
    sys.path_importer_cache.clear()


class NoImporter:
    """Says why a module that comes from a file can not be imported any more (`sys.meta_path`)."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises `ImportError`."""
        raise ImportError(
            f"the module {name} can not be imported behind the walls of the process that serves; import it at the top"
            " of the file system's module",
            name=name,
        )
