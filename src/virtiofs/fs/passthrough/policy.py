# SPDX-License-Identifier: Apache-2.0
"""A policy at work: what stands in front of the operations of a share that has one.

docs/policy.md has the rules, `marks.py` what is known of each inode.  Here every operation is of one
of three kinds: those on a node are let through by its mark (LOOK, USE, CHANGE), those on a name by what holds for
the name, and what comes with a handle was let through when that was opened.  What is not in the table is taken away:
only operations that were looked at with this in mind are there.

A request that is allowed by what is known never enters the interpreter.  Without a policy none of this is in its way.

A policy can be replaced while requests are served.  Each request that looks at it takes the one that is in force when
it begins, from there to its end (`judged`), and says so in a count; one that is replaced is given up when nobody works
by it any more.  There is room for `GENERATIONS`, so nobody waits, and no memory is given back that a request may read.
"""

import cython
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.marks import Mark, Policing, known_mark
from cython.cimports.virtiofs.fs.passthrough.policylistings import readdir
from cython.cimports.virtiofs.fs.passthrough.policynames import link, lookup, make, remove, rename, tmpfile
from cython.cimports.virtiofs.fs.passthrough.policynodes import (
    access,
    change_node,
    getattr,
    ioctl,
    open_,
    read_node,
    setattr,
    setupmapping,
    statx_,
    use_node,
)
from cython.cimports.virtiofs.fs.passthrough.unopened import unopened
from cython.cimports.virtiofs.fs.passthrough.verdicts import Verdicts
from cython.cimports.virtiofs.fuse.layout import FUSE_LSEEK, FUSE_READ, fuse_lseek_in, fuse_read_in
from cython.cimports.virtiofs.fuse.request import OPCODES, Handler, Request
from cython.cimports.virtiofs.virtqueue.atomics import (
    fence,
    fence_after_change,
    fetch_add_u64,
    fetch_sub_u64,
    load_acquire_u64,
    store_release_u64,
)

from virtiofs.fuse import abi

# Operations that pass as they are: those by handle, and those about nothing that has a name.
PASS = ("forget", "batch_forget", "statfs", "release", "releasedir", "flush", "fsync", "fsyncdir", "write", "fallocate",
        "copy_file_range", "copy_file_range_64", "syncfs", "removemapping")  # fmt: skip


