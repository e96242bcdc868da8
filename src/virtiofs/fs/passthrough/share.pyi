from collections.abc import Callable, Sequence

from virtiofs.fs.filesystem import Filesystem
from virtiofs.fs.passthrough.account import Quota
from virtiofs.fs.passthrough.audit import Audit
from virtiofs.fs.passthrough.idrules import Range
from virtiofs.fs.passthrough.xattrrules import Rule
from virtiofs.fs.policy.rules import Policy
from virtiofs.metadata.table import Table

class Passthrough(Filesystem):
    def __init__(
        self,
        directory: str,
        read_only: bool = False,
        valid: float | None = None,
        max_open: int = 0,
        file_handles: str = "prefer",
        shared_locks: bool | None = None,
        wait_limit: float = 600.0,
        announce_submounts: bool = True,
        proc: int = -1,
        xattr_rules: Sequence[Rule] | None = None,
        posix_acl: bool = False,
        kill_priv: bool = True,
        security_label: bool = False,
        ownership: str = "as-is",
        users: tuple[Sequence[Range], Sequence[Range]] = ((), ()),
        groups: tuple[Sequence[Range], Sequence[Range]] = ((), ()),
        keep_unmapped: bool = False,
        cache: str = "auto",
        readdirplus: bool | None = None,
        writeback: bool = False,
        direct_io: bool = False,
        mmap: bool = False,
        noatime: bool = False,
        only: str = "",
        quota: Quota | None = None,
        pool_threads: int = 0,
        dax_from: int | None = None,
        metadata: Table | None = None,
        longest: float = 60.0,
        policy: Policy | None = None,
        log: Callable[[str], None] | None = None,
        audit: Audit | None = None,
    ) -> None: ...
    @property
    def directory(self) -> str: ...
    @property
    def metadata(self) -> Table | None: ...
