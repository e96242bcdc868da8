# SPDX-License-Identifier: Apache-2.0
"""The guest's memory, as regions mapped into this process, and the only way from a guest address to a
pointer.

A piece of guest memory is usable only if it lies wholly inside one region (virtio 1.3, section 2.7;
vhost-user, "Memory region description").  A reader takes no lock: a new region is published by raising
`count` after its entry is written.  Regions are removed only while no queue runs (the owner of the queues
sees to that).

The DAX window is apart: pieces of files come and go in it while queues run, so its addresses stay reserved here as
long as the process lives.  What lies there may vanish at any time, with a SIGBUS for whoever touches it: it is good
for system calls only, which answer EFAULT.
"""

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, strerror
from cython.cimports.posix.mman import (
    MADV_DONTDUMP,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)
from cython.cimports.posix.stat import fstat, struct_stat
from cython.cimports.virtiofs.virtqueue.atomics import (
    load_acquire_u32,
    load_acquire_u64,
    store_release_u32,
    store_release_u64,
)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def region_of(map: cython.pointer(MemoryMap), address: uint64_t, length: uint64_t) -> cython.pointer(Region):
    """The region that holds `length` bytes at guest address `address`, or NULL if they are not all in one."""
    i: uint32_t
    count: uint32_t = load_acquire_u32(cython.address(map.count))
    for i in range(count):
        if holds(cython.address(map.regions[i]), address, length):
            return cython.address(map.regions[i])
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def translate(map: cython.pointer(MemoryMap), address: uint64_t, length: uint64_t) -> cython.pointer(uint8_t):
    """Where `length` bytes at guest address `address` are mapped, or NULL if they are not all in one region."""
    region: cython.pointer(Region) = region_of(map, address, length)
    if region == cython.NULL:
        return cython.NULL
    return region.host + (address - region.guest)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def translate_window(map: cython.pointer(MemoryMap), address: uint64_t, length: uint64_t) -> cython.pointer(
    uint8_t
):
    """Where guest addresses in the window are here, mapped or not, or NULL; for system calls only."""
    guest: uint64_t = load_acquire_u64(cython.address(map.window_guest))
    if (
        guest == 0
        or address < guest
        or length > map.window_size
        or address - guest > map.window_size - length
    ):
        return cython.NULL
    return map.window_host + (address - guest)