@cython.cclass
class Policies:
    """The policy in force, those before it that requests still work by, and one that was made ready.

    `log` is given what goes wrong in asking.
    """

    def __cinit__(self, log: object):
        self.log = log
        self.held = [None] * GENERATIONS

    @cython.cfunc
    @cython.exceptval(-1)
    def begin(
        self, share: cython.pointer(Share), table: cython.pointer(Handler), policy: object
    ) -> cython.int:
        """Put `policy` in front of the handlers in `table`.  Raises `ValueError`, `OSError` and `MemoryError`."""
        ruling: cython.pointer(Ruling) = cython.address(self.ruling)
        self.share = share
        share.ruling = ruling
        enforce(ruling, table)
        self.prepare(policy)
        self.use()
        return 0

    def prepare(self, policy: object) -> None:
        """Make `policy` ready, for `use`, which then can not fail.

        Raises `ValueError`, `OSError` and `MemoryError`; also while requests that began by too many policies before are
        not done.
        """
        self.give_up()
        if self.free_place() < 0:
            raise OSError(
                f"requests that began {GENERATIONS - 1} policies ago are not done yet, as where a function takes long;"
                " try again"
            )
        verdicts: Verdicts = Verdicts(policy, self.log)
        verdicts.begin(self.share, self.ruling.inner, self.ruling.now != cython.NULL)
        self.prepared = verdicts

    def use(self) -> None:
        """Let what was made ready hold for requests that begin from now on.  Raises `OSError` if nothing was."""
        verdicts: Verdicts = self.prepared
        ruling: cython.pointer(Ruling) = cython.address(self.ruling)
        generation: cython.pointer(Generation)
        if verdicts is None:
            raise OSError("no policy was made ready")
        place: cython.int = self.free_place()
        self.held[place] = verdicts
        self.prepared = None
        generation = cython.address(ruling.generations[place])
        generation.policing = cython.address(verdicts.policing)
        store_release_u64(
            cython.address(ruling.now), cython.cast(uint64_t, cython.cast(cython.size_t, generation))
        )
        fence()  # before `give_up` looks at counts
        self.give_up()

    @cython.cfunc
    @cython.exceptval(check=False)
    def free_place(self) -> cython.int:
        """A place for a policy, or -1."""
        place: cython.int
        for place in range(GENERATIONS):
            if self.held[place] is None:
                return place
        return -1

    @cython.cfunc
    def give_up(self) -> cython.void:
        """Free what nobody works by any more."""
        ruling: cython.pointer(Ruling) = cython.address(self.ruling)
        place: cython.int
        for place in range(GENERATIONS):
            if cython.address(ruling.generations[place]) != ruling.now and not in_use(
                cython.address(ruling.generations[place])
            ):
                self.held[place] = None

    @property
    def policy(self) -> object:
        """The `policy.rules.Policy` in force."""
        return self.in_force().policy

    @cython.cfunc
    def in_force(self) -> Verdicts:
        return self.held[self.ruling.now - self.ruling.generations]

    def judge(self, nodes: list) -> list:
        """What the policy in force says of nodes that the guest knows, as bits; -1 of one that no path leads to."""
        verdicts: Verdicts = self.in_force()  # which stays as long as we have it
        policing: cython.pointer(Policing) = cython.address(verdicts.policing)
        mark: cython.pointer(Mark)
        nodeid: uint64_t
        found: list = []
        for nodeid in nodes:
            with cython.nogil:
                mark = known_mark(policing, nodeid)
            found.append(-1 if mark == cython.NULL else mark.verdict)
        return found

    def statistics(self) -> dict[str, int]:
        """Those of the policy in force."""
        self.give_up()
        return self.in_force().statistics()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def in_use(generation: cython.pointer(Generation)) -> cython.bint:
    """Whether requests work by a policy that is not in force.  Once none does, none will."""
    slot: cython.int
    for slot in range(SLOTS):
        if load_acquire_u64(cython.address(generation.users[slot].count)):
            return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def judged(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Serve a request by the policy in force.

    Who finds another in force after it said which it takes begins anew: nobody may have seen its count in time.
    """
    ruling: cython.pointer(Ruling) = cython.cast(
        cython.pointer(Ruling), cython.cast(cython.pointer(Share), context).ruling
    )
    generation: cython.pointer(Generation) = cython.NULL
    users: cython.pointer(uint64_t) = cython.NULL
    error: cython.int = 0
    # Threads have their stacks 8 MiB apart, so that each has a count of its own, without having a number.
    slot: cython.int = (cython.cast(cython.size_t, cython.address(error)) >> 23) & (SLOTS - 1)
    while True:
        generation = cython.cast(
            cython.pointer(Generation),
            cython.cast(cython.size_t, load_acquire_u64(cython.address(ruling.now))),
        )
        users = cython.address(generation.users[slot].count)
        fetch_add_u64(users, 1)
        fence_after_change()
        if load_acquire_u64(cython.address(ruling.now)) == cython.cast(
            uint64_t, cython.cast(cython.size_t, generation)
        ):
            break
        fetch_sub_u64(users, 1)
    error = ruling.guards[request.header.opcode](generation.policing, request)
    fetch_sub_u64(users, 1)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """READ and LSEEK: what is read without having been opened is let through here, the rest was."""
    ruling: cython.pointer(Ruling) = cython.cast(
        cython.pointer(Ruling), cython.cast(cython.pointer(Share), context).ruling
    )
    fh: uint64_t
    if request.header.opcode == FUSE_READ:
        fh = cython.cast(cython.pointer(fuse_read_in), request.args).fh
    else:
        fh = cython.cast(cython.pointer(fuse_lseek_in), request.args).fh
    if unopened(request, fh, False):
        return judged(context, request)
    return ruling.inner[request.header.opcode](context, request)


@cython.cfunc
def enforce(ruling: cython.pointer(Ruling), table: cython.pointer(Handler)) -> cython.void:
    """Put the policy in front of the handlers in `table`; those that have no kind are taken away."""
    guards: cython.pointer(Handler) = ruling.guards
    opcode: cython.int
    guards[opcode_of("lookup")] = lookup
    guards[opcode_of("getattr")] = getattr
    guards[opcode_of("statx")] = statx_
    guards[opcode_of("setattr")] = setattr
    guards[opcode_of("readlink")] = guards[opcode_of("getxattr")] = guards[opcode_of("listxattr")] = read_node
    guards[opcode_of("setxattr")] = guards[opcode_of("removexattr")] = change_node
    guards[opcode_of("opendir")] = guards[opcode_of("read")] = guards[opcode_of("lseek")] = use_node
    guards[opcode_of("getlk")] = guards[opcode_of("setlk")] = guards[opcode_of("setlkw")] = use_node
    guards[opcode_of("access")] = access
    guards[opcode_of("open")] = open_
    guards[opcode_of("ioctl")] = ioctl
    guards[opcode_of("setupmapping")] = setupmapping
    guards[opcode_of("readdir")] = guards[opcode_of("readdirplus")] = readdir
    guards[opcode_of("symlink")] = guards[opcode_of("mknod")] = guards[opcode_of("mkdir")] = make
    guards[opcode_of("create")] = make
    guards[opcode_of("tmpfile")] = tmpfile
    guards[opcode_of("link")] = link
    guards[opcode_of("unlink")] = guards[opcode_of("rmdir")] = remove
    guards[opcode_of("rename")] = guards[opcode_of("rename2")] = rename
    for opcode in range(OPCODES):
        ruling.inner[opcode] = table[opcode]
        if table[opcode] == cython.NULL or passes(opcode):
            continue
        if guards[opcode] == cython.NULL:
            table[opcode] = cython.NULL
        else:
            table[opcode] = read if opcode in (FUSE_READ, FUSE_LSEEK) else judged


@cython.cfunc
def opcode_of(name: str) -> cython.int:
    return abi.BY_NAME[name].opcode


@cython.cfunc
def passes(opcode: cython.int) -> cython.bint:
    return opcode in [abi.BY_NAME[name].opcode for name in PASS]
