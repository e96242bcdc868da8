# SPDX-License-Identifier: Apache-2.0
"""A policy (`policy.rules.Policy`) as what compiled code decides by, for one worker: its tables, its marks
(`marks.py`), and the files that it names (`ruled.py`).
"""

import os
import stat

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_SYMLINK_NOFOLLOW,
    S_IFDIR,
    S_IFMT,
    pthread_mutex_init,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import IDENTITY_MASK, ROOT_INDEX, node_id
from cython.cimports.virtiofs.fs.passthrough.marks import (
    DENY,
    FIRST_OWNER,
    FOLLOWS,
    HIDE,
    READ_ONLY,
    Mark,
    Policing,
    Ruled,
    set_mark,
)
from cython.cimports.virtiofs.fs.passthrough.ruled import rule_file
from cython.cimports.virtiofs.fs.policy.matcher import Matcher
from cython.cimports.virtiofs.fuse.request import Handler

from virtiofs.fs.policy.asking import Asker
from virtiofs.fs.policy.rules import patterns_of

FIRST_RULED = cython.declare(uint32_t, 1024)


@cython.cclass
class Verdicts:
    """What `policy` says of a share.  `log` is given what goes wrong in asking.

    Raises `ValueError` for patterns that make no sense, and `MemoryError`.
    """

    def __cinit__(self, policy: object, log: object):
        policing: cython.pointer(Policing) = cython.address(self.policing)
        pthread_mutex_init(cython.address(policing.lock), cython.NULL)
        self.policy = policy
        self.matcher = Matcher(patterns_of(policy))
        policing.tables = cython.address(self.matcher.tables)
        for number, owner in enumerate(policy.owners):
            index: cython.int = FIRST_OWNER + number
            if owner.uid is not None:
                policing.uids[index] = owner.uid
                policing.has_uid |= cython.cast(uint64_t, 1) << index
            if owner.gid is not None:
                policing.gids[index] = owner.gid
                policing.has_gid |= cython.cast(uint64_t, 1) << index
        if policy.ask_about:
            self.asker = Asker(policy, log)
            policing.asker = cython.cast(cython.p_void, self.asker)
        policing.ruled_mask = FIRST_RULED - 1
        policing.ruled = cython.cast(cython.pointer(Ruled), calloc(FIRST_RULED, cython.sizeof(Ruled)))
        if policing.ruled == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        policing: cython.pointer(Policing) = cython.address(self.policing)
        index: uint32_t
        if policing.marks != cython.NULL:
            for index in range(policing.named):
                free(policing.marks[index].path)
            munmap(policing.marks, cython.cast(cython.size_t, policing.limit) * cython.sizeof(Mark))
        free(policing.ruled)

    @cython.cfunc
    @cython.exceptval(-1)
    def begin(
        self, share: cython.pointer(Share), inner: cython.pointer(Handler), late: cython.bint
    ) -> cython.int:
        """Make the marks, with the root's, and find the files whose rules follow them.  `inner`: what does what is
        allowed.  `late`: the guest knows files already.  Raises `OSError`.
        """
        policing: cython.pointer(Policing) = cython.address(self.policing)
        policing.share = share
        policing.inner = inner
        policing.late = late
        limit: cython.size_t = share.inodes.limit + 1
        where: cython.p_void = mmap(
            cython.NULL,
            limit * cython.sizeof(Mark),
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
            -1,
            0,
        )
        if where == MAP_FAILED:
            raise OSError(errno, "cannot map the marks of a policy")
        policing.marks = cython.cast(cython.pointer(Mark), where)
        policing.limit = limit
        if set_mark(
            policing,
            node_id(cython.address(share.inodes), cython.address(share.inodes.inodes[ROOT_INDEX])),
            True,
            0,
            0,
            0,
            cython.NULL,
            0,
        ):
            raise MemoryError
        self.follow_files()
        if self.policy.scan:
            self.look_through()
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def follow_files(self) -> cython.int:
        """Note the files that the policy names.  Raises `OSError` for one that is not there."""
        share: cython.pointer(Share) = self.policing.share
        status: statx_t
        for bit, paths in (
            (HIDE, self.policy.hidden_files),
            (DENY, self.policy.denied_files),
            (READ_ONLY, self.policy.read_only_files),
        ):
            for path in paths:
                name: bytes = os.fsencode(path.strip("/"))
                if (
                    statx(share.root, name, AT_SYMLINK_NOFOLLOW, IDENTITY_MASK, cython.address(status)) != 0
                    or status.stx_mode & S_IFMT == S_IFDIR
                ):
                    raise OSError(
                        errno, f"the policy names {path}, which is no file; for a directory write a pattern"
                    )
                if rule_file(
                    cython.address(self.policing), cython.address(share.inodes), cython.address(status), bit
                ):
                    raise MemoryError
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def look_through(self) -> cython.int:
        """Note every file that has several names, one of which has a rule.  Raises `OSError`."""
        share: cython.pointer(Share) = self.policing.share
        status: statx_t
        for where, _, names, fd in os.fwalk(".", dir_fd=share.root, onerror=refuse):
            for name in names:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if found.st_nlink < 2 or stat.S_ISDIR(found.st_mode):
                    continue
                verdict: uint64_t = self.matcher.verdict(
                    os.fsencode(f"{where}/{name}").removeprefix(b"./"), False
                )
                if not verdict & FOLLOWS:
                    continue
                if (
                    statx(fd, os.fsencode(name), AT_SYMLINK_NOFOLLOW, IDENTITY_MASK, cython.address(status))
                    != 0
                ):
                    raise OSError(errno, "cannot look at a file with several names", name)
                if rule_file(
                    cython.address(self.policing),
                    cython.address(share.inodes),
                    cython.address(status),
                    verdict & FOLLOWS,
                ):
                    raise MemoryError
        return 0

    def statistics(self) -> dict[str, int]:
        """States of directories, files whose rule follows them, and how often the policy was asked."""
        return {
            "policy_states": self.matcher.states,
            "policy_files": self.policing.ruled_count,
            "policy_asked": 0 if self.asker is None else self.asker.asked,
        }


def refuse(error: OSError) -> None:
    raise error