@cython.cclass
class GuestMemory:
    """The regions of one guest.  `add` and `remove` are called by one thread; `translate` by any."""

    def add(self, guest: int, size: int, fd: int, offset: int = 0) -> None:
        """Map `size` bytes of descriptor `fd` from byte `offset` as the guest's addresses from `guest` on.

        The descriptor stays the caller's and may be closed afterwards.  Raises `ValueError` for a region that
        is empty, wraps, overlaps another or reaches past the end of the file, `OSError` if it can not be
        mapped.
        """
        g: uint64_t = guest
        n: uint64_t = size
        o: uint64_t = offset
        i: uint32_t
        status: struct_stat
        if self.map.count == MAX_REGIONS:
            raise ValueError(f"more than {MAX_REGIONS} memory regions")
        if n == 0 or guest + size > 1 << 64 or offset + size > 1 << 63:
            raise ValueError(f"memory region at {guest:#x} of {size} bytes is empty or wraps")
        for i in range(self.map.count):
            # By last bytes: the end of a region at the top of the address space would be 0.
            if g <= self.map.regions[i].guest + (self.map.regions[i].size - 1) and (
                self.map.regions[i].guest <= g + (n - 1)
            ):
                raise ValueError(f"memory region at {guest:#x} overlaps another")
        if fstat(fd, cython.address(status)) != 0:
            raise OSError(errno, strerror(errno).decode())
        # Touching a page past the end of the file would be a SIGBUS.
        if cython.cast(uint64_t, status.st_size) < o + n:
            raise ValueError(
                f"memory region at {guest:#x} needs {offset + size} bytes, its file has {status.st_size}"
            )
        # The file may want a start that is a multiple of its page size (hugetlbfs).
        page: uint64_t = status.st_blksize if status.st_blksize > 4096 else 4096
        slack: uint64_t = o % page
        length: uint64_t = (n + slack + page - 1) // page * page
        where: cython.p_void = mmap(
            cython.NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, o - slack
        )
        if where == MAP_FAILED:
            raise OSError(errno, f"cannot map guest memory: {strerror(errno).decode()}")
        madvise(where, length, MADV_DONTDUMP)
        region: cython.pointer(Region) = cython.address(self.map.regions[self.map.count])
        region.guest = g
        region.size = n
        region.host = cython.cast(cython.pointer(uint8_t), where) + slack
        region.mapped = where
        region.mapped_size = length
        store_release_u32(cython.address(self.map.count), self.map.count + 1)

    def remove(self, guest: int, size: int) -> None:
        """Unmap the region of exactly these bounds.  No queue may run.  Raises `KeyError` if there is none."""
        i: uint32_t
        g: uint64_t = guest
        n: uint64_t = size
        for i in range(self.map.count):
            if self.map.regions[i].guest == g and self.map.regions[i].size == n:
                munmap(self.map.regions[i].mapped, self.map.regions[i].mapped_size)
                self.map.count -= 1
                self.map.regions[i] = self.map.regions[self.map.count]
                return
        raise KeyError(f"no memory region at {guest:#x} of {size} bytes")

    def clear(self) -> None:
        """Unmap every region.  No queue may run."""
        i: uint32_t
        for i in range(self.map.count):
            munmap(self.map.regions[i].mapped, self.map.regions[i].mapped_size)
        self.map.count = 0

    def __dealloc__(self):
        self.clear()
        if self.map.window_host != cython.NULL:
            munmap(self.map.window_host, self.map.window_size)

    # --- the DAX window ---

    def reserve_window(self, size: int, zeros: bool = False) -> None:
        """Reserve addresses for a window, once; `zeros`: what is not mapped reads as zeros.  Raises `OSError`."""
        self.window_access = PROT_READ | PROT_WRITE if zeros else PROT_NONE
        where: cython.p_void = mmap(
            cython.NULL, size, self.window_access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if where == MAP_FAILED:
            raise OSError(errno, f"cannot reserve addresses for a window: {strerror(errno).decode()}")
        madvise(where, size, MADV_DONTDUMP)
        self.map.window_host = cython.cast(cython.pointer(uint8_t), where)
        self.map.window_size = size

    def place_window(self, guest: int) -> None:
        """The guest sees the window at this address; 0: nobody knows."""
        store_release_u64(cython.address(self.map.window_guest), guest)

    def map_window(self, offset: int, fd: int, fd_offset: int, length: int) -> None:
        """Map a piece of a file in the window.  Raises `ValueError` if it is outside, `OSError` if that is refused."""
        where: cython.p_void = cython.cast(cython.p_void, self.in_window(offset, length))
        if (
            mmap(where, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, fd_offset) == MAP_FAILED
            and mmap(where, length, PROT_READ, MAP_SHARED | MAP_FIXED, fd, fd_offset) == MAP_FAILED
        ):
            raise OSError(errno, f"cannot map a file: {strerror(errno).decode()}")

    def unmap_window(self, offset: int, length: int) -> None:
        """Map nothing there.  Raises as `map_window` does."""
        where: cython.p_void = cython.cast(cython.p_void, self.in_window(offset, length))
        flags: cython.int = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        if mmap(where, length, self.window_access, flags, -1, 0) == MAP_FAILED:
            raise OSError(errno, f"cannot unmap a file: {strerror(errno).decode()}")

    def read_window(self, offset: int, length: int) -> bytes:
        """A copy of what is in the window; what is behind the end of a file kills the process (SIGBUS)."""
        where: uint64_t = self.in_window(offset, length)
        return cython.cast(cython.p_char, where)[:length]

    def write_window(self, offset: int, data: bytes) -> None:
        """Store in the window, as a guest's program does in what it mapped."""
        where: uint64_t = self.in_window(offset, len(data))
        memcpy(cython.cast(cython.p_void, where), cython.cast(cython.p_char, data), len(data))

    @cython.cfunc
    @cython.exceptval(0, check=True)
    def in_window(self, offset: object, length: object) -> uint64_t:
        if not 0 <= offset <= offset + length <= self.map.window_size:
            raise ValueError(f"{length} bytes at {offset} of a window of {self.map.window_size}")
        return cython.cast(uint64_t, self.map.window_host) + cython.cast(uint64_t, offset)

    def __len__(self) -> int:
        return self.map.count

    def contains(self, address: int, length: int) -> bool:
        """Whether `length` bytes at guest address `address` lie in one region."""
        if not (0 <= address < 1 << 64 and 0 <= length < 1 << 64):
            return False
        return translate(cython.address(self.map), address, length) != cython.NULL

    def read(self, address: int, length: int) -> bytes:
        """A copy of guest memory.  Raises `ValueError` for bytes outside one region."""
        where: cython.pointer(uint8_t) = translate(cython.address(self.map), address, length)
        if where == cython.NULL:
            raise ValueError(f"{length} bytes at {address:#x} are outside guest memory")
        return cython.cast(cython.p_char, where)[:length]

    def write(self, address: int, data: bytes) -> None:
        """Copy `data` into guest memory.  Raises `ValueError` for bytes outside one region."""
        where: cython.pointer(uint8_t) = translate(cython.address(self.map), address, len(data))
        if where == cython.NULL:
            raise ValueError(f"{len(data)} bytes at {address:#x} are outside guest memory")
        memcpy(where, cython.cast(cython.p_char, data), len(data))
