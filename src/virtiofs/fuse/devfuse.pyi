from virtiofs.fuse.readers import Readers
from virtiofs.fuse.serving import Loop
from virtiofs.fuse.session import Session

class DevFuseLoop(Loop):
    def __init__(
        self,
        session: Session,
        fd: int,
        wait_limit: float = 600.0,
        readers: Readers | None = None,
        place: int = 0,
    ) -> None: ...
    def run(self) -> bool: ...
    def stop(self) -> None: ...
